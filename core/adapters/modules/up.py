"""Shared and unique up matrices, and the fold that turns the sum over experts into one product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from .base import UpModule

if TYPE_CHECKING:
    from ..cells import Site
    from ..words.up import LowRankUp


def scaled(hidden: Tensor, weights: Tensor, scaling: float) -> Tensor:
    """``hidden`` (..., experts or 1, rank) times the gates: (..., experts, rank).

    With a group axis, ``weights`` (..., groups, experts): each group weighs as many neighbouring ranks as any other.
    """
    weights = (weights * scaling).to(hidden.dtype)
    if weights.dim() < hidden.dim():
        return weights.unsqueeze(-1) * hidden
    return weights.repeat_interleave(hidden.shape[-1] // weights.shape[-2], -2).transpose(-1, -2) * hidden


class LowRankUpModule(UpModule):
    def __init__(self, word: LowRankUp, site: Site, *leading: int) -> None:
        super().__init__()
        self.site_experts = site.experts
        self.dropout = word.dropout
        self.hold("weight", torch.zeros(*leading, site.out_features, site.rank), word.trained)

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
        return weight.squeeze(0) if self.site_experts == 1 else weight.transpose(0, 1).flatten(1)

    def fold(self, hidden: Tensor, weights: Tensor | None, scaling: float) -> Tensor:
        if weights is None:
            hidden = (hidden * scaling).expand(*hidden.shape[:-2], self.site_experts, hidden.shape[-1])
            return hidden.flatten(-2)
        return scaled(hidden, weights, scaling).flatten(-2)

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
        return scaled(hidden, weights, scaling).sum(-2)

    def experts(self) -> Tensor:
        return self.weight.unsqueeze(0)
