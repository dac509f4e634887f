"""Texts that cannot be stored, and texts that show nothing. Imports nothing of the studio."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

_UNSEEN = ("Cc", "Cf", "Zs", "Zl", "Zp")  # control, format (zero width), spaces and separators
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # control letters but tabs and line ends
HALF = "half of a surrogate pair, such as an emoji that was cut in two"
HALF_REMEDY = "Cut texts between whole characters, or leave that character out."


def whole(text: str) -> bool:
    """Whether a text can be written as UTF-8: halves of surrogate pairs cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def half_at(value: Any, place: str = "") -> str | None:
    """The dotted place of the first text inside plain data that is not ``whole``; None where all are."""
    if isinstance(value, str):
        return None if whole(value) else place
    if isinstance(value, Mapping):
        pairs: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    else:
        return None
    for key, inner in pairs:
        here = ".".join(filter(None, (place, printable(str(key)))))
        if isinstance(key, str) and not whole(key):
            return here
        found = half_at(inner, here)
        if found is not None:
            return found
    return None


def tame(text: str) -> str:
    """A text for a terminal, without what would move its cursor, rename its window or colour what follows."""
    return _OBEYED.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n").replace("\r", "\n"))


def blank(text: str) -> bool:
    """Whether nothing of a text can be seen: empty, blanks, zero-width signs."""
    return all(unicodedata.category(sign) in _UNSEEN for sign in text)


def printable(text: str) -> str:
    """The text with halves of surrogate pairs (also bytes of file names) written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def listed(names: Iterable[Any], most: int = 20, quoted: bool = True, longest: int = 60) -> str:
    """Names with commas between; of very many the first, and how many more there are."""
    names = [str(name) for name in names]
    cut = [name if len(name) <= longest else name[: longest - 1] + "…" for name in names[:most]]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(repr, cut) if quoted else cut) + more
