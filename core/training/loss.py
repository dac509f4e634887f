"""The language-model loss of a batch and its running sums, per task, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.adapters.packed import Pack
from core.data.batches import IGNORED, SIDE, Collator
from core.data.packing import pays, places
from core.training.cross_entropy import WHOLE, in_chunks
from core.training.masks import causal_alone

ADDRESSING = ("input_ids", "task_index", "token_role")
RAGGED = {"predicts": 0, "targets": 0, "target_task": 0, "counts": 0}  # of any length, and what fills them up
STEP = 32  # what the length of padded rows is a multiple of where shapes should come again


class AnswerCollator:
    """Adds to a padded batch where its answers are, so that the device need not search for them.

    ``predicts`` (N,): flat positions (row * T + column) whose next token is an answer token; ``targets`` (N,): that
    token; ``target_task`` (N,): the task of its row; ``counts`` (N,): one, or zero where a position only fills up the
    tensors to a length that comes again. ``answers`` counts these by task, and ``tokens`` all that are no
    padding, both for the host. ``labels`` is left out: the model is not asked for a loss.

    Rows are as long as the longest, rounded up to a multiple of ``multiple_of``. With ``packing`` a batch with much
    padding also has ``place`` and ``back`` (see ``core.data.packing``), and ``predicts`` then counts the positions of
    the pack.
    """

    def __init__(self, pad_id: int, packing: bool = False, multiple_of: int = 1) -> None:
        self.pad_id, self.packing, self.multiple_of = pad_id, packing, multiple_of

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        lengths = [len(item["input_ids"]) for item in items]
        pack = self._pack(lengths) if self.packing else {}
        multiple = pack["place"].shape[1] if pack else self.multiple_of
        batch = Collator(self.pad_id, multiple_of=multiple)(items) | pack
        labels = batch.pop("labels")
        rows, columns = torch.nonzero(labels[:, 1:] != IGNORED, as_tuple=True)
        tasks = batch["task_index"][rows]
        return batch | {
            "predicts": pack["place"][rows, columns] if pack else rows * labels.shape[1] + columns,
            "targets": labels[rows, columns + 1],
            "target_task": tasks,
            "counts": torch.ones(len(tasks)),
            "answers": torch.bincount(tasks).tolist(),
            "tokens": sum(lengths),
        }

    def _pack(self, lengths: Sequence[int]) -> dict[str, Tensor]:
        """Nothing where a pack would save too little."""
        place, back = places(lengths, coarse=self.multiple_of > 1)
        if pays(back.shape, len(lengths), max(lengths)) is None:
            return {}
        return {"place": torch.from_numpy(place), "back": torch.from_numpy(back)}


class AnswerHead:
    """Runs a causal language model and keeps the logits of the answer positions alone.

    The output embedding is most of the memory of a large vocabulary; where it is a plain linear layer it sees only
    the positions that have a loss, and many of them in parts.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        head = model.get_output_embeddings()
        self.head = head if isinstance(head, nn.Linear) else None  # an adapted head needs its whole batch
        self._last: bool | None = None  # see _is_last
        self.causal = not getattr(model.config, "is_encoder_decoder", False)

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits of shape (N, vocabulary) at ``batch["predicts"]``."""
        with self._narrowed(batch["predicts"]):
            logits = self._run(batch)
        return logits if logits.dim() == 2 else logits.flatten(0, 1)[batch["predicts"]]

    def losses(self, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy of each answer token, (N,) in float32 or wider."""
        if self.head is not None and len(batch["targets"]) * self.head.out_features > WHOLE and self._is_last(batch):
            return in_chunks(self._states(batch), batch["targets"], self.head)
        logits = self.logits(batch)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, batch["targets"], reduction="none")

    def _run(self, batch: Mapping[str, Any]) -> Tensor:
        """Rows are filled up on the right, where no causal attention looks, so they need no mask."""
        inputs: dict[str, Any] = {name: batch[name] for name in ADDRESSING}
        if not self.causal:
            inputs["attention_mask"] = batch["attention_mask"]
        side = {name.removeprefix(SIDE): value for name, value in batch.items() if name.startswith(SIDE)}
        if side:
            inputs["side_inputs"] = side
        if "place" in batch:
            pack = Pack(batch["place"], batch["back"])
            inputs["pack"] = pack
            inputs["input_ids"] = pack.together(batch["input_ids"])
            inputs["position_ids"] = pack.positions
            inputs["attention_mask"] = pack.mask(self.model.get_base_model().dtype)
        with causal_alone() if "attention_mask" not in inputs else nullcontext():
            return self.model(**inputs, use_cache=False).logits

    def _states(self, batch: Mapping[str, Any]) -> Tensor:
        """What enters the head at ``batch["predicts"]``, (N, width); the head itself sees one position."""
        found: list[Tensor] = []

        def keep(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            found.append(given[0].flatten(0, -2)[batch["predicts"]])
            return (found[0][:1], *given[1:])

        hook = self.head.register_forward_pre_hook(keep)
        try:
            self._run(batch)
        finally:
            hook.remove()
        return found[0]

    @torch.no_grad()
    def _is_last(self, batch: Mapping[str, Any]) -> bool:
        """Whether the base gives the head's logits as they are, neither scaled nor capped; looked at once, on a token
        and without dropout."""
        if self._last is None:
            token = {
                name: value[:1] if name.startswith(SIDE) or value.dim() < 2 else value[:1, :1]
                for name, value in batch.items()
                if name in ADDRESSING or name.startswith(SIDE)
            }
            found: list[Tensor] = []
            training = self.model.training
            hook = self.head.register_forward_hook(lambda _, given, output: found.append(output))
            self.model.eval()
            try:
                logits = self._run(token)
            finally:
                hook.remove()
                self.model.train(training)
            self._last = bool(found) and torch.equal(found[-1].view(-1), logits.view(-1))
        return self._last

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
    """Sums since the last point of the curves; losses stay on the device and are read once per point."""

    def __init__(self, tasks: Sequence[str], device: torch.device | str) -> None:
        self.tasks = list(tasks)
        self.loss = torch.zeros(len(tasks), dtype=torch.float64, device=device)
        self.auxiliary: dict[str, Tensor] = {}  # by name
        self.tokens = torch.zeros(len(tasks), dtype=torch.float64)  # of answers
        self.rest = torch.zeros(2, dtype=torch.float64)  # micro-steps, input tokens
        self.norm = torch.zeros((), device=device)  # the highest of the gradients
        self.seconds = 0.0

    def add(self, losses: Tensor, batch: Mapping[str, Any], auxiliary: Mapping[str, Tensor]) -> None:
        self.loss.index_add_(0, batch["target_task"], losses.detach().double())
        for task, count in enumerate(batch["answers"]):
            self.tokens[task] += count
        self.rest += torch.tensor((1, batch["tokens"]))
        for name, value in auxiliary.items():
            if name not in self.auxiliary:
                self.auxiliary[name] = torch.zeros((), dtype=torch.float64, device=self.loss.device)
            self.auxiliary[name] += value.detach().to(self.loss.device)

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
        """Whether every loss and gradient since the last point was a number; waits for the device."""
        return bool(torch.isfinite(self.loss.sum() + sum(self.auxiliary.values()) + self.norm))

    def clear(self) -> None:
        self.seconds = 0.0
        self.auxiliary = {}
        for sums in (self.loss, self.tokens, self.rest, self.norm):
            sums.zero_()

    def state_dict(self) -> dict[str, Any]:
        sums = {"loss": self.loss, "tokens": self.tokens, "rest": self.rest, "norm": self.norm}
        return {**sums, "auxiliary": dict(self.auxiliary), "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seconds = state["seconds"]
        for name in ("loss", "tokens", "rest", "norm"):
            if name in state:  # checkpoints of before there was a norm
                getattr(self, name).copy_(state[name])
        self.auxiliary = {name: value.to(self.loss.device) for name, value in state["auxiliary"].items()}
