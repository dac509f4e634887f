"""Token-by-token decoding of a batch with a KV cache; finished samples leave the batch, others may join it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from core.adapters.decoding import GrowingRows
from core.adapters.model import MixtureModel
from core.adapters.tape import ANSWER, BASE
from core.evaluation import graphs
from core.evaluation.slab import COLUMNS, Slab, fits
from core.evaluation.view import Batch, ModelView, can_select, left_padded, select


class Decoding:
    """The state of several growing answers. ``logits`` (samples, vocabulary) are those of the next token, float32.

    Call within ``view.active()``. ``rows`` names the original samples in the order of the batch: where ``names`` gives
    each sample an adapter of its own, those of one adapter stand together. ``new_tokens``: the longest answer, for
    which room is made; it may grow past it.
    """

    def __init__(
        self,
        view: ModelView,
        prompts: Sequence[Sequence[int]],
        task_index: Sequence[int],
        names: Sequence[str] | None = None,
        new_tokens: int = COLUMNS,
    ) -> None:
        self.view, self._bare = view, not view.adapted  # as it is now: the base itself is told of adapters that come
        self.rows = list(range(len(prompts))) if names is None else together(names)
        prompts, task_index = [prompts[row] for row in self.rows], [task_index[row] for row in self.rows]
        batch = left_padded(prompts, task_index, view.encoder.pad_id, view.device)
        self._batch = batch if names is None else replace(batch, names=[names[row] for row in self.rows])
        self._forward(None)
        named = self._named()
        self._grown = None
        if fits(view.model, self._cache) and named is not False:
            slab = Slab.of(self._cache, [len(prompt) for prompt in prompts], new_tokens)
            self._grown = Grown.after(view, slab, batch.task_index, named)

    def push(self, tokens: Sequence[int]) -> None:
        """Append one token to every sample of the batch and compute the next logits."""
        if self._grown is not None:
            self.logits = self._grown.step(torch.tensor(tokens, device=self.view.device).view(-1, 1))
            return
        everyone = torch.arange(len(self.rows), device=self.view.device)
        self._batch = self._batch.follow(everyone, [[token] for token in tokens], self.view.encoder.pad_id)
        self._forward(self._cache)

    def keep(self, places: Sequence[int]) -> bool:
        """Go on with the samples at these places of the batch alone; False where the cache cannot be divided."""
        chosen = torch.tensor(places, device=self.view.device)
        if self._grown is not None:
            self._grown = self._grown.keep(places)
        elif self._batch.names is None and can_select(self._cache):
            batch = self._batch
            parts = (batch.ids, batch.mask, batch.positions, batch.roles, batch.task_index)
            self._batch = Batch(*(part[chosen] for part in parts))
            self._cache = select(self._cache, chosen)
        else:
            return False  # mixed batches stay whole: their gates' decisions are kept by adapter, not by row
        self.logits = self.logits[chosen]
        self.rows = [self.rows[place] for place in places]
        return True

    def join(self, other: Decoding) -> bool:
        """Take the samples of another decoding of the same base in; False where the two cannot be one batch.

        ``rows`` then counts on: the other's samples have the numbers that follow.
        """
        if self._grown is None or other._grown is None:
            return False
        joined = self._grown.join(other._grown)
        if joined is None:
            return False
        self._grown, order = joined
        number = 1 + max(self.rows)
        rows = [*self.rows, *(number + row for row in other.rows)]
        self.logits = torch.cat([self.logits, other.logits])[torch.tensor(order, device=self.logits.device)]
        self.rows, self.view, self._bare = [rows[place] for place in order], other.view, other._bare
        return True

    def under(self, view: ModelView) -> None:
        """Go on where the bare base that answers has got adapters since."""
        if not self._bare or not view.adapted:
            return
        self.view, self._bare = view, False
        if self._grown is not None:
            self._grown = self._grown.under(view)
        self._batch = replace(self._batch, names=[BASE] * len(self.rows))

    def _named(self) -> list[str] | None | bool:
        """The adapter of each sample; None under a model that is no mixture, False where no single name says it."""
        view, names = self.view, self._batch.names
        if names is not None or not view.adapted:
            return names
        if not view.adapter:
            return [BASE] * len(self.rows)
        active = view.model.active_adapters
        return [active[0]] * len(self.rows) if len(active) == 1 else False

    def _forward(self, cache: Any) -> None:
        out = self.view(self._batch, cache=cache, use_cache=True, keep=1)
        self._cache = out.past_key_values
        self.logits = out.logits[:, -1].float()


class Grown:
    """Answers behind one slab, and how their next token is computed. ``names`` as in ``Decoding``."""

    def __init__(
        self, view: ModelView, slab: Slab, task_index: Tensor, names: list[str] | None, rows: GrowingRows | None
    ) -> None:
        self._view, self._slab, self._tasks, self._names, self._rows = view, slab, task_index, names, rows
        self._bare = not view.adapted
        self._base = view.model.get_base_model() if view.adapted else view.model
        self._additive = self._base.dtype if self._base.config._attn_implementation == "eager" else None
        self._graph: graphs.StepGraph | None = None
        self._steps = 0  # since the batch, or the room of its slab, has changed

    @classmethod
    def after(cls, view: ModelView, slab: Slab, task_index: Tensor, names: list[str] | None) -> Grown:
        """After a pass over the prompts, which has left the gates' decisions with the cache."""
        tuner = getattr(view.model, "base_model", None)
        if not isinstance(tuner, MixtureModel):
            return cls(view, slab, task_index, names, None)
        slots = tuner.tape.slots
        decisions, priors = (
            {slots[number]: kept for number, kept in getattr(slab.cache, name, {}).items()}
            for name in ("tessera_decisions", "tessera_priors")
        )
        return cls(view, slab, task_index, names, GrowingRows(tuner, names, task_index, decisions, priors))

    def step(self, ids: Tensor) -> Tensor:
        """Logits (rows, vocabulary) after one more token in each row, (rows, 1)."""
        room = self._slab.room
        logits = self._graph(ids) if self._graph is not None else self._unrecorded(ids)
        self._steps += 1
        self._slab.advance()
        if self._slab.room != room:
            self._graph, self._steps = None, 0
        return logits

    def keep(self, places: Sequence[int]) -> Grown:
        names = None if self._names is None else [self._names[place] for place in places]
        rows = None if self._rows is None else self._rows.keep(places)
        chosen = torch.tensor(places, device=self._tasks.device)
        return Grown(self._view, self._slab.keep(places), self._tasks[chosen], names, rows)

    def join(self, other: Grown) -> tuple[Grown, list[int]] | None:
        """All rows as one batch, and their order, in which the other's count on; None where they have two bases."""
        if self._base is not other._base:
            return None
        first = self.under(other._view)
        order, names, rows = list(range(len(first._tasks) + len(other._tasks))), None, None
        if first._names is not None:
            names = [*first._names, *other._names]
            order = together(names)
            names = [names[place] for place in order]
        tasks = torch.cat([first._tasks, other._tasks])[torch.tensor(order, device=self._tasks.device)]
        if first._rows is not None:
            rows = first._rows.join(other._rows, names, tasks)
        return Grown(other._view, first._slab.join(other._slab, order), tasks, names, rows), order

    def under(self, view: ModelView) -> Grown:
        """The same answers where the bare base that gives them has got adapters since."""
        if not self._bare or not view.adapted:
            return self
        return Grown.after(view, self._slab, self._tasks, [BASE] * len(self._tasks))

    def _unrecorded(self, ids: Tensor) -> Tensor:
        """The first step warms up what the second records."""
        if not graphs.possible(self._base):
            return self._exact(ids)
        if self._steps == 0:
            logits = graphs.agreed(self._base, self._exact, self._steady, ids)
            return self._exact(ids) if logits is None else logits
        self._graph = graphs.StepGraph.recorded(self._base, self._steady, ids)
        return self._exact(ids) if self._graph is None else self._graph(ids)

    def _exact(self, ids: Tensor) -> Tensor:
        self._slab.steady = False
        return self._pass(ids)

    def _steady(self, ids: Tensor) -> Tensor:
        self._slab.steady = True
        return self._pass(ids)

    def _pass(self, ids: Tensor) -> Tensor:
        slab = self._slab
        mask, positions = slab.mask(self._additive), slab.positions
        if self._rows is not None:
            out = self._rows.forward(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=slab.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        else:
            roles = torch.full_like(ids, ANSWER, dtype=torch.int8)
            batch = Batch(ids, mask, positions, roles, self._tasks, self._names)
            out = self._view(batch, cache=slab.cache, use_cache=True, keep=1)
        return out.logits[:, -1].float()


def together(names: Sequence[str]) -> list[int]:
    """The samples in an order in which those of one adapter follow each other."""
    first = {name: number for number, name in reversed(list(enumerate(names)))}
    return sorted(range(len(names)), key=lambda row: first[names[row]])


def stop_ids(view: ModelView) -> set[int]:
    """The tokens that end an answer: the tokenizer's end of sequence and those of the base's generation settings."""
    settings = getattr(view.model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    return {view.encoder.eos_id, *(named if isinstance(named, list) else [named] if named is not None else [])}
