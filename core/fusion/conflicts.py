"""How much task vectors are in each other's way, before they are fused: angles, opposite signs, sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.fusion.delta import Delta, TaskVector, paths_of
from core.fusion.read import Source, read_vectors
from core.schema import ModelSpec

ENTRIES = 1 << 22  # of a projection that signs are compared in


@dataclass(frozen=True)
class Conflicts:
    """Of K task vectors at one projection, or at all of them together.

    ``inner`` (K, K): the inner products, with the squared norms on its diagonal. ``opposed`` and ``shared`` (K, K):
    entries whose signs differ, and entries that are non-zero in both.
    """

    inner: Tensor
    opposed: Tensor
    shared: Tensor

    def __add__(self, other: Conflicts) -> Conflicts:
        return Conflicts(self.inner + other.inner, self.opposed + other.opposed, self.shared + other.shared)

    def told(self) -> dict[str, Any]:
        """``cosine`` and ``sign`` (K x K), ``norm`` (K); None where a vector is zero or nothing is shared."""
        norms = self.inner.diagonal().sqrt()
        cosine = self.inner / (norms[:, None] * norms[None, :])
        return {
            "cosine": _plain(cosine.clamp(-1, 1)),
            "sign": _plain(self.opposed / self.shared),
            "norm": norms.tolist(),
        }


def measure(sources: list[dict[str, Any]], model: dict[str, Any]) -> dict[str, Any]:
    """The conflicts of finished runs, for a process without torch: plain data in and out.

    ``sources``: for each run ``name``, ``adapter``, and ``task`` and ``routing`` where they count, as ``Source`` has
    them. Returns ``runs``, ``all`` and a list ``projections`` with ``path`` beside what ``Conflicts.told`` says.
    """
    return told(read_vectors([_source(source) for source in sources], ModelSpec.parse(model, "model")))


@torch.no_grad()
def told(vectors: Sequence[TaskVector]) -> dict[str, Any]:
    """As ``measure``, of vectors that are read already."""
    parts = {path: conflicts(vectors, path) for path in paths_of(vectors)}
    together = sum(list(parts.values())[1:], next(iter(parts.values())))
    return {
        "runs": [vector.name for vector in vectors],
        "all": together.told(),
        "projections": [{"path": path, **part.told()} for path, part in parts.items()],
    }


def conflicts(vectors: Sequence[TaskVector], path: str, entries: int = ENTRIES) -> Conflicts:
    """At one projection. A vector that does not touch it is zero there.

    Inner products are exact, from the factors where there are some. Signs need the whole update: of a projection with
    more than ``entries`` entries, evenly spaced rows stand for all of them.
    """
    deltas = [vector.deltas.get(path) for vector in vectors]
    inner = torch.zeros(len(deltas), len(deltas), dtype=torch.float64)
    for i, one in enumerate(deltas):
        for j, other in enumerate(deltas[: i + 1]):
            if one is not None and other is not None:
                inner[i, j] = inner[j, i] = product(one, other)
    rows, columns = next(delta.shape for delta in deltas if delta is not None)
    chosen = torch.linspace(0, rows - 1, min(rows, max(1, entries // columns))).round().long()
    signs = torch.zeros(len(deltas), len(chosen) * columns)
    for index, delta in enumerate(deltas):
        if delta is not None:
            signs[index] = Delta(delta.up[chosen], delta.down).dense().sign().flatten()
    shared = signs.abs() @ signs.abs().T
    opposed = (shared - signs @ signs.T) / 2
    scale = rows / len(chosen)  # so that sampled projections weigh as much as others in sums
    return Conflicts(inner, opposed.double() * scale, shared.double() * scale)


def product(one: Delta, other: Delta) -> float:
    """``sum_ij one_ij other_ij``, through ``trace((B1 A1)^T B2 A2) = sum((B1^T B2) * (A1 A2^T))`` where both are low
    rank."""
    if one.down is None and other.down is None:
        return (one.up.double() * other.up.double()).sum().item()
    if other.down is None:
        one, other = other, one
    up, down = other.up.double(), other.down.double()
    if one.down is None:
        return ((one.up.double() @ down.T) * up).sum().item()
    return ((one.up.double().T @ up) * (one.down.double() @ down.T)).sum().item()


def _plain(matrix: Tensor) -> list[list[float | None]]:
    return [[value if value == value else None for value in row] for row in matrix.tolist()]  # NaN is no JSON


def _source(given: dict[str, Any]) -> Source:
    routing = given.get("routing")
    return Source(given["name"], Path(given["adapter"]), given.get("task"), Path(routing) if routing else None)
