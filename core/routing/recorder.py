"""Adds up what the gates decide, on the device, without waiting for it; see ``snapshot`` for the figures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.tape import ANSWER, PROMPT, RoutingTape, Slot
from ..errors import ConfigurationError
from .snapshot import ROLES, RoutingSnapshot, SiteInfo

SITES_AT_ONCE = 64  # bounds the copies that one update makes


@dataclass
class _Group:
    """Sites with as many experts each: their sums are one tensor (sites, roles * tasks, 3 * experts + 2)."""

    slots: list[Slot]
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
        groups: dict[tuple[int, str], _Group] = {}
        self._slots = [slot for slot in tape.slots if slot.adapter == self.adapter]
        for slot in self._slots:
            groups.setdefault((slot.site.experts, slot.site.gate.unit), _Group([])).slots.append(slot)
        self._groups = list(groups.values())

    @torch.no_grad()
    def update(self) -> None:
        """Add the decisions of the last forward pass."""
        for group in self._groups:
            for start in range(0, len(group.slots), SITES_AT_ONCE):
                chunk = range(start, min(start + SITES_AT_ONCE, len(group.slots)))
                written = [index for index in chunk if group.slots[index].probs is not None]
                if written:
                    self._add(group, written)

    def _add(self, group: _Group, indices: list[int]) -> None:
        slots = [group.slots[index] for index in indices]
        probs = torch.stack([slot.probs for slot in slots]).float()
        weights = torch.stack([slot.weights for slot in slots]).float()
        experts, device = probs.shape[-1], probs.device
        bins = self._bins(slots[0], probs.shape[1:-1], device)
        probs, weights = probs.reshape(len(slots), -1, experts), weights.reshape(len(slots), -1, experts)
        entropy = torch.special.entr(probs).sum(-1, keepdim=True)
        top = torch.nn.functional.one_hot(probs.argmax(-1), experts).float()
        rows = torch.cat([weights, (weights > 0).float(), top, entropy, torch.ones_like(entropy)], -1)
        with torch.autocast(device.type, enabled=False):
            sums = torch.einsum("nb,snc->sbc", bins, rows).double()
        if group.sums is None:
            group.sums = sums.new_zeros(len(group.slots), *sums.shape[1:])
        if len(indices) == indices[-1] - indices[0] + 1:
            group.sums[indices[0] : indices[-1] + 1] += sums
        else:
            group.sums.index_add_(0, torch.tensor(indices, device=device), sums)

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
        return (by_role.unsqueeze(-1) * by_task[:, None, None, :]).flatten(0, 1).flatten(1)

    def snapshot(self, reset: bool = True) -> RoutingSnapshot:
        """What was recorded since the last reset."""
        found = {}
        for group in self._groups:
            sums = None if group.sums is None else group.sums.cpu().numpy()
            for index, slot in enumerate(group.slots):
                width = 3 * slot.site.experts + 2
                shape = (len(ROLES), len(self.tasks), width)
                found[slot] = torch.zeros(shape).numpy() if sums is None else sums[index].reshape(shape)
            if reset:
                group.sums = None
        sites = [
            SiteInfo(
                slot.site.name,
                -1 if slot.site.layer is None else slot.site.layer,
                slot.site.projection,
                slot.site.experts,
                slot.site.selected,
                slot.site.gate.word,
                slot.site.gate.unit,
            )
            for slot in self._slots
        ]
        return RoutingSnapshot.from_sums(self.tasks, sites, [found[slot] for slot in self._slots])
