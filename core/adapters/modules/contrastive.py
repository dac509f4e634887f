"""The contrastive loss between experts' outputs (MoELoRA, Luo et al., arXiv 2402.12851; the procedure is ours)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..tape import PAD, Addressing, Routing
from .base import wide
from .up import UniqueUpModule

if TYPE_CHECKING:
    from ..cells import Site
    from ..words.contrastive import ContrastiveUp


class ContrastiveUpModule(UniqueUpModule):
    """``weight`` (experts, outputs, rank)."""

    def __init__(self, word: ContrastiveUp, site: Site) -> None:
        super().__init__(word, site)
        self.loss_weight, self.temperature, self.samples = word.weight, word.temperature, word.samples
        self.normalise, self.positives = word.normalise, word.positives

    def losses(self, hidden: Tensor, routing: Routing, addressing: Addressing) -> dict[str, Tensor]:
        """The loss of this projection: between B_e A_e x of drawn tokens, without gate and scale.

        ``hidden`` (batch, tokens, experts, rank) is that of the pass, so dropout on what enters it stays.
        """
        if self.loss_weight == 0 or self.site_experts == 1:
            return {}
        routed = routing.weights.detach() != 0
        if addressing.token_role is not None and routed.shape[:-1] == addressing.token_role.shape:
            routed = routed & (addressing.token_role != PAD).to(routed.device).unsqueeze(-1)
        routed = routed.flatten(0, -2)
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = wide(hidden.expand(*hidden.shape[:-2], self.site_experts, hidden.shape[-1]).flatten(0, -3))
            drawn, counted = draw(routed, self.samples)
            chosen = hidden.transpose(0, 1).gather(1, drawn.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
            outputs = torch.bmm(chosen, wide(self.weight).transpose(1, 2))
            value = contrastive_loss(outputs, counted, self.temperature, self.normalise, self.positives)
        return {"contrastive": self.loss_weight * value}


def draw(routed: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """At most ``samples`` tokens of each expert, uniformly without replacement.

    ``routed`` (tokens, experts) is true where a token went to an expert. Returns the tokens (experts, samples), those
    that count first, and which ones count.
    """
    lots = torch.rand(routed.shape, device=routed.device) + 1
    found = (lots * routed).t().topk(min(samples, routed.shape[0]), -1)
    return found.indices, found.values > 0


def contrastive_loss(
    outputs: Tensor,
    counted: Tensor,
    temperature: float = 0.1,
    normalise: bool = True,
    positives: Literal["one", "all"] = "one",
) -> Tensor:
    """The mean over anchors of ``-log(exp(q k+ / t) / (exp(q k+ / t) + sum_k- exp(q k- / t)))``.

    ``outputs`` (experts, samples, width), of which those ``counted`` (experts, samples) are there, the first ones of
    each row. Every output is an anchor; its positive is another output of its expert, drawn (or all of them, one loss
    each, averaged); its negatives are all outputs of the other experts. Experts with fewer than two outputs are left
    out. No anchor: 0.
    """
    experts, samples = counted.shape
    counted = counted & (counted.sum(-1, keepdim=True) > 1)
    if normalise:
        outputs = functional.normalize(outputs, dim=-1, eps=1e-6)
    keys, here = outputs.flatten(0, 1), counted.flatten()
    alike = keys @ keys.t() / temperature
    owner = torch.arange(experts, device=keys.device).repeat_interleave(samples)
    own = owner.unsqueeze(1) == owner
    never = torch.finfo(alike.dtype).min / 4  # finite: rows without negatives have gradients too
    rest = alike.masked_fill(own | ~here, never).logsumexp(-1, keepdim=True)
    share = _positives(counted, own, here, positives).to(alike.dtype)
    losses = (share * (torch.logaddexp(alike, rest) - alike)).sum(-1)
    return losses.sum() / here.sum().clamp_min(1)


def _positives(counted: Tensor, own: Tensor, here: Tensor, positives: str) -> Tensor:
    """How much each key counts as the positive of each anchor, (keys, keys); rows of anchors sum to one."""
    samples = counted.shape[1]
    if positives == "all":
        other = own & here & here.unsqueeze(1) & ~torch.eye(len(here), dtype=torch.bool, device=here.device)
        return other / other.sum(-1, keepdim=True).clamp_min(1)
    count = counted.sum(-1, keepdim=True)
    step = 1 + (torch.rand(counted.shape, device=counted.device) * (count - 1)).long().clamp_min(0)
    place = (torch.arange(samples, device=counted.device) + step) % count.clamp_min(1)
    first = torch.arange(len(counted), device=counted.device).unsqueeze(1) * samples
    return functional.one_hot((first + place).flatten(), len(here)) * here.unsqueeze(1)
