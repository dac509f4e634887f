"""A KV cache that is allocated ahead: rows end at the same column, whatever their lengths, and may come and go."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

COLUMNS = 256  # the slab grows by as many at most


class Slab:
    """``starts``: the column at which each row's text begins; ``column``: where the next token of every row goes;
    ``left``: about how many tokens are still to come, for which room is made.

    ``cache`` is what the model is given. ``steady``: it is to see the whole slab at every step, behind a mask, so that
    no shape changes and a CUDA graph can hold the step.
    """

    def __init__(
        self, cache: Cache, pairs: list[tuple[Tensor, Tensor]], starts: Sequence[int], column: int, left: int
    ) -> None:
        self.steady, self.column, self.left, self.starts = False, column, left, list(starts)
        device = pairs[0][0].device
        self._starts = torch.tensor(self.starts, device=device).view(-1, 1, 1, 1)
        self._columns = torch.arange(pairs[0][0].shape[2], device=device)
        self.place = torch.tensor([column], device=device)  # ``column``, where a graph finds it
        self.cache = copy.copy(cache)
        self.cache.layers = [SlabLayer(self, *pair) for pair in pairs]

    @classmethod
    def of(cls, cache: Cache, lengths: Sequence[int], left: int) -> Slab:
        """From the cache of a pass over left-padded prompts of these lengths."""
        column = cache.get_seq_length()
        room = column + _ahead(left)
        pairs = [tuple(_roomy(kept, room) for kept in (layer.keys, layer.values)) for layer in cache.layers]
        return cls(cache, pairs, [column - length for length in lengths], column, left)

    @property
    def positions(self) -> Tensor:
        """(rows, 1): of the tokens that go into the slab next."""
        return (self.place - self._starts).view(-1, 1)

    def mask(self, additive: torch.dtype | None) -> Tensor | None:
        """(rows, 1, 1, columns) of what each row may look at; None: all of it. Added to scores in ``additive``."""
        columns = self._columns if self.steady else self._columns[: self.column + 1]
        if not self.steady and not any(self.starts):
            return None
        seen = columns >= self._starts
        if self.steady:
            seen = seen & (columns <= self.place)
        if additive is None:
            return seen
        return torch.zeros_like(seen, dtype=additive).masked_fill_(~seen, torch.finfo(additive).min)

    def advance(self) -> None:
        """One token more in every row; the slab grows where it is full."""
        self.column += 1
        self.left -= 1
        self.place += 1
        if self.column == len(self._columns):
            room = self.column + _ahead(self.left)
            self._columns = torch.arange(room, device=self._columns.device)
            for layer in self.cache.layers:
                layer.keys, layer.values = _roomy(layer.keys, room), _roomy(layer.values, room)

    @property
    def room(self) -> int:
        return len(self._columns)

    def keep(self, rows: Sequence[int]) -> Slab:
        """A slab of these rows, without the columns that only others used."""
        return self._gathered([(self, rows)])

    def join(self, other: Slab, order: Sequence[int]) -> Slab:
        """A slab of the rows of both, in an order that counts on from this one's rows to the other's."""
        joined = self._gathered([(self, range(len(self.starts))), (other, range(len(other.starts)))])
        return joined.keep(order) if list(order) != sorted(order) else joined

    def _gathered(self, taken: Sequence[tuple[Slab, Sequence[int]]]) -> Slab:
        used = [(slab, list(rows), min(slab.starts[row] for row in rows)) for slab, rows in taken]
        column, left = max(slab.column - first for slab, _, first in used), max(slab.left for slab, _, _ in used)
        starts = [column - slab.column + slab.starts[row] for slab, rows, _ in used for row in rows]
        pairs = []
        for layers in zip(*(slab.cache.layers for slab, _, _ in used), strict=True):
            pair = []
            for kind in ("keys", "values"):
                held = getattr(layers[0], kind)
                made = held.new_zeros(len(starts), held.shape[1], column + _ahead(left), held.shape[3])
                at = 0
                for layer, (slab, rows, first) in zip(layers, used, strict=True):
                    part = getattr(layer, kind)[:, :, first : slab.column]
                    made[at : at + len(rows), :, column - part.shape[2] : column] = part[rows]
                    at += len(rows)
                pair.append(made)
            pairs.append(tuple(pair))
        return Slab(self.cache, pairs, starts, column, left)


class SlabLayer(DynamicLayer):
    """The keys and values of one layer, (rows, heads, columns, width)."""

    def __init__(self, slab: Slab, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.slab, self.keys, self.values, self.is_initialized = slab, keys, values, True
        self.dtype, self.device = keys.dtype, keys.device

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.slab.steady:
            self.keys.index_copy_(2, self.slab.place, key_states)
            self.values.index_copy_(2, self.slab.place, value_states)
            return self.keys, self.values
        column, end = self.slab.column, self.slab.column + 1
        self.keys[:, :, column:end] = key_states
        self.values[:, :, column:end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.slab.column


def fits(model: Any, cache: Any) -> bool:
    """Whether a slab can stand for a cache: plain attention over all keys, positions and masks that are told."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = getattr(cache, "layers", None) or [None]
    return (
        all(type(layer) is DynamicLayer and layer.is_initialized and layer.keys.dim() == 4 for layer in layers)
        and len({layer.keys.shape[2] for layer in layers}) == 1
        and base.config._attn_implementation in ("sdpa", "eager")
        and not getattr(base.config, "alibi", False)
        and "position_ids" in inspect.signature(base.forward).parameters
    )


def _ahead(left: int) -> int:
    """Columns for the tokens that are to come; an answer may be longer than was thought."""
    return min(left, COLUMNS) if left > 0 else COLUMNS


def _roomy(kept: Tensor, columns: int) -> Tensor:
    made = kept.new_zeros(*kept.shape[:2], columns, kept.shape[3])
    made[:, :, : kept.shape[2]] = kept
    return made
