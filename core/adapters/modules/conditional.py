"""Independent and conditional selection of factors (MixLoRA, Shen et al., ACL 2024, arXiv 2402.15896)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import ConfigurationError
from ..tape import Addressing, Routing, Slot
from .base import GateModule, wide
from .gate import over_prompt

if TYPE_CHECKING:
    from ..cells import Site
    from ..words.conditional import ConditionalGate


class ConditionalGateModule(GateModule):
    """``weight`` (experts or 2 * experts, inputs): the routers of down and up factors; ``pairing`` (rank, experts,
    inputs): how the down factor in each place speaks for up factors.

    Weights are 1/rank at each picked factor, for down and for up; what folds is the matrix (batch, 1, experts,
    experts) that says which down factor meets which up factor.
    """

    def __init__(self, word: ConditionalGate, site: Site) -> None:
        super().__init__()
        self.mode, self.hard, self.condition = word.mode, word.gate == "hard", word.condition
        self.over_all, self.noise = word.pool_over == "all", word.noise
        self.experts, self.rank = site.experts, site.rank
        if word.routers():
            bound = 1 / math.sqrt(site.in_features)
            weight = torch.empty(word.routers() * site.experts, site.in_features)
            self.weight = nn.Parameter(weight.uniform_(-bound, bound))
        if word.mode == "conditional":
            bound = 1 / math.sqrt(site.rank * site.in_features)
            self.pairing = nn.Parameter(torch.empty(site.rank, site.experts, site.in_features).uniform_(-bound, bound))

    def matrix(self) -> Tensor | None:
        return getattr(self, "weight", None)

    def forward(self, logits: Tensor | None, addressing: Addressing, slot: Slot, down: Tensor) -> Routing:
        if slot.decision is not None and not self.over_all:
            return slot.decision
        with torch.autocast(down.device.type, enabled=False):
            if self.mode == "random":
                return self._routing(*self._at_random(addressing, down))
            pooled = self._pooled(logits, addressing)
            if self.hard:
                pooled, down = pooled.detach(), down.detach()
            return self._routing(*self._picked(pooled, down))

    def _pooled(self, logits: Tensor, addressing: Addressing) -> Tensor:
        """(batch, routers * experts): the mean of the logits is the logit of the mean."""
        pooled = wide(logits).mean(1) if self.over_all and logits.dim() == 3 else over_prompt(logits, addressing)[:, 0]
        if self.training and self.noise > 0:
            pooled = pooled + self.noise * torch.randn_like(pooled)
        return pooled

    def _picked(self, pooled: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores (batch, experts) that sum to one, and indices (batch, rank) in falling order, for down and for up."""
        first = pooled[:, : self.experts].softmax(-1)
        downs = pooled[:, : self.experts].topk(self.rank, -1).indices
        if self.mode == "shared":
            return first, downs, first, downs
        second = pooled[:, self.experts :].softmax(-1)
        if self.mode == "conditional":
            second = second + self.condition * self.conditional(down, downs)[1]
        ups = second.topk(self.rank, -1).indices
        return first, downs, second / (1 + self.condition * (self.mode == "conditional")), ups

    def conditional(self, down: Tensor, downs: Tensor) -> tuple[Tensor, Tensor]:
        """The sum c (batch, experts) of what the picked down factors say, and its softmax.

        Every down factor is asked in every place at once: the table does not depend on the samples.
        """
        pairing = self.pairing.detach() if self.hard else self.pairing
        said = torch.einsum("ed,rfd->ref", wide(down), wide(pairing)).softmax(-1)
        c = said[torch.arange(self.rank, device=downs.device), downs].sum(1)
        return c, c.softmax(-1)

    def _at_random(self, addressing: Addressing, down: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if addressing.rows is None and addressing.shape is None:
            raise ConfigurationError(
                "A gate that picks at random cannot tell how many samples there are.", "Pass input_ids by name."
            )
        batch = addressing.shape[0] if addressing.rows is None else len(addressing.rows)
        even = torch.full((batch, self.experts), 1 / self.experts, device=down.device)
        downs, ups = (torch.rand_like(even).topk(self.rank, -1).indices for _ in range(2))
        return even, downs, even, ups

    def _routing(self, first: Tensor, downs: Tensor, second: Tensor, ups: Tensor) -> Routing:
        sides = []
        for scores, indices in ((first, downs), (second, ups)):
            places = functional.one_hot(indices, self.experts).to(scores.dtype)  # (batch, rank, experts)
            through = 1.0
            if not self.hard:  # one in the forward pass, the score's gradient in the backward pass
                score = scores.gather(-1, indices)
                through = (1 + (score - score.detach())).unsqueeze(-1)
            sides.append((scores, places, places * through))
        probs = torch.stack([scores for scores, _, _ in sides], 1).unsqueeze(1)
        weights = torch.stack([places.sum(1) / self.rank for _, places, _ in sides], 1).unsqueeze(1)
        meeting = torch.einsum("bri,brj->bij", sides[0][2], sides[1][2]).unsqueeze(1)
        return Routing(probs, weights, meeting)
