"""What a base has to bear for rows of trees, and the beginning that all prompts share, computed once."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from core.adapters.attach import tape_of
from core.evaluation.trees import OptionSample, Planted, common_prefix, plant, tree_mask
from core.evaluation.view import ModelView, can_select, left_padded

if TYPE_CHECKING:
    from transformers import Cache

WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
WORTH = 512  # tokens that a shared beginning must save, for it costs a pass of its own
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)  # of bases that know no such mask
LEAK = 0.01  # what an option may feel of another one, against what it would feel if it saw it

_known: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], tuple[bool, Any]]] = WeakKeyDictionary()


def reads_trees(view: ModelView, samples: Sequence[OptionSample]) -> bool:
    """Whether options in one row score as if each were alone: the base's attention keeps to the mask that it is given
    and takes positions, and the adapter decides from the prompt. Tried once for each model and adapter.

    A base that looks back over a window counts columns, so the rows must not be longer.
    """
    config = view.model.config.get_text_config()
    longest = max(len(sample.prompt) + len(sample.tree.ids) for sample in samples)
    if any(longest > window for name in WINDOWS if isinstance(window := getattr(config, name, None), int)):
        return False
    tried = _known.setdefault(view.model, {})
    adapter = view.model.peft_config[view.model.active_adapter] if view.adapted and view.adapter else None
    key = (id(adapter), samples[0].task_index, view.model.dtype, view.device)
    if key not in tried:
        tried[key] = (_keeps_apart(view, samples[0].task_index), adapter)  # held, so that its id stays its own
    return tried[key][0]


def _keeps_apart(view: ModelView, task_index: int) -> bool:
    """Whether the second option in a row is blind for the first, which differs between two rows."""
    base = view.model.get_base_model() if view.adapted else view.model
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return False
    first = view.model.config.get_text_config().vocab_size // 2
    prompt, one, other, mine = [first, first + 1], [first + 2] * 3, [first + 3] * 3, [first + 4, first + 5, first + 6]
    rows = [OptionSample(prompt, [options, mine], task_index) for options in (one, other)]
    planted = plant(rows, 0, view.encoder.pad_id, view.device, view.model.dtype)
    try:
        apart = _felt(view, planted, planted.batch.mask)
        seen = _felt(view, planted, tree_mask(torch.full_like(planted.batch.ids, 2**30), 0, view.model.dtype))
    except torch.OutOfMemoryError:
        raise
    except REFUSALS:
        return False
    return apart <= LEAK * seen


def _felt(view: ModelView, planted: Planted, mask: Tensor) -> float:
    """How far the last node's logits lie apart between two rows."""
    logits = view.at(replace(planted.batch, mask=mask), planted.places).float().unflatten(0, (2, -1))[:, -1]
    return float((logits[0] - logits[1]).abs().max())


@dataclass(frozen=True)
class Prefix:
    """``length`` tokens that all prompts begin with, in a cache that any number of rows continue."""

    length: int = 0
    cache: Cache | None = None

    @classmethod
    def of(cls, view: ModelView, samples: Sequence[OptionSample]) -> Prefix:
        """Empty where it saves little, or where a sample's gates make its beginning another one."""
        length = common_prefix([sample.prompt for sample in samples])
        if length * (len(samples) - 1) < WORTH or _decides_by_sample(view, samples):
            return cls()
        batch = left_padded([samples[0].prompt[:length]], [samples[0].task_index], view.encoder.pad_id, view.device)
        found = view(batch, use_cache=True, keep=1).past_key_values
        if not can_select(found) or any(layer.get_seq_length() != length for layer in found.layers):
            return cls()
        shared = copy.copy(found)
        shared.layers = [_frozen_layer()(layer.keys, layer.values) for layer in found.layers]
        return cls(length, shared)


def _decides_by_sample(view: ModelView, samples: Sequence[OptionSample]) -> bool:
    """Whether two samples with one beginning may differ in it: by their tasks, or because a gate reads their ends."""
    if not (view.adapted and view.adapter):
        return False
    if any(sample.task_index != samples[0].task_index for sample in samples):
        return True
    gates = [slot.site.gate for slot in tape_of(view.model).slots if slot.adapter == view.model.active_adapter]
    return any(gate.guided or (gate.unit == "sample" and gate.word != "task") for gate in gates)


@cache
def _frozen_layer() -> type:
    """A layer of a KV cache that shows its keys and values before new ones and keeps none; transformers come late."""
    from transformers.cache_utils import DynamicLayer

    class FrozenLayer(DynamicLayer):
        def __init__(self, keys: Tensor, values: Tensor) -> None:
            super().__init__()
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
            self.keys, self.values = keys, values

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            rows = len(key_states)
            return (
                torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
                torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
            )

    return FrozenLayer
