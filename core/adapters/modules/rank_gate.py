"""A router for each block of ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..tape import Addressing, Routing, Slot
from .base import GateModule
from .gate import route

if TYPE_CHECKING:
    from ..cells import Site
    from ..words.rank_gate import RankGate


class RankGateModule(GateModule):
    """``weight`` (groups, experts, inputs); of several groups, routing is (batch, tokens, groups, experts)."""

    def __init__(self, word: RankGate, site: Site) -> None:
        super().__init__()
        self.selected, self.renormalise = word.selected(site.experts), word.renormalise
        self.weight = nn.Parameter(torch.empty(word.groups(site), site.experts, site.in_features))
        nn.init.normal_(self.weight, std=word.std)

    def matrix(self) -> Tensor:
        return self.weight.flatten(0, 1)

    def forward(self, logits: Tensor, addressing: Addressing, slot: Slot, down: Tensor | None) -> Routing:
        if len(self.weight) > 1:
            logits = logits.unflatten(-1, self.weight.shape[:2])
        return route(logits, self.selected, self.renormalise)
