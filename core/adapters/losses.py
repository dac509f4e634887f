"""Auxiliary losses on what the gates decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .tape import RoutingTape, Slot


def balance_loss(probs: Tensor, weights: Tensor, keep: Tensor | None = None) -> Tensor:
    """``E * sum_e f_e P_e`` for each of several sites: 1.0 when balanced, E/k when k experts take everything.

    ``f_e`` is the share of (decision, selected slot) pairs that went to expert e, without gradient; ``P_e`` the mean
    probability of e before the cut. Shapes: probs and weights (sites, batch, tokens, experts); ``keep`` (batch,
    tokens), true where a token counts. MoSLD section 3, in the form of the Switch Transformer with 1/k.
    """
    experts = probs.shape[-1]
    probs, selected = probs.flatten(1, 2), (weights.detach() > 0).flatten(1, 2).to(probs.dtype)
    if keep is None:
        importance, load = probs.mean(1), selected.mean(1)
    else:
        share = keep.reshape(-1).to(probs.dtype)
        share = share / share.sum().clamp_min(1)
        importance = torch.einsum("sne,n->se", probs, share)
        load = torch.einsum("sne,n->se", selected, share)
    load = load / load.sum(-1, keepdim=True).clamp_min(torch.finfo(load.dtype).tiny)
    return experts * (load * importance).sum(-1)


def auxiliary_losses(tape: RoutingTape) -> dict[str, Tensor]:
    """By name, weighted and summed over sites. Sites of one shape are reduced together: few kernels, not few each."""
    groups: dict[tuple, list[Slot]] = {}
    for slot in tape.written():
        weight = getattr(slot.site.gate, "balance", 0.0)
        if weight > 0 and slot.site.experts > 1:
            groups.setdefault((slot.adapter, weight, slot.probs.shape, slot.probs.device), []).append(slot)
    total: Tensor | None = None
    for (_, weight, _, device), slots in groups.items():
        probs = torch.stack([slot.probs for slot in slots])
        weights = torch.stack([slot.weights.detach() for slot in slots])
        if probs.dim() == 3:  # a projection that sees tokens without a batch axis
            probs, weights = probs.unsqueeze(1), weights.unsqueeze(1)
        role = tape.role_of(slots[0])
        keep = None
        if role is not None and slots[0].site.gate.unit == "token" and role.numel() == probs[0, ..., 0].numel():
            keep = (role != 0).to(device)
        value = weight * balance_loss(probs, weights, keep).sum()
        total = value if total is None else total + value.to(total.device)
    return {} if total is None else {"balance": total}
