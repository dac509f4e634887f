"""JSON in the layouts that people have: lines, arrays, columns, records under keys, natural instructions."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from typing import Any

from core.data.names import SPLIT_NAMES
from core.data.textfile import SourceFile
from core.errors import DataError
from core.texts import listed

Placed = tuple[int, dict[str, Any]]


def line_rows(source: SourceFile) -> Iterator[Placed]:
    """(line, object) of a JSON-lines file; blank lines are skipped."""
    found = False
    with source.plain.open(encoding=source.encoding) as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found = True
                    yield number, _object(source.name, f"line {number}", _parse(source.name, line, number))
        except UnicodeDecodeError as error:
            raise DataError(f"{source.name}: bytes that are not {source.encoding}.", "Save it as UTF-8.") from error
    if not found:
        raise DataError(f"{source.name} holds only blank lines.", "Export the file again.")


def json_rows(name: str, text: str) -> tuple[str, list[Placed]]:
    """What places are (line, row or entry) and the rows of one JSON value."""
    array = text.lstrip()[:1] == "["  # its entries are read one by one below, where their lines are known
    value = _parse(name, text, decode=json.loads if array else DECODER.decode)
    if isinstance(value, list):
        rows = [(line, _object(name, f"line {line}", entry)) for line, entry in _entries(name, text)]
        return "line", _some(name, rows)
    if not isinstance(value, dict):
        raise DataError(f"{name} holds one {_kind(value)}, not rows.", "Write an array of objects, one per row.")
    if isinstance(value.get("Instances"), list):
        return "entry", _some(name, _natural_instructions(name, value))
    if isinstance(value.get("data"), list) and isinstance(value.get("columns"), list):  # pandas, orient="split"
        return "row", _some(name, _by_position(name, value["columns"], value["data"]))
    lists = {key: entry for key, entry in value.items() if isinstance(entry, list)}
    if len(lists) == len(value) and value:
        filled = [entries for entries in lists.values() if entries]
        if all(key.lower() in SPLIT_NAMES for key in lists) and all(map(_objects, filled)):
            return "entry", _some(name, _by_split(lists))
        if not any(map(_objects, filled)) or len(filled) > 1:
            return "row", _some(name, _columns(name, lists))
    nested = [key for key, entries in lists.items() if _objects(entries)]
    if len(nested) == 1 and not {"messages", "conversations"} & set(nested):
        return "entry", _some(name, [(i, dict(row)) for i, row in _count(lists[nested[0]])])
    if value and all(isinstance(entry, dict) for entry in value.values()):
        return "entry", _some(name, _under_keys(value))
    return "entry", [(1, value)]


def _parse(name: str, text: str, line: int | None = None, decode: Callable[[str], Any] | None = None) -> Any:
    collecting = gc.isenabled()
    gc.disable()  # text nested without end meets the recursion limit: nothing else may be finalised down there
    try:
        return (decode or DECODER.decode)(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{name}, line {line or error.lineno}, column {error.colno}: {error.msg}.", _json_remedy(error, bool(line))
        ) from error
    except _Twice as error:
        raise _refused_twice(error, f"{name}, line {line}" if line else name) from None
    except (ValueError, RecursionError) as error:
        place = f", line {line}" if line else ""
        raise DataError(f"{name}{place}: {error}.", "Write plain objects with texts and numbers.") from error
    finally:
        if collecting:
            gc.enable()


class _Twice(Exception):
    """A key that an object has twice, of which one value would be lost."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(next(key for key in keys if keys.count(key) > 1))
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _refused_twice(error: _Twice, place: str) -> DataError:
    return DataError(f"{place}: the key {str(error)[:60]!r} stands twice in one object.", "Keep one of the two.")


def _json_remedy(error: json.JSONDecodeError, one_line: bool) -> str:
    near = error.doc[max(0, error.pos - 1) : error.pos + 1]
    if "'" in near:
        return "JSON needs double quotation marks."
    if error.doc[error.pos : error.pos + 1] in ("#", "/"):
        return "JSON knows no comments: remove them."
    if "escape" in error.msg:
        return "Write every backslash inside a text twice."
    if "Invalid control character" in error.msg:
        return 'Write line breaks inside a text as "\\n".'
    if "Extra data" in error.msg:
        return "Write one object a line (.jsonl), or all objects in one array."
    if error.doc[: error.pos].rstrip()[-1:] == "," and error.doc[error.pos : error.pos + 1] in ("}", "]"):
        return "Remove the comma before the closing bracket."
    if error.pos >= len(error.doc.rstrip()) or "Unterminated" in error.msg:
        known = " Lines of a .jsonl file hold whole objects; name it .json if they go over several." if one_line else ""
        return f"The text ends too early: was the file cut off?{known}"
    return "Check commas, quotation marks and brackets there."


def _entries(name: str, text: str) -> Iterator[Placed]:
    """(line where it begins, value) of each entry of a JSON array that is known to be well formed."""
    position, line, counted = text.index("[") + 1, 1, 0
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        if position >= len(text) or text[position] == "]":
            return
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = DECODER.raw_decode(text, position)
        except _Twice as error:
            raise _refused_twice(error, f"{name}, line {line}") from None
        yield line, value


def _object(name: str, place: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise DataError(
        f"{name}, {place}: {_kind(value)} where an object is expected.",
        'Write every row as an object, such as {"input": "...", "output": "..."}.',
    )


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _objects(entries: list[Any]) -> bool:
    return bool(entries) and all(isinstance(entry, dict) for entry in entries)


def _some(name: str, rows: list[Placed]) -> list[Placed]:
    if not rows:
        raise DataError(f"{name} has no rows.", "Write at least one object with an input and an output.")
    return rows


def _count(entries: list[Any]) -> Iterator[tuple[int, Any]]:
    return enumerate(entries, start=1)


def _by_position(name: str, columns: list[Any], rows: list[Any]) -> list[Placed]:
    """The rows of ``{"columns": [...], "data": [[...], ...]}``."""
    twice = next((one for i, one in enumerate(columns) if not isinstance(one, str) or one in columns[:i]), None)
    if twice is not None:
        raise DataError(
            f"{name}: its columns are {listed(columns)}.", "Give every column a name of its own, which is a text."
        )
    for place, row in _count(rows):
        count = f"{len(row)} values" if isinstance(row, list) else _kind(row)
        if not isinstance(row, list) or len(row) != len(columns):
            raise DataError(
                f"{name}, row {place}: {count} where {len(columns)} are expected.", "Give a value for each column."
            )
    return [(place, dict(zip(columns, row, strict=True))) for place, row in _count(rows)]


def _columns(name: str, lists: dict[str, list[Any]]) -> list[Placed]:
    lengths = {key: len(entries) for key, entries in lists.items()}
    longest = max(lengths.values())
    short = next((key for key, length in lengths.items() if length != longest), None)
    if short is not None:
        long = max(lengths, key=lengths.__getitem__)
        raise DataError(
            f"{name}: the column {short!r} has {lengths[short]} values, {long!r} has {longest}.",
            "Give every column the same number of values.",
        )
    return [(i + 1, {key: entries[i] for key, entries in lists.items()}) for i in range(longest)]


def _by_split(lists: dict[str, list[Any]]) -> list[Placed]:
    rows = [{**row, "split": SPLIT_NAMES[key.lower()]} for key, entries in lists.items() for row in entries]
    return list(_count(rows))


def _under_keys(value: dict[str, dict[str, Any]]) -> list[Placed]:
    """``{"0": {...}, "1": {...}}``, or pandas' ``{"column": {"0": ..., "1": ...}}``."""
    inner = [list(entry) for entry in value.values()]
    if all(keys == inner[0] for keys in inner) and all(key.isdecimal() for key in inner[0]):
        return [(i, {column: entry[key] for column, entry in value.items()}) for i, key in _count(inner[0])]
    return [(i, dict(row)) for i, row in _count(list(value.values()))]


def _natural_instructions(name: str, value: dict[str, Any]) -> list[Placed]:
    definition = value.get("Definition") or ""
    if isinstance(definition, list):
        definition = "\n".join(str(part) for part in definition)
    rows = []
    for number, entry in _count(value["Instances"]):
        row = _object(name, f"entry {number} of Instances", entry)
        rows.append((number, {"instruction": definition, "input": row.get("input"), "output": row.get("output")}))
    return rows
