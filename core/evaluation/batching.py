"""Work through samples in batches: longest first, smaller after running out of memory, stopped on request."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from core.errors import OutOfMemoryError
from core.jobs.sinks import Cancelled, Sink

T = TypeVar("T")
R = TypeVar("R")


class Progress:
    """Counts rows towards ``total``, tells the sink about it once a second, and stops a cancelled job."""

    def __init__(self, sink: Sink, total: int) -> None:
        self.sink, self.total, self.done = sink, total, 0
        self._start = self._told = time.monotonic()

    def check(self) -> None:
        """Raise ``Cancelled`` where the sink says so."""
        if self.sink.cancelled():
            raise Cancelled

    def add(self, rows: int) -> None:
        self.done += rows
        self.check()
        now = time.monotonic()
        if now - self._told >= 1 or self.done >= self.total:
            self._told = now
            left = (now - self._start) / max(self.done, 1) * (self.total - self.done)
            self.sink.emit("progress", step=self.done, total=self.total, phase="scoring", seconds_left=round(left, 1))


def in_batches(
    samples: Sequence[T],
    work: Callable[[list[T]], list[R]],
    *,
    size: int,
    length: Callable[[T], int],
    done: Callable[[int], None] = lambda rows: None,
) -> list[R]:
    """``work`` on all samples in batches of ``size``, results in the samples' order.

    Samples of like length go together, the longest first, so that memory runs out early if it does; then the size is
    halved. Raises OutOfMemoryError where a single sample is too much.
    """
    order = sorted(range(len(samples)), key=lambda i: -length(samples[i]))
    results: dict[int, R] = {}
    start = 0
    while start < len(order):
        part = order[start : start + size]
        try:
            found = work([samples[i] for i in part])
        except torch.OutOfMemoryError:
            found = None
        if found is None:  # outside the handler: the traceback would keep the batch's tensors alive
            size = _half(len(part), length(samples[part[0]]))
            continue
        results.update(zip(part, found, strict=True))
        start += len(part)
        done(len(part))
    return [results[i] for i in range(len(samples))]


def _half(size: int, tokens: int) -> int:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if size <= 1:
        raise OutOfMemoryError(
            f"Scoring one sample of {tokens} tokens does not fit in the device's memory.",
            "Lower train.max_length, choose a smaller base, or load it with model.quantization 4bit.",
        )
    return size // 2
