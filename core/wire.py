"""What ``Studio`` answers as JSON, and back: so that a studio elsewhere gives the same kinds of values.

A frame is ``{"columns": {name: values}, "attrs": {...}}``, times are ISO 8601, what is no finite number is null.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from core.errors import ConfigurationError

if TYPE_CHECKING:
    import pandas as pd

DEEPEST = 40  # levels of lists and mappings; a run has seven
WIDEST = 2**63  # no number reaches this
TIMES = ("at", "created", "started", "finished", "submitted", "cancel_requested")


class Frame:
    """Stands for a pandas frame in the table of calls, which is read where there is no pandas."""


class Row(dict):
    """Stands for a run or a job as plain data, whose times are ``datetime`` again behind the wire."""


def dumps(value: Any) -> bytes:
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def plain(value: Any) -> Any:
    """What JSON can say of a value that ``Studio`` answers."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        columns = {str(name): plain(value[name].tolist()) for name in value.columns}
        return {"columns": columns, "attrs": plain(value.attrs)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be sent.")


def decode(kind: Any, value: Any) -> Any:
    """``value`` as it came in JSON, as the ``kind`` that ``Studio`` answers.

    A kind is an annotation, ``module:name`` of a class, or a list of one kind or a tuple of several.
    """
    if isinstance(kind, str):
        module, _, name = kind.partition(":")
        kind = getattr(importlib.import_module(module), name)
    if isinstance(kind, list):
        return [decode(kind[0], item) for item in value]
    if isinstance(kind, tuple):
        return tuple(decode(part, item) for part, item in zip(kind, value, strict=True))
    if kind is Row:
        return _with_times(value)
    if kind is Frame or _is(kind, "DataFrame"):
        return _frame(value)
    if _is(kind, "ndarray"):
        import numpy as np

        return np.array(value, dtype=float)
    if kind is float:
        return math.nan if value is None else float(value)
    if hasattr(kind, "model_validate"):
        return kind.model_validate(value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        known = [field.name for field in dataclasses.fields(kind) if field.name in value]
        return kind(**{name: decode(hints[name], value[name]) for name in known})
    return _inside(kind, value)


def fit(data: Any) -> None:
    """Refuse what no setting can be: texts that cannot be stored, numbers without end, endless nesting.

    Raises:
        ConfigurationError: says which of these it is.
    """
    level = [data]
    for _ in range(DEEPEST):
        level = [item for one in level for item in _parts(one)]
        if not level:
            return
    raise ConfigurationError(f"Something is nested more than {DEEPEST} levels deep.", "Send less.")


def _parts(one: Any) -> list[Any]:
    if isinstance(one, str):
        if "\0" in one or not one.isascii() and one != one.encode("utf-8", "replace").decode("utf-8"):
            raise ConfigurationError("A text has letters that do not exist in UTF-8, or zero bytes.", "Remove them.")
    elif isinstance(one, int | float) and not -WIDEST < one < WIDEST:
        raise ConfigurationError("A number is too large, or none.", "Nothing here has 19 digits.")
    elif isinstance(one, dict):
        return [*one, *one.values()]
    return one if isinstance(one, list) else []


def _inside(kind: Any, value: Any) -> Any:
    """Lists, tuples, mappings and unions of kinds; anything else is as it came."""
    origin, parts = get_origin(kind), get_args(kind)
    if value is None or not parts:
        return value
    if origin in (Union, UnionType):
        return decode(next(part for part in parts if part is not type(None)), value)
    if origin is tuple and Ellipsis not in parts:
        return tuple(decode(part, item) for part, item in zip(parts, value, strict=True))
    if origin is list:
        return [decode(parts[0], item) for item in value]
    if origin is dict and parts[1] is Any:  # a run within an answer
        return _with_times(value)
    if origin is dict:
        return {key: decode(parts[1], item) for key, item in value.items()}
    return value


def _is(kind: Any, name: str) -> bool:
    return isinstance(kind, type) and kind.__name__ == name and kind.__module__.split(".")[0] in ("pandas", "numpy")


def _frame(value: dict[str, Any]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(value["columns"])
    frame.attrs |= value.get("attrs") or {}
    return frame


def _with_times(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_times(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: datetime.fromisoformat(item) if key in TIMES and isinstance(item, str) else _with_times(item)
        for key, item in value.items()
    }
