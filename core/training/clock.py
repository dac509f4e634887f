"""The time a run takes, and what it says and hears about once a second."""

from __future__ import annotations

import math
import time

from core.jobs.sinks import Sink

POLL_SECONDS = 0.5
PROGRESS_SECONDS = 1.0


class Clock:
    """Time of the steps alone, progress about once a second, and a look at the cancel flag twice a second."""

    def __init__(self, sink: Sink, total: int) -> None:
        self.sink, self.total = sink, total
        self._mark = self._reported = time.monotonic()
        self._polled = -math.inf
        self._pace: float | None = None  # seconds per step, a moving average
        self._step = 0

    def start(self, step: int) -> None:
        self._mark = self._reported = time.monotonic()
        self._step = step
        self.sink.emit("progress", step=step, total=self.total, phase="training", seconds_left=None)

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        return seconds

    def report(self, step: int) -> None:
        now = time.monotonic()
        if now - self._reported < PROGRESS_SECONDS and step < self.total:
            return
        if step > self._step:
            pace = (now - self._reported) / (step - self._step)
            self._pace = pace if self._pace is None else 0.7 * self._pace + 0.3 * pace
        left = None if self._pace is None else round(self._pace * (self.total - step), 1)
        self.sink.emit("progress", step=step, total=self.total, phase="training", seconds_left=left)
        self._reported, self._step = now, step

    def asked_to_stop(self) -> bool:
        now = time.monotonic()
        if now - self._polled < POLL_SECONDS:
            return False
        self._polled = now
        return self.sink.cancelled()
