"""A shared subspace of the input, and each expert's coordinates in it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import DownModule

if TYPE_CHECKING:
    from ..cells import Site
    from ..tape import Addressing
    from ..words.subspace import SubspaceDown


class SubspaceDownModule(DownModule):
    """``shared`` (size, inputs) and ``own`` (experts, rank, size); an expert's down matrix is ``own[e] @ shared``.

    At the start each product has the rows' norms of a Kaiming-uniform draw, whatever ``beta`` is (MALoRA).
    """

    def __init__(self, word: SubspaceDown, site: Site) -> None:
        super().__init__()
        self.rank, self.input_dropout = site.rank, word.dropout
        shared, own = draw(site.experts, site.rank, word.size(site), site.in_features, word.beta)
        self.hold("shared", shared, word.trained)
        self.own = nn.Parameter(own)

    def matrix(self) -> Tensor:
        return self.shared

    def hidden(self, product: Tensor, addressing: Addressing) -> Tensor:
        return functional.linear(product, self.own.flatten(0, 1)).unflatten(-1, (-1, self.rank))

    def experts(self, task: int | None = None) -> Tensor:
        return self.own @ self.shared


def draw(experts: int, rank: int, size: int, inputs: int, beta: float) -> tuple[Tensor, Tensor]:
    """The start of both matrices from one draw ``K`` (size, inputs) for each expert, ``K = U diag(s) V``.

    ``shared`` is ``beta`` times ``V`` of the first draw alone, ``own`` the first ``rank`` rows of each ``U diag(s)``
    over ``beta``.
    """
    bound = 1 / math.sqrt(inputs)
    draws = (torch.empty(size, inputs).uniform_(-bound, bound).double() for _ in range(experts))
    left, sizes, right = torch.linalg.svd(next(draws), full_matrices=False)
    own = [(left * sizes)[:rank]]
    for drawn in draws:  # of these no V is needed: U diag(s) is that of the triangle, which is small
        left, sizes, _ = torch.linalg.svd(torch.linalg.qr(drawn.t(), mode="r").R.t())
        own.append((left * sizes)[:rank])
    like = torch.get_default_dtype()
    return (beta * right).to(like), (torch.stack(own) / beta).to(like)
