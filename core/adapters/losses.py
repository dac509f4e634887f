"""Auxiliary losses on what the gates decided."""

from __future__ import annotations

from collections import Counter
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
    probs, selected = probs.flatten(1, 2), (weights.detach() != 0).flatten(1, 2).to(probs.dtype)
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
    balanced = [slot for slot in tape.written() if getattr(slot.site.gate, "balance", 0.0) > 0]
    balanced = [slot for slot in balanced if slot.site.experts > 1]
    averaged = Counter(slot.adapter for slot in balanced if _averaged(slot))
    for slot in balanced:
        weight = slot.site.gate.balance / (averaged[slot.adapter] if _averaged(slot) else 1)
        key = (slot.adapter, weight, slot.probs.shape, slot.probs.device, slot.site.by_sample)
        groups.setdefault(key, []).append(slot)
    total: Tensor | None = None
    for (_, weight, _, device, _), slots in groups.items():
        probs = torch.stack([slot.probs for slot in slots])
        weights = torch.stack([slot.weights.detach() for slot in slots])
        parts = slots[0].site.gate.groups(slots[0].site)
        if parts > 1:  # decisions beside each other count like sites, and as one projection together
            probs, weights = (each.movedim(-2, 1).flatten(0, 1) for each in (probs, weights))
        if probs.dim() == 3:  # a projection that sees tokens without a batch axis
            probs, weights = probs.unsqueeze(1), weights.unsqueeze(1)
        role = tape.role_of(slots[0])
        keep = None
        if role is not None and slots[0].site.gate.unit == "token" and role.numel() == probs[0, ..., 0].numel():
            keep = (role != 0).to(device)
        value = weight / parts * balance_loss(probs, weights, keep).sum()
        total = value if total is None else total + value.to(total.device)
    found = {} if total is None else {"balance": total}
    return found | _supervision(tape) | _of_outputs(tape)


def _averaged(slot: Slot) -> bool:
    return getattr(slot.site.gate, "balance_over", "sum") == "mean"


def _of_outputs(tape: RoutingTape) -> dict[str, Tensor]:
    """What up words said of their experts' outputs, each loss averaged over an adapter's projections that have it.

    A word with ``after`` is not heard before that many optimiser steps.
    """
    found: dict[tuple[str, str], list[Tensor]] = {}
    for slot in tape.written():
        if tape.step >= getattr(slot.site.up, "after", 0):
            for name, value in slot.losses.items():
                found.setdefault((name, slot.adapter), []).append(value)
    totals: dict[str, Tensor] = {}
    for (name, _), values in found.items():
        mean = torch.stack([value.to(values[0].device) for value in values]).mean()
        totals[name] = mean if name not in totals else totals[name] + mean.to(totals[name].device)
    return totals


def _supervision(tape: RoutingTape) -> dict[str, Tensor]:
    """Cross-entropy of routers that are taught the task labels: a mean over samples and over the adapter's routers.

    MoA, section 5 of the specification's reading: averaged over blocks, so its weight does not depend on the depth.
    """
    by_adapter: dict[str, list[Tensor]] = {}
    for slot in tape.written():
        tasks, weight = tape.tasks_of(slot), getattr(slot.site.gate, "supervision", 0.0)
        if weight > 0 and tasks is not None:
            chosen = slot.probs.squeeze(1).gather(-1, tasks.to(slot.probs.device).unsqueeze(-1))
            likelihood = chosen.clamp_min(torch.finfo(chosen.dtype).tiny).log().mean()
            by_adapter.setdefault(slot.adapter, []).append(-weight * likelihood)
    if not by_adapter:
        return {}
    first = next(iter(by_adapter.values()))[0]
    means = [torch.stack([loss.to(first.device) for loss in losses]).mean() for losses in by_adapter.values()]
    return {"supervision": torch.stack(means).sum()}
