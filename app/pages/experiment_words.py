"""The words of a mixture as forms and figures need them: names of their options, and a colour for each word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PARTS = ("down", "gate", "up")

Words = Mapping[str, Sequence[Mapping[str, Any]]]  # part -> words as ``Studio.drafts.words()`` describes them


def option_keys(words: Words, part: str, name: str) -> dict[str, str]:
    """Option of a word -> its name in the designer: ``down.dropout``, the same for all words that mean the same by it.

    Where two words of a part give one name different types, choices or defaults, the later has ``down.pool.dropout``.
    """
    first: dict[str, tuple[Any, ...]] = {}
    found: dict[str, str] = {}
    for word in words[part]:
        for option in word["options"]:
            meaning = (option["type"], tuple(option["choices"]), option["default"])
            alike = first.setdefault(option["name"], meaning) == meaning
            if word["name"] == name:
                found[option["name"]] = ".".join((part, *(() if alike else (name,)), option["name"]))
    return found


def options_in_use(words: Words, part: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The options of some words of a part, each once, named as in the designer without the part."""
    found: dict[str, dict[str, Any]] = {}
    for word in words[part]:
        if word["name"] in names:
            keys = option_keys(words, part, word["name"])
            for option in word["options"]:
                key = keys[option["name"]].partition(".")[2]
                found.setdefault(key, {**option, "name": key, "label": key.replace(".", " ")})
    return list(found.values())
