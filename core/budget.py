"""Methods of equal size: rank or experts chosen so that their trainable parameters are as equal as they can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from core import catalog
from core.adapters.methods import options_of, preset_named
from core.catalog import BaseShapes
from core.errors import ConfigurationError
from core.schema import MethodSpec

Over = Literal["rank", "experts"]
MOST = {"rank": 1024, "experts": 256}  # as far as a cell goes


@dataclass(frozen=True)
class Share:
    """One method at the budget: what was asked, what it became, and how far from the budget it stays."""

    method: MethodSpec
    asked: MethodSpec
    option: Over
    before: Any
    after: Any
    was: int
    trainable: int
    target: int

    @property
    def difference(self) -> int:
        return self.trainable - self.target

    def row(self) -> dict[str, Any]:
        """For tables and JSON."""
        return {
            "method": self.method.name,
            "badge": preset_named(self.method.name).badge,
            "option": self.option,
            "before": self.before,
            "after": self.after,
            "was": self.was,
            "trainable": self.trainable,
            "difference": self.difference,
            "share": self.difference / self.target,
            "spec": self.method.model_dump(mode="json", exclude_defaults=True) | {"name": self.method.name},
        }


def equal(
    methods: Sequence[MethodSpec], base: BaseShapes, target: int | MethodSpec, tasks: int = 1, over: Over = "rank"
) -> list[Share]:
    """The methods with ``over`` set so that each comes as near to ``target`` trainable parameters as it can.

    ``target``: a number, or a method whose own number counts. Every other option stays as it is, alpha too.

    Raises:
        ConfigurationError: a method has no such option, or the target lies beyond what it can reach.
    """
    if isinstance(target, MethodSpec):
        target = catalog.trainable_parameters(target, base, tasks)
    if target < 1:
        raise ConfigurationError(f"{target} trainable parameters is no budget.", "Name a number above zero.")
    return [_share(method, base, target, tasks, over) for method in methods]


def _share(method: MethodSpec, base: BaseShapes, target: int, tasks: int, over: Over) -> Share:
    dial = _cells_dial(method, over) if method.cells else _option_dial(method, over)

    @cache
    def count(step: int) -> int | None:
        """Parameters at one step of the dial; None where the method refuses the value."""
        try:
            return catalog.trainable_parameters(dial.spec(step), base, tasks)
        except ConfigurationError:
            return None

    was = catalog.trainable_parameters(method, base, tasks)
    low, high = _last(count, dial.now, dial.low), _last(count, dial.now, dial.high)
    least, most = count(low), count(high)
    if least == most:
        raise ConfigurationError(
            f"{method.name} has {least:,} trainable parameters whatever its {over} is.",
            f"Solve for {'experts' if over == 'rank' else 'rank'}, or leave it out.",
        )
    if not least <= target <= most:
        end, number, step = ("least", least, low) if target < least else ("most", most, high)
        raise ConfigurationError(
            f"{method.name} cannot have {target:,} trainable parameters: at {end} it has {number:,}, with {over} "
            f"{dial.value(step)}.",
            f"Choose a budget between {least:,} and {most:,}, or other projections.",
        )
    step = _nearest(count, low, high, target)
    return Share(dial.spec(step), method, over, dial.before, dial.value(step), was, count(step), target)


@dataclass(frozen=True)
class _Dial:
    """A method as a function of one whole number."""

    before: Any
    now: int
    low: int
    high: int
    value: Callable[[int], Any]
    spec: Callable[[int], MethodSpec]


def _option_dial(method: MethodSpec, over: Over) -> _Dial:
    fields = preset_named(method.name).options.model_fields
    if over not in fields:
        other = "experts" if over == "rank" else "rank"
        hint = f"Solve for {other} instead." if other in fields else "Leave it out of the budget."
        raise ConfigurationError(f"{method.name} has no option {over}.", hint)
    before = getattr(options_of(method), over)
    bounds = next(one["bounds"] for one in catalog.options_of(preset_named(method.name).options) if one["name"] == over)
    low, high = int(bounds.get("minimum", 1)), int(bounds.get("maximum", MOST[over]))
    if isinstance(before, list):
        low, high = low * len(before), high * len(before)

    def value(step: int) -> Any:
        return _spread(before, step) if isinstance(before, list) else step

    def spec(step: int) -> MethodSpec:
        return method.model_copy(update={"options": {**method.options, over: value(step)}})

    return _Dial(before, sum(before) if isinstance(before, list) else before, low, high, value, spec)


def _cells_dial(method: MethodSpec, over: Over) -> _Dial:
    """All cells of a split turned together; frozen ones have nothing to turn."""
    free = [cell for cell in method.cells if not cell.get("frozen")]
    default = {"rank": 8, "experts": 1}[over]
    before = [cell.get(over, default) for cell in free]
    lists = [item for one in before for item in (one if isinstance(one, list) else [one])]
    scale = max(lists, default=1)

    def turned(number: int, step: int) -> int:
        return max(1, round(number * step / scale))

    def value(step: int) -> Any:
        return [[turned(n, step) for n in one] if isinstance(one, list) else turned(one, step) for one in before]

    def spec(step: int) -> MethodSpec:
        values = iter(value(step))
        cells = [cell if cell.get("frozen") else {**cell, over: next(values)} for cell in method.cells]
        return method.model_copy(update={"cells": cells})

    return _Dial(before, scale, 1, MOST[over], value, spec)


def _spread(shape: Sequence[int], total: int) -> list[int]:
    """``total`` in the proportions of ``shape``, each at least 1; the largest remainders round up."""
    exact = [total * n / sum(shape) for n in shape]
    found = [max(1, int(n)) for n in exact]
    order = sorted(range(len(shape)), key=lambda i: (found[i] - exact[i], i))
    for i in order * 2:
        if sum(found) >= total:
            break
        found[i] += 1
    return found


def _last(count: Callable[[int], int | None], good: int, end: int) -> int:
    """The step nearest to ``end`` that the method takes, where it takes ``good``: what it takes hangs together."""
    if count(end) is not None:
        return end
    while abs(end - good) > 1:
        middle = (good + end) // 2
        good, end = (good, middle) if count(middle) is None else (middle, end)
    return good


def _nearest(count: Callable[[int], int | None], low: int, high: int, target: int) -> int:
    """The step whose count is nearest to the target, by bisection: more of either never makes a method smaller."""
    while high - low > 1:
        middle = (low + high) // 2
        around = [*range(middle, high), *range(middle - 1, low, -1)]  # a method may refuse single values
        probe = next((step for step in around if count(step) is not None), None)
        if probe is None:
            break
        low, high = (probe, high) if count(probe) <= target else (low, probe)
    return min((low, high), key=lambda step: (abs(count(step) - target), step))
