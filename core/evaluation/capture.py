"""Capturing a CUDA graph so that a capture that breaks harms nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, **options: Any) -> Iterator[None]:
    """As ``torch.cuda.graph``; threads that pin memory for a loader go on meanwhile.

    After a capture that broke, the device's random numbers would go on being counted for the graph, and the next draw
    would raise: they get back what they had.
    """
    random = torch.cuda.default_generators[torch.cuda.current_device()]
    before = torch.Generator(random.device).set_state(random.get_state())
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local", **options):
            yield
    except Exception:
        random.graphsafe_set_state(before.graphsafe_get_state())
        raise


def reason(error: BaseException) -> str:
    """What went wrong first: leaving a capture that something broke raises once more."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
