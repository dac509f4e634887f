"""The presets. A module of this package with a ``PRESET`` is one; nothing else has to know of it."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ...errors import ConfigurationError
from ..cells import Cell
from .base import LowRankOptions, MixtureOptions, Preset

if TYPE_CHECKING:
    from ...schema import MethodSpec, Spec

_PRESETS: dict[str, Preset] = {}


def register(preset: Preset) -> Preset:
    """Make a preset known; for methods that live outside this package."""
    known = _PRESETS.setdefault(preset.name, preset)
    if known is not preset:
        raise ValueError(f"there is already a method {preset.name!r}")
    return preset


def presets() -> dict[str, Preset]:
    """By name: the baseline first, one's own split last."""
    return dict(sorted(_PRESETS.items(), key=lambda item: (item[0] != "lora", item[0] == "split", item[0])))


def preset_named(name: str) -> Preset:
    if name in _PRESETS:
        return _PRESETS[name]
    if name == "base":
        raise ConfigurationError(
            "The method base adapts nothing, so there is nothing to train or count.", "Score the base by itself."
        )
    near = difflib.get_close_matches(name, _PRESETS, n=1)
    raise ConfigurationError(
        f"There is no method {name!r}.", f"Did you mean {near[0]}?" if near else f"There are {', '.join(_PRESETS)}."
    )


def options_of(method: MethodSpec) -> Spec:
    """The options of a method, checked."""
    data: dict[str, Any] = dict(method.options)
    within = "method.options"
    if method.cells:
        data["cells"] = method.cells
        within = "method"
    return preset_named(method.name).options.parse(data, within)


def resolve(method: MethodSpec) -> list[Cell]:
    """The cells of a method with its options; every problem becomes one ``ConfigurationError``."""
    preset, options = preset_named(method.name), options_of(method)
    try:
        return preset.cells(options)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigurationError(
            f"The options of {method.name} come to {'.'.join(map(str, first['loc']))} {str(first['input'])[:60]}: "
            f"{first['msg'].removeprefix('Value error, ').removeprefix('Input ')}.",
            "Change one of them.",
        ) from error


for _module in pkgutil.iter_modules(__path__):
    _found = getattr(importlib.import_module(f"{__name__}.{_module.name}"), "PRESET", None)
    if _found is not None:
        register(_found)

__all__ = [
    "LowRankOptions",
    "MixtureOptions",
    "Preset",
    "options_of",
    "preset_named",
    "presets",
    "register",
    "resolve",
]
