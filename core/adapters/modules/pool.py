"""Pools of rank-one factors, folded: the gate mixes down factors into one hidden value for each up factor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...errors import ConfigurationError
from ..words.pool import factors
from .base import DownModule, UpModule

if TYPE_CHECKING:
    from ..cells import Site
    from ..tape import Addressing
    from ..words.pool import PoolDown, PoolUp


class PoolDownModule(DownModule):
    """``weight`` (v1, inputs): row i is the factor a_i."""

    def __init__(self, word: PoolDown, site: Site) -> None:
        super().__init__()
        self.input_dropout = word.dropout
        self.other = factors(site.up, site)
        self.chosen = site.gate.pairs_factors and site.experts > 1
        self.weight = nn.Parameter(torch.empty(factors(word, site), site.in_features))
        bound = 1 / math.sqrt(site.in_features)
        nn.init.uniform_(self.weight, -bound, bound)

    def matrix(self) -> Tensor:
        return self.weight

    def hidden(self, product: Tensor, addressing: Addressing) -> Tensor:
        return product.unsqueeze(-1)  # (..., v1, 1)

    def experts(self, task: int | None = None) -> Tensor:
        """Expert e = i * v2 + j has the down factor i."""
        _refuse_chosen(self.chosen)
        return self.weight.repeat_interleave(self.other, 0).unsqueeze(1)


class PoolUpModule(UpModule):
    """``weight`` (outputs, v2): column j is the factor b_j.

    The weights of the pairs are (..., v1 * v2), row-major; a gate that pairs factors itself gives (batch, 1, v1, v2).
    """

    def __init__(self, word: PoolUp, site: Site) -> None:
        super().__init__()
        self.shape = (factors(site.down, site), factors(word, site))
        self.pairs_factors = site.gate.pairs_factors
        self.chosen = self.pairs_factors and site.experts > 1
        self.weight = nn.Parameter(torch.zeros(site.out_features, self.shape[1]))

    def matrix(self) -> Tensor:
        return self.weight

    def fold(self, hidden: Tensor, weights: Tensor | None, scaling: float) -> Tensor:
        if weights is None:
            return (hidden.sum(-2) * scaling).expand(*hidden.shape[:-2], self.shape[1])
        weights = (weights * scaling).to(hidden.dtype)
        if self.pairs_factors:
            return torch.matmul(hidden.squeeze(-1), weights.squeeze(1))
        return (weights.unflatten(-1, self.shape) * hidden).sum(-2)

    def experts(self) -> Tensor:
        """Expert e = i * v2 + j has the up factor j."""
        _refuse_chosen(self.chosen)
        return self.weight.t().repeat(self.shape[0], 1).unsqueeze(-1)


def _refuse_chosen(chosen: bool) -> None:
    if chosen:
        raise ConfigurationError(
            "This adapter pairs other factors for every sample, so it has no experts with a weight each.",
            "Keep it as an adapter.",
        )
