"""Work that takes its time and says how far it is, as a generator for a handler."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")
SECONDS = 0.5  # between two sentences on a page


class Gone(Exception):
    """Nobody waits any more."""


def sentences(work: Callable[[Callable[[str], None]], T], show: Callable[[str], T]) -> Iterator[T]:
    """What ``work`` returns, and before it what it tells its argument, as ``show`` puts it, twice a second at most.

    When the browser goes, the next sentence ends the work.
    """
    said: queue.Queue[tuple[str, Any]] = queue.Queue()
    gone = threading.Event()

    def tell(text: str) -> None:
        if gone.is_set():
            raise Gone
        said.put(("told", text))

    def run() -> None:
        try:
            said.put(("done", work(tell)))
        except BaseException as error:  # raised again where somebody waits
            said.put(("failed", error))

    thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True, name="waited-for")
    thread.start()
    try:
        yield from _heard(said, show)
    finally:
        gone.set()


def _heard(said: queue.Queue[tuple[str, Any]], show: Callable[[str], T]) -> Iterator[T]:
    newest: str | None = None
    due = time.monotonic() + SECONDS
    while True:
        try:
            kind, value = said.get(timeout=max(0.0, due - time.monotonic()))
        except queue.Empty:
            due = time.monotonic() + SECONDS
            if newest is not None:
                yield show(newest)
                newest = None
            continue
        if kind == "failed":
            raise value
        if kind == "done":
            yield value
            return
        newest = value
