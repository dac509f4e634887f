"""Shared and unique down matrices."""

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
    from ..words.down import LowRankDown


class LowRankDownModule(DownModule):
    def __init__(self, word: LowRankDown, site: Site, *leading: int) -> None:
        super().__init__()
        self.rank = site.rank
        self.weight_dropout = word.dropout if word.dropout_on == "weight" else 0.0
        self.input_dropout = word.dropout if word.dropout_on == "input" else 0.0
        self.hold("weight", torch.empty(*leading, site.rank, site.in_features), word.trained)
        if word.init == "gaussian":
            nn.init.normal_(self.weight, std=word.std or 1 / math.sqrt(3 * site.in_features))
        else:  # each row uniform within 1/sqrt(inputs), as kaiming_uniform_(a=sqrt(5)) gives a single matrix
            bound = 1 / math.sqrt(site.in_features)
            nn.init.uniform_(self.weight, -bound, bound)

    def kept(self) -> Tensor:
        """The weight with this forward's mask on its entries."""
        if self.training and self.weight_dropout > 0:
            return functional.dropout(self.weight, self.weight_dropout, True)
        return self.weight


class SharedDownModule(LowRankDownModule):
    """``weight`` (rank, inputs)."""

    def __init__(self, word: LowRankDown, site: Site) -> None:
        super().__init__(word, site)

    def matrix(self) -> Tensor:
        return self.kept()

    def hidden(self, product: Tensor, addressing: Addressing) -> Tensor:
        return product.unsqueeze(-2)

    def experts(self, task: int | None = None) -> Tensor:
        return self.weight.unsqueeze(0)


class UniqueDownModule(LowRankDownModule):
    """``weight`` (experts, rank, inputs)."""

    def __init__(self, word: LowRankDown, site: Site) -> None:
        super().__init__(word, site, site.experts)

    def matrix(self) -> Tensor:
        return self.kept().flatten(0, 1)

    def hidden(self, product: Tensor, addressing: Addressing) -> Tensor:
        return product.unflatten(-1, (-1, self.rank))

    def experts(self, task: int | None = None) -> Tensor:
        return self.weight


class IdentityDownModule(DownModule):
    """Holds nothing."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.inputs = site.in_features

    def matrix(self) -> None:
        return None

    def hidden(self, product: Tensor, addressing: Addressing) -> Tensor:
        return product.unsqueeze(-2)

    def experts(self, task: int | None = None) -> Tensor:
        return torch.eye(self.inputs).unsqueeze(0)
