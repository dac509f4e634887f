"""The fusion methods. A module of this package with ``METHODS`` holds some; nothing else has to know of them."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import TYPE_CHECKING

from core.errors import ConfigurationError

from .base import FusionMethod, FusionOptions

if TYPE_CHECKING:
    from core.schema import MethodSpec

_METHODS: dict[str, FusionMethod] = {}


def register(method: FusionMethod) -> FusionMethod:
    """Make a method known; for methods that live outside this package."""
    known = _METHODS.setdefault(method.name, method)
    if known is not method:
        raise ValueError(f"there is already a fusion method {method.name!r}")
    return method


def fusion_methods() -> dict[str, FusionMethod]:
    """By name, those that learn nothing first."""
    return dict(sorted(_METHODS.items(), key=lambda item: (item[1].learns, item[0] == "r_mtllmf", item[0])))


def fusion_method(name: str) -> FusionMethod:
    if name in _METHODS:
        return _METHODS[name]
    near = difflib.get_close_matches(name, _METHODS, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(fusion_methods())}."
    raise ConfigurationError(f"There is no fusion method {name!r}.", hint)


def options_of(method: MethodSpec) -> FusionOptions:
    """The options of a fused run's method, checked."""
    return fusion_method(method.name).options.parse(dict(method.options), "method.options")


for _module in pkgutil.iter_modules(__path__):
    for _method in getattr(importlib.import_module(f"{__name__}.{_module.name}"), "METHODS", ()):
        register(_method)

__all__ = ["FusionMethod", "FusionOptions", "fusion_method", "fusion_methods", "options_of", "register"]
