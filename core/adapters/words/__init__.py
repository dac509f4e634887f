"""The vocabulary of mixtures. Every module of this package that defines words is found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from .base import WORDS, Down, Gate, Up, Word, parse_word, word

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["WORDS", "Down", "Gate", "Up", "Word", "parse_word", "word"]
