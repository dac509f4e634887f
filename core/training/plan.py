"""When things happen in a run: how many steps, and at which of them to validate, save and record."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from torch.utils.data import Sampler

from core.data.sampling import MixtureSampler
from core.schema import TrainSpec

WINDOW = 16  # batches among which samples of like lengths are put together


@dataclass(frozen=True)
class Plan:
    """The steps of one run; fixed by settings and data, so every attempt follows the same plan."""

    total: int  # optimiser steps
    samples: int  # samples of all micro-batches of all steps
    warmup: int
    evaluate_every: int
    checkpoint_every: int
    moments: frozenset[int]  # steps after which routing is recorded; 0 is before the first step

    @classmethod
    def of(cls, spec: TrainSpec, rows: int) -> Plan:
        """``rows``: samples of one pass over the mixture."""
        per_step = spec.batch_size * spec.gradient_accumulation
        total = spec.steps or max(1, math.ceil(spec.epochs * rows / per_step))
        moments = {round(total * k / spec.routing_moments) for k in range(spec.routing_moments)}
        return cls(
            total=total,
            samples=total * per_step,
            warmup=round(spec.warmup * total),
            evaluate_every=spec.evaluate_every or max(1, math.ceil(total / 10)),
            checkpoint_every=spec.checkpoint_every or max(1, math.ceil(total / 5)),
            moments=frozenset(moments),
        )

    def evaluates(self, step: int) -> bool:
        return step == self.total or (step > 0 and step % self.evaluate_every == 0)

    def saves(self, step: int) -> bool:
        return step == self.total or step % self.checkpoint_every == 0


class RunOrder(Sampler[int]):
    """The samples of a whole run in order: epoch after epoch of a mixture, without a break between them.

    Trainer sees one epoch of ``samples`` items, so a resumed run skips to its place by counting alone.
    """

    def __init__(self, mixture: MixtureSampler, samples: int) -> None:
        self.mixture, self.samples = mixture, samples

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        left, epoch = self.samples, 0
        while left > 0:
            order = self.mixture.order(epoch)[:left]
            yield from (self.mixture.offsets[order[:, 0]] + order[:, 1]).tolist()
            left, epoch = left - len(order), epoch + 1


class LengthOrder(RunOrder):
    """The same samples within windows of ``WINDOW`` batches, in batches of like lengths that come in drawn order.

    ``lengths``: tokens of each row, by flat index. A window is short, so the shares of the tasks stay.
    """

    def __init__(self, mixture: MixtureSampler, samples: int, lengths: np.ndarray, batch: int) -> None:
        super().__init__(mixture, samples)
        self.lengths, self.batch = lengths, batch

    def __iter__(self) -> Iterator[int]:
        rows = super().__iter__()  # a window at a time: a run may have more samples than memory has room for
        for start in range(0, self.samples, WINDOW * self.batch):
            window = np.fromiter(islice(rows, WINDOW * self.batch), np.int64)
            batches = window[np.argsort(self.lengths[window], kind="stable")].reshape(-1, self.batch)
            yield from np.random.default_rng([self.mixture.seed, 3, start]).permutation(batches).flatten().tolist()
