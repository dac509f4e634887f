"""Shared and unique up matrices, and the fold that turns the sum over experts into one product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import UpModule

if TYPE_CHECKING:
    from ..cells import Site
    from ..words.up import LowRankUp


class LowRankUpModule(UpModule):
    def __init__(self, word: LowRankUp, site: Site, *leading: int) -> None:
        super().__init__()
        self.site_experts = site.experts
        self.dropout = word.dropout
        self.weight = nn.Parameter(torch.zeros(*leading, site.out_features, site.rank))

    def kept(self) -> Tensor:
        if self.training and self.dropout > 0:
            return functional.dropout(self.weight, self.dropout, True)
        return self.weight


class UniqueUpModule(LowRankUpModule):
    """``weight`` (experts, outputs, rank)."""

    def __init__(self, word: LowRankUp, site: Site) -> None:
        super().__init__(word, site, site.experts)

    def matrix(self) -> Tensor:
        weight = self.kept()
        return weight[0] if self.site_experts == 1 else weight.transpose(0, 1).flatten(1)

    def fold(self, hidden: Tensor, weights: Tensor | None, scaling: float) -> Tensor:
        if weights is None:
            hidden = (hidden * scaling).expand(*hidden.shape[:-2], self.site_experts, hidden.shape[-1])
            return hidden.flatten(-2)
        return ((weights * scaling).to(hidden.dtype).unsqueeze(-1) * hidden).flatten(-2)

    def experts(self) -> Tensor:
        return self.weight


class SharedUpModule(LowRankUpModule):
    """``weight`` (outputs, rank): the gates act on the hidden states, which are summed before the product."""

    def __init__(self, word: LowRankUp, site: Site) -> None:
        super().__init__(word, site)

    def matrix(self) -> Tensor:
        return self.kept()

    def fold(self, hidden: Tensor, weights: Tensor | None, scaling: float) -> Tensor:
        if weights is None:
            return (hidden * scaling).sum(-2)
        return ((weights * scaling).to(hidden.dtype).unsqueeze(-1) * hidden).sum(-2)

    def experts(self) -> Tensor:
        return self.weight.unsqueeze(0)
