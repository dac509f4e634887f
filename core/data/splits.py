"""Training, validation and test rows: given by files or a column, or drawn by seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from core.data.checks import keys_of
from core.data.spill import filtered
from core.errors import DataError

MOST_VALIDATION = 1000


def draw(
    tables: dict[str, pa.Table],
    groups: Sequence[int],
    *,
    task: str,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    room: Path | None = None,
) -> tuple[dict[str, pa.Table], list[str]]:
    """Fill in the splits of one task that are not given, and notes that say how.

    ``tables`` holds the given splits; ``groups`` numbers the rows of train: rows of one group (one conversation) and
    rows with equal inputs stay on one side. Test is drawn from train only if no test is given, then validation from
    what is left: at least one row, at most 1,000.
    """
    for name, share in (("test", test), ("validation", validation)):
        if not 0 <= share < 1:
            raise DataError(f"The {name} share {share} is not between 0 and 1.", "Use for example 0.1.")
    tables, notes = dict(tables), []
    keys: np.ndarray | None = None
    belongs = np.asarray(groups, np.int64)
    chance = np.random.default_rng([seed, *task.encode()])
    for split, share, most in (("test", test, None), ("validation", validation, MOST_VALIDATION)):
        train = tables.get("train")
        if split in tables or not share or train is None:
            continue
        if split == "validation" and "test" not in tables and test:
            continue  # too few rows for a test split: too few for this one
        keys = keys_of(train) if keys is None else keys
        members = _clusters(belongs, keys)
        wanted = max(1, round(share * len(train)))
        wanted = min(wanted, most) if most else wanted
        chosen = _choose(members, wanted, chance)
        if chosen is None:
            notes.append(
                f"{task}: no {split} split was drawn: its {len(train)} training rows cannot be parted. "
                "Give a file for it, or more rows."
            )
            continue
        tables[split] = filtered(train, chosen, room)
        tables["train"] = filtered(train, ~chosen, room)
        belongs, keys = belongs[~chosen], keys[~chosen]
        notes.append(f"{task}: {len(tables[split])} {split} rows were drawn from train with seed {seed}.")
    return tables, notes


def _clusters(groups: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A number per row, equal for rows that must stay together: of one group, or with equal inputs.

    Clusters are numbered in the order of their first rows.
    """
    if len(np.unique(groups)) == len(groups):
        return _in_order(keys)
    keys = _in_order(keys)
    parent = np.arange(int(keys.max()) + 1)

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    first: dict[int, int] = {}
    for group, key in zip(groups.tolist(), keys.tolist(), strict=True):
        parent[root(key)] = root(first.setdefault(group, key))
    return _in_order(np.array([root(key) for key in keys.tolist()]))


def _in_order(values: np.ndarray) -> np.ndarray:
    """The values numbered from 0 in the order in which they first come."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _choose(members: np.ndarray, wanted: int, chance: np.random.Generator) -> np.ndarray | None:
    """Whole clusters in random order until ``wanted`` rows are taken, leaving at least one row; None if impossible.

    A cluster far larger than what is missing stays in train: it would turn the split over.
    """
    sizes = np.bincount(members)
    taken = np.zeros(len(sizes), dtype=bool)
    total = 0
    for cluster in chance.permutation(len(sizes)):
        if total >= wanted:
            break
        if sizes[cluster] <= max(2 * (wanted - total), 1) and total + sizes[cluster] < len(members):
            taken[cluster] = True
            total += sizes[cluster]
    if not total and len(sizes) > 1:
        smallest = sizes.argmin()
        taken[smallest] = True
        total = sizes[smallest]
    return taken[members] if total else None
