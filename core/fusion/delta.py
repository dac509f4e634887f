"""Task vectors: what an adapter adds to each weight of its base.

``tau = theta - theta0`` of Task Arithmetic (Ilharco et al. 2023). An adapter's is kept as the two factors that it has,
so that weighted sums of adapters stay exact and small; a full fine-tune's, or a masked or trimmed one, is one matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Delta:
    """The update of one weight: ``up @ down``, or ``up`` itself where ``down`` is None.

    ``up`` is (outputs, rank) or the whole update (outputs, inputs); ``down`` is (rank, inputs). Of an embedding, the
    inputs are the tokens of the vocabulary.
    """

    up: Tensor
    down: Tensor | None = None

    @property
    def low_rank(self) -> bool:
        return self.down is not None

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.up.shape[0], (self.up if self.down is None else self.down).shape[1]

    @property
    def finite(self) -> bool:
        return all(bool(matrix.isfinite().all()) for matrix in (self.up, self.down) if matrix is not None)

    def dense(self) -> Tensor:
        """(outputs, inputs)."""
        return self.up if self.down is None else self.up @ self.down

    def scaled(self, factor: float | Tensor) -> Delta:
        return Delta(self.up * factor, self.down)

    def to(self, *args: object, **kwargs: object) -> Delta:
        """As ``Tensor.to`` does with both matrices."""
        return Delta(self.up.to(*args, **kwargs), None if self.down is None else self.down.to(*args, **kwargs))

    def __call__(self, x: Tensor) -> Tensor:
        """The update of ``x`` (..., inputs): (..., outputs), in the type of ``x``."""
        if self.down is not None:
            x = functional.linear(x, self.down.to(x.dtype))
        return functional.linear(x, self.up.to(x.dtype))


Deltas = Mapping[str, Delta]  # by the path of the projection below the base


@dataclass(frozen=True)
class TaskVector:
    """The deltas of one fine-tuned model, in float32; a projection that it does not touch is missing."""

    name: str  # of the run it came from
    deltas: dict[str, Delta]
    tasks: tuple[str, ...] = ()  # that it was trained on, as far as it says so


def total(deltas: Sequence[Delta]) -> Delta:
    """Their sum: factors side by side where all have them (exact; the ranks add up), else one matrix."""
    if all(delta.low_rank for delta in deltas):
        return Delta(torch.cat([delta.up for delta in deltas], 1), torch.cat([delta.down for delta in deltas]))
    return Delta(torch.stack([delta.dense() for delta in deltas]).sum(0))


def paths_of(vectors: Sequence[TaskVector]) -> list[str]:
    """Every projection that any of the vectors touches, in the order of the first that does."""
    return list(dict.fromkeys(path for vector in vectors for path in vector.deltas))
