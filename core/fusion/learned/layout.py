"""Prompts and their options as the sequences of one forward pass.

Options share their prompt: where the model's attention allows it, a prompt stands once, followed by the tokens of all
its options, each of which sees the prompt and its own predecessors only. Otherwise each option repeats its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.fusion.learned.entropy import OptionTable
from core.fusion.learned.prompts import Prompt

Prefix = tuple[int, ...]  # of an option
WORTH = 1.2  # how many times as many tokens the repeated prompts must have for the shared layout
MOST_MASK = 2**27  # entries of an attention mask


@dataclass(frozen=True)
class Layout:
    """One forward pass: ``ids`` and ``positions`` (sequences, tokens); ``mask`` is that of padding, or (sequences, 1,
    tokens, tokens). Logits are needed of the last ``keep`` positions, and of these only of ``rows``."""

    ids: Tensor
    mask: Tensor
    positions: Tensor
    keep: int
    rows: Tensor  # (positions,) into the flattened (sequences, keep)

    def logits(self, model: Any) -> Tensor:
        """(positions, vocabulary), in the order of ``rows``."""
        out = model(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            logits_to_keep=self.keep,
            use_cache=False,
        ).logits
        return out[:, -self.keep :].flatten(0, 1)[self.rows]


@dataclass
class Sequences:
    """Sequences under construction. ``where``: (prompt, prefix) -> sequence and distance of its logits from the end."""

    tokens: list[list[int]] = field(default_factory=list)
    parents: list[list[int]] = field(default_factory=list)  # of each token after the prompt: -1 is the prompt's end
    where: dict[tuple[int, Prefix], tuple[int, int]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.tokens) * max(map(len, self.tokens))

    def layout(
        self, order: Sequence[tuple[int, Prefix]], pad_id: int, device: torch.device, *, square: bool = False
    ) -> Layout:
        """``order``: the positions whose logits are needed, as (prompt, prefix). ``square``: the mask is always one of
        tokens by tokens, as far as it fits: a model that makes it itself waits for the device to see if it must."""
        length, keep = max(map(len, self.tokens)), max(map(len, self.parents)) + 1
        ids = np.full((len(self.tokens), length), pad_id)
        present = np.zeros(ids.shape, dtype=np.int64)
        for row, tokens in enumerate(self.tokens):
            ids[row, length - len(tokens) :] = tokens
            present[row, length - len(tokens) :] = 1
        positions = (present.cumsum(1) - 1).clip(min=0)
        chains = all(parent == place - 1 for parents in self.parents for place, parent in enumerate(parents))
        mask = present if chains else self._tree(present, positions)
        rows = np.array([s * keep + keep - 1 - back for s, back in (self.where[key] for key in order)])
        placed = [torch.from_numpy(part).to(device, non_blocking=True) for part in (ids, mask, positions, rows)]
        ids, mask, positions, rows = placed
        if square and chains and present.size * length <= MOST_MASK:
            mask = causal(mask)
        return Layout(ids, mask, positions, keep, rows)

    def _tree(self, present: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """(sequences, 1, tokens, tokens): each token sees the prompt, its own ancestors and itself, padding too, so
        that nothing is undefined. Corrects ``positions``."""
        length = present.shape[1]
        seen = present.astype(bool)[:, None, :] & np.tri(length, dtype=bool)
        for row, parents in enumerate(self.parents):
            start = length - len(parents)
            for place, parent in enumerate(parents):
                at = start + place
                seen[row, at, start:] = seen[row, start + parent, start:] if parent >= 0 else False
                seen[row, at, at] = True
                positions[row, at] = positions[row, start + parent if parent >= 0 else start - 1] + 1
        seen |= np.eye(length, dtype=bool)
        return seen[:, None]


def causal(present: Tensor) -> Tensor:
    """(sequences, 1, tokens, tokens) from (sequences, tokens): each token sees itself and those before it that are
    there."""
    everything = torch.ones(present.shape[1], present.shape[1], dtype=torch.bool, device=present.device)
    itself = torch.eye(present.shape[1], dtype=torch.bool, device=present.device)
    return (present.bool()[:, None] & everything.tril() | itself)[:, None]


def repeated(prompts: Sequence[Prompt]) -> Sequences:
    """A sequence for each option that is no beginning of another one's."""
    found = Sequences()
    for number, prompt in enumerate(prompts):
        prefixes = _prefixes(prompt)
        inner = {prefix[:-1] for prefix in prefixes if prefix}
        for leaf in (prefix for prefix in prefixes if prefix not in inner):
            for cut in range(len(leaf) + 1):
                found.where.setdefault((number, leaf[:cut]), (len(found.tokens), len(leaf) - cut))
            found.tokens.append([*prompt.ids, *leaf])
            found.parents.append(list(range(-1, len(leaf) - 1)))
    return found


def shared(prompts: Sequence[Prompt]) -> Sequences:
    """A sequence for each prompt, with all its options behind it."""
    found = Sequences()
    for number, prompt in enumerate(prompts):
        prefixes = _prefixes(prompt)
        place = {prefix: index - 1 for index, prefix in enumerate(prefixes)}  # the first is the empty one
        for prefix in prefixes:
            found.where[number, prefix] = (number, len(prefixes) - 2 - place[prefix])
        found.tokens.append([*prompt.ids, *(prefix[-1] for prefix in prefixes[1:])])
        found.parents.append([place[prefix[:-1]] for prefix in prefixes[1:]])
    return found


def sequences(prompts: Sequence[Prompt], may_share: bool) -> Sequences:
    """The shorter of the two, where options may share their prompt."""
    plain = repeated(prompts)
    if not may_share:
        return plain
    tree = shared(prompts)
    length = max(map(len, tree.tokens))
    fits = len(tree.tokens) * length**2 <= MOST_MASK
    return tree if fits and plain.size > WORTH * tree.size else plain


def positions_of(prompts: Sequence[Prompt]) -> list[tuple[int, Prefix]]:
    """Every position that some token of an option is predicted at."""
    return [(number, prefix) for number, prompt in enumerate(prompts) for prefix in _prefixes(prompt)]


def option_table(
    prompts: Sequence[Prompt], order: Sequence[tuple[int, Prefix]], device: torch.device
) -> OptionTable | None:
    """``order``: what the rows of the logits are. None where no prompt has options."""
    row = {key: index for index, key in enumerate(order)}
    width = max(len(prompt.options) for prompt in prompts)
    if not width:
        return None
    length = max(len(option) for prompt in prompts for option in prompt.options)
    place = np.zeros((len(prompts), width, length), dtype=np.int64)
    token, counted = np.zeros_like(place), np.zeros(place.shape, dtype=bool)
    exists, opens = (np.zeros((len(prompts), width), dtype=bool) for _ in range(2))
    for number, prompt in enumerate(prompts):
        known = set(prompt.options)
        for index, option in enumerate(prompt.options):
            exists[number, index] = True
            opens[number, index] = not any(option[:cut] in known for cut in range(1, len(option)))
            token[number, index, : len(option)] = option
            counted[number, index, : len(option)] = True
            place[number, index, : len(option)] = [row.get((number, option[:cut]), 0) for cut in range(len(option))]
    parts = (place, token, counted, exists, opens)
    return OptionTable(*(torch.from_numpy(part).to(device, non_blocking=True) for part in parts))


def _prefixes(prompt: Prompt) -> list[Prefix]:
    """What options begin with before their last token, the empty one first, each after its own beginnings."""
    return list(dict.fromkeys([(), *(option[:cut] for option in prompt.options for cut in range(1, len(option)))]))
