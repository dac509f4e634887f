"""What many tabs look at is made once for all of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")
MOST = 256


class Shared:
    """Values by key, each with the stamp of what it was made from; of the same key the newest one is kept."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()

    def of(self, key: Hashable, stamp: Hashable, make: Callable[[], T]) -> T:
        """The value for ``stamp``; who asks while it is being made waits for it. An error is raised and not kept."""
        with self._lock:
            kept = self._kept.setdefault(key, _Kept())
            self._kept.move_to_end(key)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        with kept.lock:
            if kept.stamp != (stamp,):
                kept.value, kept.stamp = make(), (stamp,)
            return kept.value


class _Kept:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stamp: tuple[Hashable, ...] = ()
        self.value: Any = None
