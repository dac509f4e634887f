"""A router per block of the base, and the gates of the block's other projections, which follow it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...errors import ConfigurationError
from ..tape import PROMPT, Addressing, Routing, Slot
from .base import GateModule
from .gate import over_prompt

if TYPE_CHECKING:
    from ..cells import Site
    from ..words.label import LabelGate


class LabelGateModule(GateModule):
    """``weight`` (experts, inputs) and ``bias`` (experts,), on the input of the block's first adapted projection.

    MoA (arXiv 2403.03432), with the norm before the router and sequence-level decisions from the prompt alone.
    """

    def __init__(self, word: LabelGate, site: Site) -> None:
        super().__init__()
        self.decide, self.pool, self.detached = word.decide, word.pool, word.detach
        self.weight = nn.Parameter(torch.empty(site.experts, site.in_features))
        self.bias = nn.Parameter(torch.zeros(site.experts))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def matrix(self) -> Tensor:
        return self.weight

    def forward(self, logits: Tensor, addressing: Addressing, slot: Slot, down: Tensor | None) -> Routing:
        if slot.decision is not None:
            return slot.decision
        pooled = over_prompt(logits, addressing) if self.pool == "mean" else _last(logits, addressing)
        probs = (pooled + self.bias.float()).softmax(-1)
        if self.decide == "soft":
            return Routing(probs, probs)
        if self.training or self.decide == "label":
            if addressing.task_index is None:
                raise ConfigurationError(
                    "This adapter has an expert for each task, but the batch does not say which task a sample is of.",
                    "Pass task_index, one task number for each row, or let the routers decide (per_layer or vote).",
                )
            chosen = addressing.task_index.unsqueeze(1)
        else:
            chosen = probs.argmax(-1)
        experts = torch.arange(probs.shape[-1], device=probs.device)
        return Routing(probs, (experts == chosen.unsqueeze(-1)).to(probs.dtype))  # one_hot would look at the numbers


class FollowingGateModule(GateModule):
    """Repeats what the block's router decided in the same pass."""

    def forward(self, logits: None, addressing: Addressing, slot: Slot, down: Tensor | None) -> Routing:
        routing = slot.page.routing
        if routing is None:
            raise ConfigurationError(
                f"The router at {slot.site.name} did not run before the projections that follow it.",
                "Give such projections a cell of their own, so that they have their own router.",
            )
        return routing


def _last(logits: Tensor, addressing: Addressing) -> Tensor:
    """The logits of each sample's last prompt token: (batch, tokens, n) to (batch, 1, n) in float32."""
    over_prompt(logits[..., :0], addressing)  # the same refusals
    if addressing.token_role is None:
        return logits[:, -1:].float()
    prompt = (addressing.token_role == PROMPT).to(torch.int64)
    places = torch.arange(1, prompt.shape[1] + 1, device=prompt.device)
    last = (prompt * places).argmax(-1)
    return logits[torch.arange(len(last), device=last.device), last].unsqueeze(1).float()
