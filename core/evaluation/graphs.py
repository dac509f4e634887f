"""A decoding step as a CUDA graph: one launch for the thousands of small kernels that a token takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from core.evaluation.capture import capturing, reason

log = logging.getLogger("tessera.inference")

AGREE = 0.25  # of the logits' standard deviation: other shapes round otherwise, another computation is further away

Step = Callable[[Tensor], Tensor]

_trusted: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # bases whose steps a graph can hold, or cannot


def possible(base: Any) -> bool:
    """Whether steps of this base are to be recorded, as far as is known."""
    return base.device.type == "cuda" and _trusted.get(base, True)


def refuse(base: Any, reason: str) -> None:
    """From now on every step of this base is launched kernel by kernel."""
    _trusted[base] = False
    log.warning("answers are computed without CUDA graphs: %s", reason)


@contextmanager
def launched(base: Any, wanted: bool = True) -> Iterator[None]:
    """Meanwhile, if ``wanted``, every step of this base is launched kernel by kernel."""
    before = _trusted.get(base)
    if wanted:
        _trusted[base] = False
    try:
        yield
    finally:
        if wanted and before is None:
            del _trusted[base]
        elif wanted:
            _trusted[base] = before


def agreed(base: Any, exact: Step, steady: Step, ids: Tensor) -> Tensor | None:
    """The logits of a step whose shapes do not change; None where the base computes something else with them."""
    found = steady(ids)
    if base not in _trusted:
        wanted = exact(ids)
        if float((found - wanted).abs().max()) > AGREE * float(wanted.std()):
            refuse(base, "this base depends on the exact length of its keys")
            return None
        _trusted[base] = True
    return found


class StepGraph:
    """A recorded step. Calling it replays it; what it returns is overwritten by the next call."""

    def __init__(self, step: Step, ids: Tensor) -> None:
        self._ids = ids.clone()
        self._graph = torch.cuda.CUDAGraph()
        with capturing(self._graph):
            self._logits = step(self._ids)

    @classmethod
    def recorded(cls, base: Any, step: Step, ids: Tensor) -> StepGraph | None:
        """None where a step cannot be recorded, as it waits for the device or asks what is on it."""
        try:
            return cls(step, ids)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            refuse(base, reason(error))
            return None

    def __call__(self, ids: Tensor) -> Tensor:
        self._ids.copy_(ids)
        self._graph.replay()
        return self._logits
