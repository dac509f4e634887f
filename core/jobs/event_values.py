"""Events and what stands in them, made fit for every database: whoever wrote them, nothing in them is trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any


def parse(line: bytes) -> Iterator[dict[str, Any]]:
    """The event of a line, if there is one; behind half a line (a full disk, a kill) a whole one may follow."""
    for text in (line, line[line.rfind(b'{"run"') :] if line.rfind(b'{"run"') > 0 else b""):
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            yield event
        return


def time(event: dict[str, Any]) -> datetime:
    try:
        at = datetime.fromisoformat(event["at"])
    except (KeyError, TypeError, ValueError):
        return datetime.now(UTC)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def entry(value: Any) -> float | str | bool | None:
    """A number (null where it is not finite), a truth value or a text."""
    if value is None or isinstance(value, bool | int):
        return value
    return finite(value) if isinstance(value, float) else text(value, 300)


def finite(value: Any) -> float | None:
    number = None if value is None else float(value)
    return number if number is not None and math.isfinite(number) else None


def whole(value: Any) -> int | None:
    if not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 2**53:
        return None
    return int(value)


def step(event: dict[str, Any]) -> int:
    return count(event["step"], 31)


def count(value: Any, bits: int) -> int:
    number = int(value)
    if not 0 <= number < 2**bits:
        raise ValueError(f"not a count of {bits} bits")
    return number


def text(value: Any, longest: int = 20_000) -> str:
    """Text that every database takes: no lone surrogates, no null characters."""
    text = "" if value is None else str(value)
    return text[:longest].encode("utf-8", "replace").decode().replace("\0", " ")
