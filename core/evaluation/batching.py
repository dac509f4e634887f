"""Work through samples in batches: longest first, smaller after running out of memory, stopped on request."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from core.errors import OutOfMemoryError
from core.jobs.sinks import Cancelled, Sink

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2  # batches that the device may have to do while the host prepares the next one


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


class Coming:
    """A tensor on its way to the host, which goes on meanwhile."""

    def __init__(self, tensor: Tensor) -> None:
        self._here = tensor.to("cpu", non_blocking=True)
        self._copied = None
        if tensor.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(tensor.device))

    def numpy(self) -> np.ndarray:
        """Waits for this copy alone, not for what was asked of the device after it."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._here.numpy()


def in_batches(
    samples: Sequence[T],
    work: Callable[[list[T]], list[R] | Callable[[], list[R]]],
    *,
    size: int | Callable[[int], int],
    length: Callable[[T], int],
    done: Callable[[int], None] = lambda rows: None,
) -> list[R]:
    """``work`` on all samples in batches of ``size``, results in the samples' order.

    ``size`` may depend on the length of a batch's longest sample. Samples of like length go together, the longest
    first, so that memory runs out early if it does; then the size is halved. ``work`` may return a function that waits
    for its results: it is called when the next batches are under way. Raises OutOfMemoryError where a single sample is
    too much.
    """
    lengths = [length(sample) for sample in samples]
    order = sorted(range(len(samples)), key=lambda i: -lengths[i])
    results: dict[int, R] = {}
    under_way: deque[tuple[list[int], Callable[[], list[R]]]] = deque()

    def settle() -> None:
        places, found = under_way.popleft()
        results.update(zip(places, found(), strict=True))
        done(len(places))

    start, share = 0, 1.0
    while start < len(order):
        longest = lengths[order[start]]
        wanted = size if isinstance(size, int) else size(longest)
        part = order[start : start + max(1, int(wanted * share))]
        try:
            found = work([samples[i] for i in part])
        except torch.OutOfMemoryError:
            found = None
        if found is None:  # outside the handler: the traceback would keep the batch's tensors alive
            share = _half(len(part), longest) / wanted
            continue
        under_way.append((part, found if callable(found) else lambda found=found: found))
        while len(under_way) > (AHEAD if callable(found) else 0):
            settle()
        start += len(part)
    while under_way:
        settle()
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
