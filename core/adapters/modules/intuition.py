"""The tensors of the intuition gate (T-REX / Intuition-MoR1E, arXiv 2404.08985, as its released code computes)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import ConfigurationError
from ..tape import Addressing, Routing, Slot
from .base import GateModule, wide

if TYPE_CHECKING:
    from ..cells import Site
    from ..words.intuition import IntuitionGate


class IntuitionGateModule(GateModule):
    """``weight`` (experts, inputs), the router; ``mix`` and ``gain`` (1,), the scalars; ``mapper`` (experts, clusters)
    where these differ. ``centroids`` (clusters, width), untrained, stand at the model's first such gate alone.

    The two scalars stay in float32, since an update of 1e-3 moves their sigmoids by 2.5 points, and so do the
    centroids, which another rounding would make other ones.
    """

    def __init__(self, word: IntuitionGate, site: Site) -> None:
        super().__init__()
        self.token_scale = float(site.experts if word.token_scale is None else word.token_scale)
        self.prompt_scale, self.sharpness, self.guided = word.prompt_scale, word.sharpness, word.intuition
        self.experts, clusters = site.experts, word.centroids(site.experts)
        if word.router:
            self.weight = nn.Parameter(torch.zeros(site.experts, site.in_features))
            if word.init == "normal":
                nn.init.normal_(self.weight, std=0.02)
        if word.maps(site.experts):
            self.mapper = nn.Parameter(torch.empty(site.experts, clusters))
            nn.init.kaiming_uniform_(self.mapper, a=math.sqrt(5))
        self.mix, self.gain = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        if self.guided and site.leads:
            if word.width is None:
                raise ConfigurationError(
                    "An intuition gate does not say how wide the embeddings of prompts are.",
                    "Put it on a model with core.adapters.attach.attach, which fills this in, or give its width.",
                )
            directions = torch.randn(clusters, word.width)
            self.register_buffer("centroids", nn.functional.normalize(directions, dim=-1))

    def _apply(self, fn: Any, recurse: bool = True) -> IntuitionGateModule:
        super()._apply(fn, recurse)
        for kept in (self.mix, self.gain):
            kept.data = wide(kept.data)
        if "centroids" in self._buffers:
            self.centroids = wide(self.centroids)
        return self

    def matrix(self) -> Tensor | None:
        return getattr(self, "weight", None)

    def shares(self) -> tuple[Tensor, Tensor]:
        """The router's share against the intuition, and the factor on the whole update; both (1,)."""
        return (self.sharpness * wide(self.mix)).sigmoid(), (self.sharpness * wide(self.gain)).sigmoid()

    def forward(self, logits: Tensor | None, addressing: Addressing, slot: Slot, down: Tensor | None) -> Routing:
        share, factor = self.shares()
        probs, weights = None, 0.0
        if logits is not None:
            probs = wide(logits).softmax(-1)
            weights = self.token_scale * share * probs
        if self.guided:
            weights = weights + self.prompt_scale * (1 - share) * self._similarity(logits, slot)
        if probs is None:
            probs = weights.softmax(-1)  # nothing was drawn from them: they tell which experts stand out
        return Routing(probs, factor * weights)

    def _similarity(self, logits: Tensor | None, slot: Slot) -> Tensor:
        """(batch, 1, experts), without gradient to the embedding."""
        if slot.prior is None:
            raise ConfigurationError(
                "An intuition gate was not told what the prompts are.",
                "Call the model itself, which embeds them, or pass side_inputs={'intuition': ...}.",
            )
        if logits is not None and logits.dim() != 3:
            raise ConfigurationError(
                f"An intuition gate needs (batch, tokens, features), but {slot.site.name} sees {logits.dim()} axes.",
                "Use a token gate for this projection.",
            )
        similarity = wide(slot.prior.detach())
        if hasattr(self, "mapper"):
            similarity = similarity @ wide(self.mapper).t()
        return similarity.unsqueeze(1)
