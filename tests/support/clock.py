"""The machine's clock as this process sees it: ``jump`` puts it forward or back, as a person or a time server does."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, tzinfo

import core.jobs.event_values
import core.jobs.sinks
import storage.types

HONEST = time.time


def jump(seconds: float) -> None:
    class Jumped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(seconds=seconds)

    for module in (storage.types, core.jobs.sinks, core.jobs.event_values):
        module.datetime = Jumped
    time.time = lambda: HONEST() + seconds
