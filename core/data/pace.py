"""How far the reading of files is, and how long the rest of it will take."""

from __future__ import annotations

import time
from collections.abc import Sequence

from core.units import size

SOON = 2.0  # seconds after which an estimate is worth something


class Pace:
    """Measures by bytes: ``sizes`` are those of the files, in the order in which they are read."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes, self._began = sizes, time.monotonic()

    def said(self, file: int, share: float) -> str:
        """``, 40% of 2.0 GiB, about 3 min left``: when ``share`` of the file of this number is read."""
        total = sum(self._sizes)
        done = (sum(self._sizes[:file]) + share * self._sizes[file]) / max(1, total)
        passed = time.monotonic() - self._began
        if not 0 < done < 1 or passed < SOON:
            return ""
        return f", {done:.0%} of {size(total)}, about {_span(passed / done - passed)} left"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
