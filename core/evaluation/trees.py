"""A sample as one row: its prompt, and behind it the options as a tree, in which equal beginnings stand once.

Nodes stand in the order of a walk through the tree, so all that continue a token lie in one stretch behind it. One
number for each token then says who sees it: the token in column ``k`` is seen from column ``q`` where
``k <= q < end[k]``. The last token of an option is predicted and never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from core.data.batches import ANSWER, PAD, PROMPT
from core.evaluation.view import Batch

EVERYONE = 2**30  # the end of a prompt token
ALIGNED = 8  # columns are a multiple of this, as attention kernels like their masks


@dataclass(frozen=True, slots=True)
class OptionSample:
    """Token ids of a prompt and of its options, each ending in the end-of-sequence token."""

    prompt: list[int]
    options: list[list[int]]
    task_index: int = 0

    @property
    def length(self) -> int:
        return len(self.prompt) + max(map(len, self.options))

    @property
    def tree(self) -> Tree:
        return tree_of(tuple(map(tuple, self.options)))


@dataclass(frozen=True, slots=True)
class Tree:
    """The options of a sample. ``ids``, ``depth`` and ``end`` (nodes,), columns counted from the prompt's end.

    ``source`` and ``target`` (tokens of all options, one option after the other): the place that predicts each token,
    0 for the prompt's end and 1 + node for nodes, and the token; ``lengths`` (options,) counts them.
    """

    ids: np.ndarray
    depth: np.ndarray
    end: np.ndarray
    source: np.ndarray
    target: np.ndarray
    lengths: np.ndarray


@lru_cache(maxsize=1024)  # the labels of a classification are the same tree in every row
def tree_of(options: tuple[tuple[int, ...], ...]) -> Tree:
    ids: list[int] = []
    depth: list[int] = []
    end: list[int] = []
    sources: list[list[int]] = [[] for _ in options]
    path: list[int] = []
    before: tuple[int, ...] = ()
    for index in sorted(range(len(options)), key=options.__getitem__):
        inner = options[index][:-1]
        shared = _shared(before, inner)
        for node in path[shared:]:
            end[node] = len(ids)
        del path[shared:]
        for token in inner[shared:]:
            depth.append(len(path))
            path.append(len(ids))
            ids.append(token)
            end.append(0)
        sources[index] = [0, *(1 + node for node in path)]
        before = inner
    for node in path:
        end[node] = len(ids)
    flat = ([place for places in sources for place in places], [token for option in options for token in option])
    return Tree(*(np.asarray(part, dtype=np.int64) for part in (ids, depth, end, *flat, [len(o) for o in options])))


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    places = range(min(len(one), len(other)))
    return next((place for place in places if one[place] != other[place]), len(places))


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, leaving each at least one of its own."""
    shortest, longest = min(prompts), max(prompts)  # in the order of their tokens: what these two share, all share
    return min(_shared(shortest, longest), min(map(len, prompts)) - 1)


@dataclass(frozen=True)
class Planted:
    """Samples as rows. ``places`` (N,): flat positions whose logits are wanted; ``source`` and ``target`` (tokens of
    all options): the place among these that predicts each token, and the token."""

    batch: Batch
    places: Tensor
    source: Tensor
    target: Tensor


def plant(samples: Sequence[OptionSample], skip: int, pad_id: int, device: torch.device, dtype: torch.dtype) -> Planted:
    """The rows of ``samples`` behind ``skip`` tokens that all begin with and that lie in a KV cache."""
    trees = [sample.tree for sample in samples]
    starts = np.array([[len(sample.prompt) - skip] for sample in samples])
    nodes = np.array([[len(tree.ids)] for tree in trees])
    width = -(-(int((starts + nodes).max()) + skip) // ALIGNED) * ALIGNED - skip
    grid = np.zeros((4, len(samples), width), dtype=np.int64)
    ids, positions, ends, roles = grid
    columns = np.arange(width)[None]
    roles[:] = np.where(columns < starts, PROMPT, np.where(columns < starts + nodes, ANSWER, PAD))
    ids[roles == PAD] = pad_id
    positions[:] = np.where(roles == PROMPT, columns + skip, 0)
    ends[roles == PROMPT] = EVERYONE
    for row, (sample, tree) in enumerate(zip(samples, trees, strict=True)):
        start = len(sample.prompt) - skip
        behind = slice(start, start + len(tree.ids))
        ids[row, :start] = sample.prompt[skip:]
        ids[row, behind] = tree.ids
        positions[row, behind] = tree.depth + len(sample.prompt)
        ends[row, behind] = tree.end + start
    places = np.flatnonzero((columns >= starts - 1) & (roles != PAD))
    before = np.concatenate([[0], np.cumsum(nodes[:-1] + 1)])
    source = np.concatenate([tree.source + first for tree, first in zip(trees, before, strict=True)])
    target = np.concatenate([tree.target for tree in trees])
    tasks = np.array([sample.task_index for sample in samples])
    ids, positions, ends, roles = _sent(grid, device)
    flat = _sent(np.concatenate([places, source, target, tasks]), device)
    places, source, target, tasks = flat.split([len(places), len(source), len(target), len(tasks)])
    batch = Batch(ids, tree_mask(ends, skip, dtype), positions, roles.to(torch.int8), tasks)
    return Planted(batch, places, source, target)


def tree_mask(ends: Tensor, skip: int, dtype: torch.dtype) -> Tensor:
    """(rows, 1, columns, skip + columns), to be added to attention scores; ``ends`` (rows, columns)."""
    columns = torch.arange(ends.shape[1], device=ends.device)
    seen = (columns <= columns[:, None]) & (columns[:, None] < ends[:, None, :])
    mask = torch.zeros(len(ends), 1, len(columns), skip + len(columns), dtype=dtype, device=ends.device)
    mask[:, 0, :, skip:].masked_fill_(~seen, torch.finfo(dtype).min)
    return mask


def _sent(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy that does not wait for the device."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
