"""Adds up what the gates decide, on the device, without waiting for it; see ``snapshot`` for the figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..adapters.tape import ANSWER, PROMPT, RoutingTape, Slot
from ..errors import ConfigurationError
from .snapshot import ROLES, RoutingSnapshot, SiteInfo

if TYPE_CHECKING:
    from ..adapters.cells import Site

SITES_AT_ONCE = 64  # bounds the copies that one update makes


@dataclass
class _Group:
    """Gates with as many decisions and experts each.

    Their sums are one tensor (slots * parts, roles * tasks, 3 * experts + 2).
    """

    slots: list[Slot]
    parts: int
    sums: Tensor | None = None


class RoutingRecorder:
    """Call ``update`` after a forward pass; nothing leaves the device before ``snapshot``.

    ``tasks`` are the adapter's, in the order of ``task_index``. ``adapter`` may be left out where the model has one
    adapter with gates.
    """

    def __init__(self, tape: RoutingTape, tasks: list[str], adapter: str | None = None) -> None:
        known = tape.adapters()
        if adapter is None and len(known) > 1:
            raise ConfigurationError(
                f"The model has several adapters with gates: {', '.join(known)}.", "Say which one is recorded."
            )
        self.tape = tape
        self.tasks = list(tasks) or ["all"]
        self.adapter = adapter if adapter is not None else next(iter(known), None)
        groups: dict[tuple[int, str, int], _Group] = {}
        self._slots = [slot for slot in tape.slots if slot.adapter == self.adapter]
        for slot in self._slots:
            parts = slot.site.gate.groups(slot.site)
            key = (slot.site.experts, slot.site.gate.unit, parts)
            groups.setdefault(key, _Group([], parts)).slots.append(slot)
        self._groups = list(groups.values())

    @torch.no_grad()
    def update(self) -> None:
        """Add the decisions of the last forward pass."""
        for group in self._groups:
            size = max(1, SITES_AT_ONCE // group.parts)
            for start in range(0, len(group.slots), size):
                chunk = range(start, min(start + size, len(group.slots)))
                written = [index for index in chunk if group.slots[index].probs is not None]
                if written:
                    self._add(group, written)

    def _add(self, group: _Group, indices: list[int]) -> None:
        slots = [group.slots[index] for index in indices]
        probs = torch.stack([slot.probs for slot in slots]).float()
        weights = torch.stack([slot.weights for slot in slots]).float()
        parts, experts, device = group.parts, probs.shape[-1], probs.device
        bins = self._bins(slots[0], probs.shape[1 : -1 if parts == 1 else -2], device)
        probs, weights = (
            each.reshape(len(slots), -1, parts, experts).transpose(1, 2).flatten(0, 1) for each in (probs, weights)
        )
        entropy = torch.special.entr(probs).sum(-1, keepdim=True)
        top = torch.nn.functional.one_hot(probs.argmax(-1), experts).float()
        rows = torch.cat([weights, (weights != 0).float(), top, entropy, torch.ones_like(entropy)], -1)
        with torch.autocast(device.type, enabled=False):
            sums = torch.einsum("nb,snc->sbc", bins, rows).double()
        if group.sums is None:
            group.sums = sums.new_zeros(len(group.slots) * parts, *sums.shape[1:])
        if len(indices) == indices[-1] - indices[0] + 1:
            group.sums[indices[0] * parts : (indices[-1] + 1) * parts] += sums
        else:
            places = [index * parts + part for index in indices for part in range(parts)]
            group.sums.index_add_(0, torch.tensor(places, device=device), sums)

    def _bins(self, slot: Slot, shape: torch.Size, device: torch.device) -> Tensor:
        """(decisions, roles * tasks): one where a decision counts; a padding token counts nowhere."""
        task, role = self.tape.tasks_of(slot), self.tape.role_of(slot)
        batch = shape[0]
        if task is None:
            if len(self.tasks) > 1:
                raise ConfigurationError(
                    "Routing is recorded per task, but the batch does not say which task each sample belongs to.",
                    "Pass task_index, one task number for each row.",
                )
            task = torch.zeros(role.shape[0] if role is not None else batch, dtype=torch.long, device=device)
        by_task = torch.nn.functional.one_hot(task.to(device), len(self.tasks)).float()
        if slot.site.gate.unit == "sample":
            return by_task.repeat(1, len(ROLES))
        if role is None:
            role = torch.full(shape, PROMPT, device=device) if len(shape) == 2 else None
        if role is None or role.numel() != shape.numel():
            raise ConfigurationError(
                f"{slot.site.name} routes tokens in another layout than the batch.", "Leave it out of the cells."
            )
        role = role.to(device)
        by_role = torch.stack([role == PROMPT, role == ANSWER], -1).float()  # (batch, tokens, roles)
        by_task = by_task if task.dim() == 2 else by_task.unsqueeze(1)  # (batch, tokens or 1, tasks)
        return (by_role.unsqueeze(-1) * by_task.unsqueeze(2)).flatten(0, 1).flatten(1)

    def snapshot(self, reset: bool = True) -> RoutingSnapshot:
        """What was recorded since the last reset."""
        found = {}
        for group in self._groups:
            width = 3 * group.slots[0].site.experts + 2
            shape = (len(group.slots), group.parts, len(ROLES), len(self.tasks), width)
            sums = np.zeros(shape) if group.sums is None else group.sums.cpu().numpy().reshape(shape)
            found |= dict(zip(group.slots, sums, strict=True))
            if reset:
                group.sums = None
        sites = [info for slot in self._slots for info in decisions_of(slot.site)]
        return RoutingSnapshot.from_sums(self.tasks, sites, [part for slot in self._slots for part in found[slot]])


def decisions_of(site: Site) -> list[SiteInfo]:
    """What the gate of an adapted projection decides, one entry for each of its groups."""
    layer = -1 if site.layer is None else site.layer
    gate = site.gate
    whole = "for its block" if gate.scope == "block" else ""
    return [
        SiteInfo(
            site.name, layer, site.projection, site.experts, site.selected, gate.word, gate.unit, part,
            gate.sums_to_one, gate.signed,
        )
        for part in gate.parts(site) or [whole]
    ]  # fmt: skip
