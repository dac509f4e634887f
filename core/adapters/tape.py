"""The per-model notebook: what a forward pass was told, and what its gates decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConfigurationError
from .losses import auxiliary_losses

if TYPE_CHECKING:
    from .cells import Site
    from .decoding import GrowingRows
    from .packed import Pack

PAD, PROMPT, ANSWER = 0, 1, 2
BASE = "__base__"


@dataclass
class Routing:
    """What one gate decided. Shapes (batch, tokens or 1, experts); a group axis may stand before the last.

    ``probs`` sums to one over the experts, before any cut; ``weights`` is what multiplied the experts: zero where an
    expert was not selected.
    """

    probs: Tensor
    weights: Tensor
    folded: Tensor | None = None  # what the up words fold with, where that is not ``weights``

    @property
    def mixing(self) -> Tensor:
        return self.weights if self.folded is None else self.folded

    def detach(self) -> Routing:
        folded = None if self.folded is None else self.folded.detach()
        return Routing(self.probs.detach(), self.weights.detach(), folded)


@dataclass
class Addressing:
    """Whose tokens a batch holds: for every sample its task, for every token its role, and named side inputs.

    ``parts`` splits a batch whose rows use different adapters: adapter -> the addressing of its rows, with ``rows``
    saying which these are. ``continued``: the batch goes on from a KV cache. ``pack``: its rows hold several samples,
    of which ``pack.samples`` is the addressing; roles and tasks are then those of the pack's tokens.
    """

    task_index: Tensor | None = None  # (batch,), or (rows, tokens) of a pack
    token_role: Tensor | None = None  # (batch, tokens): PAD, PROMPT or ANSWER
    side: dict[str, Tensor] = field(default_factory=dict)  # each (batch, ...)
    rows: Tensor | None = None
    parts: dict[str, Addressing] | None = None
    continued: bool = False
    shape: tuple[int, int] | None = None  # (batch, tokens)
    pack: Pack | None = None

    def seen_by(self, site: Site) -> Addressing:
        """The layout in which a site's words decide: a sample a row where they ask for the sample."""
        return self.pack.samples if self.pack is not None and site.by_sample else self

    def take(self, rows: Tensor) -> Addressing:
        def pick(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.index_select(0, rows.to(value.device))

        side = {name: pick(value) for name, value in self.side.items()}
        return replace(
            self, task_index=pick(self.task_index), token_role=pick(self.token_role), side=side, rows=rows, parts=None
        )

    def lies_flat(self, x: Tensor) -> bool:
        """Whether ``x`` holds the batch's tokens without the axis of samples, as some bases' feed-forward sees them."""
        return x.dim() == 2 and self.shape is not None and x.shape[0] == self.shape[0] * self.shape[1]

    def split(self, names: Sequence[str], device: torch.device) -> Addressing:
        """Give each row the adapter that ``names`` says; ``__base__`` rows have none."""
        members: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            members.setdefault(name, []).append(row)
        parts = {name: self.take(torch.tensor(rows, device=device)) for name, rows in members.items() if name != BASE}
        return replace(self, parts=parts)


class Page:
    """What one gate wrote in one pass; ``rows`` of the batch are meant, all of them where it is None."""

    def __init__(self) -> None:
        self.probs: Tensor | None = None
        self.weights: Tensor | None = None
        self.folded: Tensor | None = None
        self.rows: Tensor | None = None
        self.losses: dict[str, Tensor] = {}

    @property
    def routing(self) -> Routing | None:
        return None if self.probs is None else Routing(self.probs, self.weights, self.folded)


class Slot:
    """The place of one gate on the tape; a layer holds its own slots, so its compiled code knows no number or name.

    ``decision`` is set beforehand where a sample's routing was decided with an earlier part of its text, and ``prior``
    (batch, n) where the gate is told something of each sample (see ``prelude``). Gates that share one decision share
    the slot of the one that takes it. ``page`` is what gates write on; what is read is ``kept``.
    """

    def __init__(self, adapter: str, site: Site) -> None:
        self.adapter = adapter
        self.site = site
        gate = site.gate
        self.judged = getattr(gate, "balance", 0.0) > 0 or getattr(gate, "supervision", 0.0) > 0  # by a loss
        self.followed = gate.scope == "block"  # by projections that fold with the same weights
        self.prior: Tensor | None = None
        self.clear()

    @property
    def probs(self) -> Tensor | None:
        return self.kept.probs

    @property
    def weights(self) -> Tensor | None:
        return self.kept.weights

    @property
    def rows(self) -> Tensor | None:
        return self.kept.rows

    @property
    def losses(self) -> dict[str, Tensor]:
        return self.kept.losses

    @property
    def routing(self) -> Routing | None:
        return self.kept.routing

    def write(self, routing: Routing, rows: Tensor | None, losses: dict[str, Tensor]) -> None:
        """Keep what was decided. What nothing reads again with its gradient is kept without: a compiled block would
        have to give it one."""
        page = self.page
        if not self.followed:
            kept = routing.detach()
            routing = Routing(routing.probs, kept.weights, kept.folded) if self.judged else kept
        page.probs, page.weights, page.folded = routing.probs, routing.weights, routing.folded
        page.rows, page.losses = rows, losses

    def clear(self) -> None:
        self.page = self.kept = Page()
        self.decision: Routing | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the tensors of the last pass behind: they hang on its graph."""
        page = Page()
        return {**self.__dict__, "page": page, "kept": page, "decision": None, "prior": None}


class RoutingTape:
    """One per model. Written by key, so a layer that activation checkpointing runs twice is counted once.

    The addressing stays set after the forward: recomputation during the backward reads it again. What it writes again
    goes to one page that slots share then, so that no more than the last recomputed graph is held (slots that others
    read have one each); asking whether to write would make another compiled graph, whose saved tensors are not those
    of the forward.
    """

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.addressing = Addressing()
        self.spare = Page()
        self.silent = False  # true while the base is asked something before a pass: the layers add nothing to it
        self.decoder: GrowingRows | None = None  # computes the layers while answers grow by one token
        self.step = 0  # optimiser steps done, told by the trainer: some auxiliary losses begin later

    def add(self, adapter: str, site: Site) -> Slot:
        """The slot of a site's gate: a new one, or the leader's where the whole decision is shared."""
        if not site.leads and site.gate.scope == "block":
            return next(slot for slot in self.slots if (slot.adapter, slot.site.name) == (adapter, site.leader))
        slot = Slot(adapter, site)
        self.slots.append(slot)
        return slot

    def drop(self, adapter: str) -> None:
        self.slots = [slot for slot in self.slots if slot.adapter != adapter]

    def begin(self, addressing: Addressing, decisions: Mapping[int, Routing] | None = None) -> None:
        """Start a pass; ``decisions``: by slot number, what sample-level gates decided on this text before."""
        self.spare = Page()
        for slot in self.slots:
            slot.clear()
        for number, decision in (decisions or {}).items():
            self.slots[number].decision = decision
        self.addressing = addressing

    def end(self) -> dict[int, Routing]:
        """Finish the pass; returns the sample-level decisions, to be kept with the KV cache."""
        for slot in self.slots:
            slot.page = Page() if slot.site.gate.scope == "block" else self.spare
        return {
            number: slot.routing.detach()
            for number, slot in enumerate(self.slots)
            if slot.probs is not None and slot.site.gate.unit == "sample"
        }

    def priors(self) -> dict[int, Tensor]:
        """What leading gates were told of the samples, by slot number, to be kept with the KV cache."""
        found = ((number, slot) for number, slot in enumerate(self.slots) if slot.site.leads)
        return {number: slot.prior for number, slot in found if slot.prior is not None}

    def written(self, adapter: str | None = None) -> Iterator[Slot]:
        """Slots that the last pass wrote, of one adapter or of all."""
        return (slot for slot in self.slots if slot.probs is not None and adapter in (None, slot.adapter))

    def adapters(self) -> list[str]:
        return list(dict.fromkeys(slot.adapter for slot in self.slots))

    def role_of(self, slot: Slot) -> Tensor | None:
        """The roles of the tokens that ``slot`` routed, (batch, tokens)."""
        role = self.addressing.seen_by(slot.site).token_role
        return role if role is None or slot.rows is None else role.index_select(0, slot.rows.to(role.device))

    def tasks_of(self, slot: Slot) -> Tensor | None:
        tasks = self.addressing.seen_by(slot.site).task_index
        return tasks if tasks is None or slot.rows is None else tasks.index_select(0, slot.rows.to(tasks.device))

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """Each auxiliary loss of the last pass, weighted and taken over projections; empty where there is none."""
        return auxiliary_losses(self)

    def auxiliary_loss(self) -> Tensor | None:
        """All auxiliary losses of the last pass as one scalar to add to the language-model loss.

        It is a mean over the samples of this pass. With gradient accumulation, divide it by the number of
        micro-batches: only the language-model loss is normalised over all of them.
        """
        losses = list(self.auxiliary_losses().values())
        return torch.stack(losses).sum() if losses else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "addressing": Addressing(), "spare": Page(), "silent": False, "decoder": None}


def roles(token_role: Tensor | None, attention_mask: Any, labels: Tensor | None, tokens: int) -> Tensor | None:
    """Roles of the last ``tokens`` columns: as given, or from the mask (and the labels: answers are what is learnt).

    None where nothing says that a token is padding or answer.
    """
    if token_role is not None:
        if token_role.dim() != 2 or token_role.shape[1] < tokens:
            raise ConfigurationError(
                f"token_role has shape {tuple(token_role.shape)}, but the batch has {tokens} tokens a row.",
                "Give one role for each token: 0 padding, 1 prompt, 2 answer.",
            )
        return token_role[:, -tokens:]
    has_mask = isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 and attention_mask.shape[1] >= tokens
    has_labels = labels is not None and labels.dim() == 2 and labels.shape[1] == tokens
    if not has_mask and not has_labels:
        return None
    like = attention_mask[:, -tokens:] if has_mask else labels
    result = torch.full_like(like, PROMPT, dtype=torch.int8)
    if has_labels:
        result = result.masked_fill(labels != -100, ANSWER)
    return result.masked_fill(like == 0, PAD) if has_mask else result
