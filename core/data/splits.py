"""Training, validation and test rows: given by files or a column, or drawn by seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from core.data.checks import keys_of
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
    keys: list[bytes] | None = None
    chance = np.random.default_rng([seed, *task.encode()])
    for split, share, most in (("test", test, None), ("validation", validation, MOST_VALIDATION)):
        train = tables.get("train")
        if split in tables or not share or train is None:
            continue
        if split == "validation" and "test" not in tables and test:
            continue  # too few rows for a test split: too few for this one
        keys = keys_of(train) if keys is None else keys
        members = _clusters(groups, keys)
        wanted = max(1, round(share * len(train)))
        wanted = min(wanted, most) if most else wanted
        chosen = _choose(members, wanted, chance)
        if chosen is None:
            notes.append(
                f"{task}: no {split} split was drawn: its {len(train)} training rows cannot be parted. "
                "Give a file for it, or more rows."
            )
            continue
        tables[split] = train.filter(pa.array(chosen))
        tables["train"] = train.filter(pa.array(~chosen))
        groups = [group for group, taken in zip(groups, chosen, strict=True) if not taken]
        keys = [key for key, taken in zip(keys, chosen, strict=True) if not taken]
        notes.append(f"{task}: {len(tables[split])} {split} rows were drawn from train with seed {seed}.")
    return tables, notes


def _clusters(groups: Sequence[int], keys: Sequence[bytes]) -> np.ndarray:
    """A number per row, equal for rows that must stay together: of one group, or with equal inputs."""
    parent: dict[object, object] = {}

    def root(item: object) -> object:
        while parent.setdefault(item, item) != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for group, key in zip(groups, keys, strict=True):
        parent[root(group)] = root(key)
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(root(group), len(numbers)) for group in groups], dtype=np.int64)


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
