"""Few-shot realignment: a fused model is fine-tuned on a handful of labelled training rows of every task."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from core.data.batches import IGNORED, Collator, as_item
from core.data.tasks import Task
from core.data.templates import TextEncoder
from core.errors import DataError
from core.fusion.candidate import Candidate
from core.fusion.delta import Delta, Deltas, total

LEARNING_RATE = {"adapter": 1e-4, "whole": 1e-5}
HELD_OUT = 0.25  # of the shots of each task, for stopping early
EVALUATE_EVERY = 5  # steps
PATIENCE = 3  # evaluations without gain
MAX_GRAD_NORM = 1.0
AT_ONCE = 16  # rows whose loss is only watched

Item = dict[str, Any]


@dataclass(frozen=True)
class Shots:
    """Encoded rows of each task: those that are trained on, and those that say when to stop."""

    train: list[list[Item]]
    held_out: list[list[Item]]

    @property
    def all(self) -> list[list[Item]]:
        return [[*a, *b] for a, b in zip(self.train, self.held_out, strict=True)]


def identity(row: Mapping[str, Any]) -> str:
    """What makes a row the same example: everything that its prompt is made of."""
    return json.dumps([row.get(name) for name in ("system", "instruction", "input", "history")], ensure_ascii=False)


def draw_shots(
    tasks: Sequence[Task], encoder: TextEncoder, *, shots: int, seed: int, split: str, max_length: int | None
) -> Shots:
    """``shots`` training rows of each task, drawn by seed; never one that is scored in ``split``, by its prompt.

    Raises DataError where a task has no training row left.
    """
    scored = {identity(row) for task in tasks for row in task.rows(split)}
    train, held_out = [], []
    for task in tasks:
        rows = [row for row in task.rows("train") if identity(row) not in scored]
        if not rows:
            raise DataError(
                f"{task.name} has no training rows apart from those that are scored, and realigning needs some.",
                "Upload training rows, leave the task out, or set method.options.realign to false.",
            )
        order = np.random.default_rng([seed, task.index]).permutation(len(rows))[:shots]
        chosen = [rows[i] for i in order]
        assert not scored & {identity(row) for row in chosen}, "realigning would see rows that are scored"
        items = [as_item(encoder.encode(row, task.template, max_length), task.index) for row in chosen]
        kept = int(len(items) * HELD_OUT) or int(len(items) > 1)
        train.append(items[kept:])
        held_out.append(items[:kept])
    return Shots(train, held_out)


def answer_loss(model: PreTrainedModel, items: Sequence[Item], pad_id: int) -> Tensor:
    """Cross-entropy of the answer tokens: the mean of each task's, then over the tasks."""
    batch = {name: value.to(model.device) for name, value in Collator(pad_id)(items).items()}
    targets = batch["labels"][:, 1:]
    answers = targets != IGNORED
    columns = answers.any(0).nonzero()[:, 0]  # the head is computed where some row has an answer
    logits = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=columns, use_cache=False
    ).logits.float()
    losses = functional.cross_entropy(
        logits.flatten(0, 1), targets[:, columns].flatten(), ignore_index=IGNORED, reduction="none"
    ).view(len(targets), -1)
    tasks = batch["task_index"]
    per_task = [losses[tasks == task].sum() / answers[tasks == task].sum() for task in tasks.unique()]
    return torch.stack(per_task).mean()


def mean_loss(model: PreTrainedModel, items: Sequence[Sequence[Item]], pad_id: int) -> float:
    """The answer loss of every task's rows, read in small batches, averaged over the tasks."""
    with torch.no_grad():
        found = [_in_parts(model, rows, pad_id) for rows in items if rows]
    return float(torch.stack(found).mean())


def _in_parts(model: PreTrainedModel, rows: Sequence[Item], pad_id: int) -> Tensor:
    parts = [rows[i : i + AT_ONCE] for i in range(0, len(rows), AT_ONCE)]
    return torch.stack([answer_loss(model, part, pad_id) * len(part) for part in parts]).sum() / len(rows)


@dataclass(frozen=True)
class OnTop(Delta):
    """A low-rank update on top of another one, ``below``, without adding the matrices."""

    below: Delta | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.below(x) + super().__call__(x)


@dataclass(frozen=True)
class Recipe:
    """How realigning trains: ``form`` adapter (a fresh low-rank one on top) or whole (the dense updates)."""

    form: str
    rank: int = 8
    steps: int = 50
    batch_size: int = 4  # rows of each task
    learning_rate: float | None = None

    @property
    def rate(self) -> float:
        return LEARNING_RATE[self.form] if self.learning_rate is None else self.learning_rate


@dataclass(frozen=True)
class Realigned:
    """``before`` and ``after``: loss on the held-out shots (None without any); ``kept``: the step that was best."""

    deltas: dict[str, Delta]
    steps: int
    kept: int
    before: float | None
    after: float | None


def realign(
    candidate: Candidate,
    deltas: Deltas,
    shots: Shots,
    recipe: Recipe,
    *,
    frozen: frozenset[str],
    pad_id: int,
    seed: int,
    check: Callable[[], None] = lambda: None,
    tell: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> Realigned:
    """Fine-tune the updates on the shots; ``frozen`` paths (embeddings) stay as they are.

    The state that the held-out shots like best is kept, that before the first step included. ``check`` is called
    before each step and may raise; ``tell`` hears of steps and their losses.
    """
    fused = {path: delta.to(candidate.device) for path, delta in deltas.items()}
    learned = _start(candidate, fused, recipe, frozen, seed)
    parameters = [matrix for delta in learned.values() for matrix in _trained(delta)]
    if not parameters:  # nothing but embeddings was fused
        return Realigned(fused, 0, 0, None, None)
    optimiser = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=0.0)
    batches = _batches(shots.train, recipe.batch_size, seed)
    watched = any(shots.held_out)
    with torch.enable_grad(), candidate.using(fused | learned) as model:
        before = mean_loss(model, shots.held_out, pad_id) if watched else None
        best, kept, state = before, 0, [p.detach().clone() for p in parameters]
        step = 0
        for step in range(1, recipe.steps + 1):
            check()
            loss = _step(model, next(batches), pad_id, optimiser)
            if step % EVALUATE_EVERY and step < recipe.steps:
                continue
            values = {"loss": float(loss)}
            if watched:
                values["validation"] = mean_loss(model, shots.held_out, pad_id)
            tell(step, values)
            if not watched or values["validation"] < best:
                best, kept, state = values.get("validation"), step, [p.detach().clone() for p in parameters]
            elif step - kept >= PATIENCE * EVALUATE_EVERY:
                break
    with torch.no_grad():
        for parameter, value in zip(parameters, state, strict=True):
            parameter.copy_(value)
    return Realigned(fused | _result(learned) if kept else fused, step, kept, before, best)


def _step(model: PreTrainedModel, items: Sequence[Item], pad_id: int, optimiser: torch.optim.Optimizer) -> Tensor:
    """One step on these rows; returns the loss before it."""
    loss = answer_loss(model, items, pad_id)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], MAX_GRAD_NORM)
    optimiser.step()
    return loss.detach()


def _start(candidate: Candidate, fused: Deltas, recipe: Recipe, frozen: frozenset[str], seed: int) -> dict[str, Delta]:
    """What is trained at every path that is not frozen, equal to ``fused`` before the first step."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Delta] = {}
    for path, delta in fused.items():
        if path in frozen:
            continue
        if recipe.form == "whole":
            found[path] = Delta(delta.dense().float().clone().requires_grad_())
            continue
        outputs, inputs = delta.shape
        rank = min(recipe.rank, outputs, inputs)
        bound = inputs**-0.5
        down = (torch.rand(rank, inputs, generator=generator) * 2 - 1) * bound
        up = torch.zeros(outputs, rank, device=candidate.device).requires_grad_()
        found[path] = OnTop(up, down.to(candidate.device).requires_grad_(), below=delta)
    return found


def _trained(delta: Delta) -> list[Tensor]:
    return [delta.up] if delta.down is None else [delta.up, delta.down]


def _result(learned: Mapping[str, Delta]) -> dict[str, Delta]:
    """Plain updates: an adapter on factors stands beside them, one on a whole matrix is added to it."""
    found = {}
    for path, delta in learned.items():
        plain = Delta(delta.up.detach(), None if delta.down is None else delta.down.detach())
        found[path] = total([delta.below, plain]) if isinstance(delta, OnTop) else plain
    return found


def _batches(train: Sequence[Sequence[Item]], size: int, seed: int) -> Iterator[list[Item]]:
    """Endless batches with ``size`` rows of each task (fewer where it has fewer), every row once a pass."""
    random = np.random.default_rng(seed)
    queues: list[list[Item]] = [[] for _ in train]
    while True:
        batch: list[Item] = []
        for queue, items in zip(queues, train, strict=True):
            take = min(size, len(items))
            if len(queue) < take:
                queue += [items[i] for i in random.permutation(len(items))]
            batch += queue[:take]
            del queue[:take]
        yield batch
