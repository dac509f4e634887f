"""Weighted sums of task vectors whose weights are learned: laid out once so that each is one operation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.fusion.delta import Delta, TaskVector, paths_of

Granularity = Literal["task", "block", "module"]
NUMBERED = re.compile(r"^(.*?\.\d+)(?:\.|$)")


@dataclass(frozen=True)
class Part:
    """The updates of one projection by all runs that have one.

    ``runs`` (n,) are their numbers. Factors: ``up`` (outputs, ranks together), ``down`` (ranks together, inputs) and
    ``owner`` (ranks together,), the place in ``runs`` that a rank belongs to. Matrices: ``up`` (n, outputs, inputs).
    """

    runs: Tensor
    up: Tensor
    down: Tensor | None = None
    owner: Tensor | None = None

    def weighted(self, weights: Tensor) -> Delta:
        """``sum_k w_k tau_k``, with ``weights`` (n,); factors side by side where there are factors (exact)."""
        if self.down is None:
            return Delta(torch.tensordot(weights, self.up, 1))
        return Delta(self.up * weights[self.owner], self.down)

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[-2], (self.up if self.down is None else self.down).shape[-1]


def parts_of(vectors: Sequence[TaskVector], device: str | torch.device) -> dict[str, Part]:
    """By path, in float32 on the device."""
    return {path: _part(vectors, path, device) for path in paths_of(vectors)}


def _part(vectors: Sequence[TaskVector], path: str, device: str | torch.device) -> Part:
    numbers = [number for number, vector in enumerate(vectors) if path in vector.deltas]
    deltas = [vectors[number].deltas[path].to(device, torch.float32) for number in numbers]
    runs = torch.tensor(numbers, device=device)
    if not all(delta.low_rank for delta in deltas):
        return Part(runs, torch.stack([delta.dense() for delta in deltas]))
    ranks = torch.tensor([delta.up.shape[1] for delta in deltas])
    owner = torch.arange(len(deltas)).repeat_interleave(ranks).to(device)
    up, down = torch.cat([delta.up for delta in deltas], 1), torch.cat([delta.down for delta in deltas])
    return Part(runs, up, down, owner)


def columns_of(paths: Sequence[str], granularity: Granularity) -> dict[str, str]:
    """What a projection shares its coefficients with: all, its transformer block, or nothing but itself."""
    if granularity == "task":
        return dict.fromkeys(paths, "all")
    if granularity == "module":
        return {path: path for path in paths}
    return {path: match[1] if (match := NUMBERED.match(path)) else path for path in paths}


class Coefficients:
    """``values`` (runs, columns), float32: the weight of each run, for all projections of a column alike.

    ``clamp``: ``project`` puts values back into [0, 1] after each step; ``forward`` uses them clamped, so that those
    outside get no gradient; ``none`` leaves them free.
    """

    def __init__(
        self, parts: dict[str, Part], names: Sequence[str], granularity: Granularity, start: float, clamp: str
    ) -> None:
        device = next(iter(parts.values())).up.device
        column = columns_of(list(parts), granularity)
        self.names, self.labels, self.start, self.clamp = (
            list(names),
            list(dict.fromkeys(column.values())),
            start,
            clamp,
        )
        self.column = {path: self.labels.index(label) for path, label in column.items()}
        self.values = torch.full((len(names), len(self.labels)), start, device=device, requires_grad=True)
        self.there = torch.zeros(self.values.shape, dtype=torch.bool, device=device)  # whether it weighs anything
        for path, part in parts.items():
            self.there[part.runs, self.column[path]] = True

    def used(self) -> Tensor:
        return self.values.clamp(0, 1) if self.clamp == "forward" else self.values

    def of(self, path: str, part: Part) -> Tensor:
        """(n,) of the runs that have the projection."""
        return self.used()[part.runs, self.column[path]]

    @torch.no_grad()
    def project(self) -> None:
        if self.clamp == "project":
            self.values.clamp_(0, 1)

    @torch.no_grad()
    def reset(self) -> None:
        self.values.fill_(self.start)

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """``coefficient/<run>``, the mean over its columns, and the share of coefficients that are at a bound."""
        used, there = self.used(), self.there
        means = (used * there).sum(1) / there.sum(1).clamp(min=1)
        bound = 0.0 if self.clamp == "none" else ((self.values <= 0) | (self.values >= 1))[there].float().mean()
        *means, bound = [*means.tolist(), float(bound)]
        return {f"coefficient/{name}": mean for name, mean in zip(self.names, means, strict=True)} | {
            "coefficients_at_bound": bound
        }

    def rows(self) -> list[list[str | float | None]]:
        """A row for each run: its name and its coefficients, None where it has no update."""
        table, there = self.used().tolist(), self.there.tolist()
        return [
            [name, *(value if is_there else None for value, is_there in zip(*row, strict=True))]
            for name, *row in zip(self.names, table, there, strict=True)
        ]
