"""The language-model loss of a batch and its running sums, per task, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.data.batches import IGNORED, SIDE, Collator

ADDRESSING = ("input_ids", "attention_mask", "task_index", "token_role")


class AnswerCollator:
    """Adds to a padded batch where its answers are, so that the device need not search for them.

    ``predicts`` (N,): flat positions (row * T + column) whose next token is an answer token; ``targets`` (N,): that
    token; ``target_task`` (N,): the task of its row. ``labels`` is left out: the model is not asked for a loss.
    """

    def __init__(self, pad_id: int) -> None:
        self.collator = Collator(pad_id)

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch = self.collator(items)
        labels = batch.pop("labels")
        rows, columns = torch.nonzero(labels[:, 1:] != IGNORED, as_tuple=True)
        return batch | {
            "predicts": rows * labels.shape[1] + columns,
            "targets": labels[rows, columns + 1],
            "target_task": batch["task_index"][rows],
        }


class AnswerHead:
    """Runs a causal language model and keeps the logits of the answer positions alone.

    The output embedding is most of the memory of a large vocabulary; where it is a plain linear layer it sees only
    the positions that have a loss.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        head = model.get_output_embeddings()
        self.head = head if isinstance(head, nn.Linear) else None  # an adapted head needs its whole batch

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits of shape (N, vocabulary) at ``batch["predicts"]``."""
        inputs: dict[str, Any] = {name: batch[name] for name in ADDRESSING}
        side = {name.removeprefix(SIDE): value for name, value in batch.items() if name.startswith(SIDE)}
        if side:
            inputs["side_inputs"] = side
        with self._narrowed(batch["predicts"]):
            logits = self.model(**inputs, use_cache=False).logits
        return logits if logits.dim() == 2 else logits.flatten(0, 1)[batch["predicts"]]

    def losses(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy of each answer token, (N,) in float32."""
        return F.cross_entropy(self.logits(batch).float(), batch["targets"], reduction="none")

    @contextmanager
    def _narrowed(self, positions: Tensor) -> Iterator[None]:
        if self.head is None:
            yield
            return
        hook = self.head.register_forward_pre_hook(lambda _, given: (given[0].flatten(0, -2)[positions], *given[1:]))
        try:
            yield
        finally:
            hook.remove()


class Window:
    """Sums since the last point of the curves, kept on the device and read once per point."""

    def __init__(self, tasks: Sequence[str], device: torch.device | str) -> None:
        self.tasks = list(tasks)
        self.loss = torch.zeros(len(tasks), dtype=torch.float64, device=device)
        self.tokens = torch.zeros_like(self.loss)
        self.rest = torch.zeros(2, dtype=torch.float64, device=device)  # micro-steps, input tokens
        self.auxiliary: dict[str, Tensor] = {}  # by name
        self.seconds = 0.0

    def add(self, losses: Tensor, batch: Mapping[str, Tensor], auxiliary: Mapping[str, Tensor]) -> None:
        losses, task = losses.detach().double(), batch["target_task"]
        self.loss.index_add_(0, task, losses)
        self.tokens.index_add_(0, task, torch.ones_like(losses))
        self.rest[0] += 1
        self.rest[1] += batch["attention_mask"].sum()
        for name, value in auxiliary.items():
            value = value.detach().double().to(self.rest.device)
            self.auxiliary[name] = self.auxiliary[name] + value if name in self.auxiliary else value

    def values(self) -> dict[str, float]:
        """Mean loss per answer token, over all and per task; mean auxiliary losses and their sum; tokens per second."""
        loss, tokens = self.loss.tolist(), self.tokens.tolist()
        micro_steps, input_tokens = self.rest.tolist()
        values = {"loss": sum(loss) / max(sum(tokens), 1)}
        values |= {f"loss/{t}": s / n for t, s, n in zip(self.tasks, loss, tokens, strict=True) if n}
        if self.auxiliary:
            each = {name: value.item() / max(micro_steps, 1) for name, value in self.auxiliary.items()}
            values |= {"auxiliary_loss": sum(each.values())} | {f"auxiliary_loss/{n}": v for n, v in each.items()}
        if self.seconds:
            values["tokens_per_second"] = input_tokens / self.seconds
        return values

    def finite(self) -> bool:
        """Whether every loss since the last point was a number; waits for the device."""
        return bool(torch.isfinite(self.loss.sum() + sum(self.auxiliary.values())))

    def clear(self) -> None:
        self.seconds = 0.0
        self.auxiliary = {}
        for sums in (self.loss, self.tokens, self.rest):
            sums.zero_()

    def state_dict(self) -> dict[str, Any]:
        sums = {"loss": self.loss, "tokens": self.tokens, "rest": self.rest}
        return {**sums, "auxiliary": dict(self.auxiliary), "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seconds = state["seconds"]
        for name in ("loss", "tokens", "rest"):
            getattr(self, name).copy_(state[name])
        self.auxiliary = {name: value.to(self.rest.device) for name, value in state["auxiliary"].items()}
