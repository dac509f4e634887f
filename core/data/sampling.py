"""The order in which a mixture of tasks is visited, a function of seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from core.errors import ConfigurationError

Strategy = Literal["proportional", "temperature", "uniform"]


def mixture_weights(sizes: Sequence[int], strategy: Strategy, temperature: float = 1.0) -> np.ndarray:
    """Share of each task: its size, its size to the power 1/T, or the same for all; tasks without rows get none."""
    sizes = np.asarray(sizes, dtype=np.float64)
    if strategy == "temperature" and temperature < 1:
        raise ConfigurationError(f"The temperature {temperature} is below 1.", "Use 1 (proportional) or more.")
    exponents = {"proportional": 1.0, "temperature": 1.0 / temperature, "uniform": 0.0}
    if strategy not in exponents:
        raise ConfigurationError(f"{strategy!r} is not a way of sampling.", f"Choose one of {', '.join(exponents)}.")
    weights = np.where(sizes > 0, np.maximum(sizes, 1) ** exponents[strategy], 0.0)
    if not weights.sum():
        raise ConfigurationError("No task has training rows.", "Upload a training split.")
    return weights / weights.sum()


def quotas(weights: np.ndarray, total: int) -> np.ndarray:
    """``total`` samples by weight with the largest remainders; each task with weight gets at least one."""
    exact = weights * total
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: total - counts.sum()]] += 1
    for task in np.flatnonzero((weights > 0) & (counts == 0)):
        if counts.max() > 1:
            counts[counts.argmax()] -= 1
            counts[task] = 1
    return counts


class MixtureSampler:
    """Epochs of a mixture as flat indices (task by task, row by row), for torch's ``DataLoader`` and ``Trainer``.

    An epoch has as many samples as there are rows, whatever the strategy. Each task gets an exact quota of it, spread
    evenly; it walks through permutations of its rows and goes on in the next epoch where it stopped, so no row comes
    twice before every row of its task came once. ``position`` is the offset in the epoch from which iteration starts.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        strategy: Strategy = "proportional",
        temperature: float = 1.0,
        seed: int = 0,
        epoch: int = 0,
        position: int = 0,
    ) -> None:
        self.sizes = [int(size) for size in sizes]
        self.weights = mixture_weights(self.sizes, strategy, temperature)
        self.quotas = quotas(self.weights, sum(self.sizes))
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)])
        self.seed, self.epoch, self.position = seed, epoch, position

    def __len__(self) -> int:
        """Samples of a whole epoch."""
        return sum(self.sizes)

    def __iter__(self) -> Iterator[int]:
        order = self.order(self.epoch)
        flat = self.offsets[order[:, 0]] + order[:, 1]
        yield from flat[self.position :].tolist()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self, epoch: int) -> np.ndarray:
        """The epoch's samples as (task, row), shape (length, 2)."""
        chance = np.random.default_rng([self.seed, 1, epoch])
        tasks, rows, places = [], [], []
        for task, quota in enumerate(self.quotas.tolist()):
            tasks.append(np.full(quota, task))
            rows.append(self._walk(task, epoch * quota, quota))
            places.append((np.arange(quota) + chance.random(quota)) / max(quota, 1))
        by_place = np.argsort(np.concatenate(places), kind="stable")
        return np.stack([np.concatenate(tasks), np.concatenate(rows)], axis=1)[by_place]

    def _walk(self, task: int, start: int, count: int) -> np.ndarray:
        """``count`` rows from ``start`` on in the endless row of permutations of one task."""
        size = self.sizes[task]
        if not count:
            return np.zeros(0, dtype=np.int64)
        rounds = range(start // size, (start + count - 1) // size + 1)
        walk = [np.random.default_rng([self.seed, 2, task, number]).permutation(size) for number in rounds]
        skip = start - rounds.start * size
        return np.concatenate(walk)[skip : skip + count]
