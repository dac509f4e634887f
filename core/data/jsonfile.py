"""JSON in the layouts that people have: lines, arrays, columns, records under keys, natural instructions."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from typing import Any

from core.data.names import SPLIT_NAMES
from core.data.textfile import SourceFile
from core.errors import DataError

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
    value = _parse(name, text)
    if isinstance(value, list):
        rows = [(line, _object(name, f"line {line}", entry)) for line, entry in _entries(text)]
        return "line", _some(name, rows)
    if not isinstance(value, dict):
        raise DataError(f"{name} holds one {_kind(value)}, not rows.", "Write an array of objects, one per row.")
    if isinstance(value.get("Instances"), list):
        return "entry", _some(name, _natural_instructions(name, value))
    if isinstance(value.get("data"), list) and isinstance(value.get("columns"), list):  # pandas, orient="split"
        return "row", _some(name, [(i, dict(zip(value["columns"], r, strict=False))) for i, r in _count(value["data"])])
    lists = {key: entry for key, entry in value.items() if isinstance(entry, list)}
    if len(lists) == len(value) and value:
        if all(key.lower() in SPLIT_NAMES and _objects(entries) for key, entries in lists.items()):
            return "entry", _some(name, _by_split(lists))
        if not any(_objects(entries) for entries in lists.values()) or len(lists) > 1:
            return "row", _some(name, _columns(name, lists))
    nested = [key for key, entries in lists.items() if _objects(entries)]
    if len(nested) == 1 and not {"messages", "conversations"} & set(nested):
        return "entry", _some(name, [(i, dict(row)) for i, row in _count(lists[nested[0]])])
    if value and all(isinstance(entry, dict) for entry in value.values()):
        return "entry", _some(name, _under_keys(value))
    return "entry", [(1, value)]


def _parse(name: str, text: str, line: int | None = None) -> Any:
    collecting = gc.isenabled()
    gc.disable()  # text nested without end meets the recursion limit: nothing else may be finalised down there
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{name}, line {line or error.lineno}, column {error.colno}: {error.msg}.", _json_remedy(error)
        ) from error
    except (ValueError, RecursionError) as error:
        place = f", line {line}" if line else ""
        raise DataError(f"{name}{place}: {error}.", "Write plain objects with texts and numbers.") from error
    finally:
        if collecting:
            gc.enable()


def _json_remedy(error: json.JSONDecodeError) -> str:
    near = error.doc[max(0, error.pos - 1) : error.pos + 1]
    if "'" in near:
        return "JSON needs double quotation marks."
    if "Invalid control character" in error.msg:
        return 'Write line breaks inside a text as "\\n".'
    if "Extra data" in error.msg:
        return "Write one object a line (.jsonl), or all objects in one array."
    if error.pos >= len(error.doc.rstrip()):
        return "The text ends too early: was the file cut off?"
    return "Check commas, quotation marks and brackets there."


def _entries(text: str) -> Iterator[Placed]:
    """(line where it begins, value) of each entry of a JSON array that is known to be well formed."""
    decoder, position, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        if position >= len(text) or text[position] == "]":
            return
        line, counted = line + text.count("\n", counted, position), position
        value, position = decoder.raw_decode(text, position)
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
