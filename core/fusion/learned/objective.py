"""The sum over tasks of the mean entropy of a candidate's answers (AdaMerging, equation 3), and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from core.fusion.candidate import Candidate
from core.fusion.delta import Delta, Deltas
from core.fusion.learned.entropy import OptionTable, Reading, entropy, read_first_token, read_options, read_sequence
from core.fusion.learned.layout import Layout, option_table, positions_of, repeated, sequences, shared
from core.fusion.learned.prompts import Prompt, TaskPrompts

Gradient = tuple[Tensor | None, Tensor | None]  # of the two matrices of an update; None: not asked for
Loss = Literal["options", "first_token", "sequence"]
WATCHED = 32  # prompts per task that evaluations look at, the same each time
TOKENS = 16_384  # of one forward pass, or one prompt's
LOGITS = 2**26  # of one forward pass
AGREE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}  # largest difference of logits, in their scale


@dataclass(frozen=True)
class Question:
    """Some prompts of one task as one forward pass, and how its logits are read."""

    layout: Layout
    read: Callable[[Tensor], Reading]
    prompts: int

    def ask(self, candidate: Candidate) -> Reading:
        return self.read(self.layout.logits(candidate.model))


@dataclass(frozen=True)
class TaskReading:
    """Of one task: means over prompts in nats, and ``marginal_entropy``, that of the mean distribution."""

    entropy: float
    marginal_entropy: float
    option_mass: float | None
    loss: float


class Objective:
    """Reads the prompts of all tasks with the updates that it is given.

    ``kind``: which distribution an answer is; tasks without options are read along an expert's answers where it is
    ``options``. ``mass_weight`` times minus the log of the option mass is added for tasks with options.
    """

    def __init__(
        self,
        candidate: Candidate,
        tasks: Sequence[TaskPrompts],
        *,
        pad_id: int,
        kind: Loss = "options",
        batch_size: int = 8,
        normalise: bool = False,
        mass_weight: float = 0.0,
    ) -> None:
        self.candidate, self.pad_id, self.kind, self.batch_size = candidate, pad_id, kind, batch_size
        self.normalise, self.mass_weight = normalise, mass_weight
        self.tasks = sorted(tasks, key=lambda task: task.name)  # sums do not depend on the order of the tasks

    def gradients(self, deltas: Deltas, draws: Iterable[int]) -> dict[str, Gradient]:
        """Gradients of the losses of these batches, added up, for the tensors of ``deltas`` that require one.

        Every pass goes backward at once, so that no two keep their activations.
        """
        leaves = {path: _leaf(delta) for path, delta in deltas.items()}
        with self.candidate.using(leaves):
            for draw in draws:
                for task in self.tasks:
                    prompts = task.batch(draw, self.batch_size)
                    for question in self._questions(task, prompts):
                        (self._loss(question.ask(self.candidate)).sum() / len(prompts)).backward()
        return {path: (_gradient(leaf.up), _gradient(leaf.down)) for path, leaf in leaves.items()}

    @torch.no_grad()
    def measure(self, deltas: Deltas) -> dict[str, TaskReading]:
        """By task, on the same prompts each time; waits for the device once."""
        with self.candidate.using(deltas):
            found = torch.stack([self._means(questions) for questions in self._watched.values()]).tolist()
        return {
            name: TaskReading(mean, marginal, mass if has_mass else None, loss)
            for name, (mean, marginal, mass, has_mass, loss) in zip(self._watched, found, strict=True)
        }

    def sequence_tasks(self) -> list[TaskPrompts]:
        """The tasks that are read along an expert's answers."""
        return [task for task in self.tasks if self._kind(task[0]) == "sequence"]

    def _loss(self, reading: Reading) -> Tensor:
        """(prompts,)"""
        if not self.mass_weight or reading.log_mass is None:
            return reading.entropy
        return reading.entropy - self.mass_weight * reading.log_mass

    def _means(self, questions: list[Question]) -> Tensor:
        readings = [question.ask(self.candidate) for question in questions]
        width = max(reading.probabilities.shape[1] for reading in readings)
        total = sum(_widened(reading.probabilities.sum(0), width) for reading in readings)
        count = sum(question.prompts for question in questions)
        mean = torch.cat([reading.entropy for reading in readings]).mean()
        loss = torch.cat([self._loss(reading) for reading in readings]).mean()
        masses = [reading.log_mass.exp() for reading in readings if reading.log_mass is not None]
        mass = torch.cat(masses).mean() if masses else torch.zeros_like(mean)
        has_mass = torch.full_like(mean, float(bool(masses)))
        return torch.stack([mean, entropy((total / count).log()), mass, has_mass, loss])

    @cached_property
    def _watched(self) -> dict[str, list[Question]]:
        return {
            task.name: list(self._questions(task, [task[i] for i in range(min(WATCHED, len(task)))]))
            for task in self.tasks
        }

    def _kind(self, prompt: Prompt) -> Loss:
        return "sequence" if self.kind == "options" and not prompt.options else self.kind

    def _questions(self, task: TaskPrompts, prompts: Sequence[Prompt]) -> Iterator[Question]:
        kind = self._kind(prompts[0])
        if kind == "sequence":
            prompts = [replace(prompt, options=(prompt.answer,)) for prompt in prompts]
        for part in self._parts(prompts, kind):
            yield self._question(part, kind)

    def _question(self, prompts: list[Prompt], kind: Loss) -> Question:
        device = self.candidate.device
        if kind == "first_token":
            order = [(number, ()) for number in range(len(prompts))]
            built = repeated([Prompt(prompt.ids) for prompt in prompts])
        else:
            order = positions_of(prompts)
            built = sequences(prompts, self._may_share)
        layout = built.layout(order, self.pad_id, device, square=self._may_share)
        if kind == "sequence":
            owner, first = (
                torch.tensor(numbers).to(device, non_blocking=True)
                for numbers in (
                    [number for number, _ in order],
                    [order.index((number, ())) for number in range(len(prompts))],
                )
            )
            return Question(
                layout, lambda logits: read_sequence(logits, owner, first, self.normalise), prompts=len(prompts)
            )
        table: OptionTable | None = option_table(prompts, order, device)
        read = read_options if kind == "options" else read_first_token
        return Question(layout, lambda logits: read(logits, table, self.normalise), prompts=len(prompts))

    def _parts(self, prompts: Sequence[Prompt], kind: Loss) -> Iterator[list[Prompt]]:
        """As many prompts at once as a pass may hold."""
        vocabulary = self.candidate.model.config.get_text_config().vocab_size
        build = shared if self._may_share else repeated
        part: list[Prompt] = []
        tokens = logits = 0
        for prompt in prompts:
            alone = Prompt(prompt.ids) if kind == "first_token" else prompt
            own_tokens, own_logits = build([alone]).size, len(positions_of([alone])) * vocabulary
            if part and (tokens + own_tokens > TOKENS or logits + own_logits > LOGITS):
                yield part
                part, tokens, logits = [], 0, 0
            part.append(prompt)
            tokens, logits = tokens + own_tokens, logits + own_logits
        yield part

    @cached_property
    def _may_share(self) -> bool:
        """Whether the base computes options behind one prompt as it does behind a prompt each: tried, not assumed."""
        config = self.candidate.model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        if getattr(config, "_attn_implementation", "") != "sdpa" or window is not None:
            return False
        trial = [prompt for task in self.tasks for prompt in (task[i] for i in range(min(2, len(task))))]
        trial = [prompt for prompt in trial if len(prompt.options) > 1]
        if not trial:
            return False
        order = positions_of(trial)
        with torch.no_grad():
            plain, tree = (
                build(trial).layout(order, self.pad_id, self.candidate.device).logits(self.candidate.model).float()
                for build in (repeated, shared)
            )
        return bool((plain - tree).abs().max() <= AGREE.get(self.candidate.model.dtype, 0.0) * plain.std())


def _leaf(delta: Delta) -> Delta:
    up = delta.up.detach().requires_grad_(delta.up.requires_grad)
    return Delta(up, None if delta.down is None else delta.down.detach().requires_grad_(delta.down.requires_grad))


def _gradient(leaf: Tensor | None) -> Tensor | None:
    if leaf is None or not leaf.requires_grad:
        return None
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def pull(deltas: Deltas, gradients: Mapping[str, Gradient]) -> None:
    """Carry the gradients of updates on to what the updates were made from."""
    pairs = [
        (tensor, gradient)
        for path, delta in deltas.items()
        for tensor, gradient in zip((delta.up, delta.down), gradients[path], strict=True)
        if gradient is not None
    ]
    torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])


def _widened(values: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - len(values)))
