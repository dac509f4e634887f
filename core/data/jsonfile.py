"""JSON in the layouts that people have: lines, arrays, columns, records under keys, natural instructions.

Lists of rows are read row by row; what has to be turned, such as columns, is read whole and so is limited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from core.data.jsonstream import WHOLE, lines, reading, refused_twice
from core.data.names import SPLIT_NAMES
from core.data.textfile import SourceFile
from core.errors import DataError
from core.texts import listed
from core.units import MIB

Placed = tuple[int, dict[str, Any]]
Rows = Callable[[], Iterator[Placed]]
FEW = 1000  # keys of an object that holds lists of rows


def line_rows(source: SourceFile) -> Iterator[Placed]:
    """(line, object) of a JSON-lines file; blank lines are skipped."""
    found = False
    for number, value in lines(source):
        found = True
        yield number, _object(source.name, f"line {number}", value)
    if not found:
        raise DataError(f"{source.name} holds only blank lines.", "Export the file again.")


def json_rows(source: SourceFile) -> tuple[str, Rows]:
    """What places are (line, row or entry), and what reads the rows of one JSON value anew at each call."""
    with reading(source) as reader:
        first = reader.peek()
        if first not in ("[", "{"):
            value = reader.value()
            reader.end()
            raise DataError(
                f"{source.name} holds one {_kind(value)}, not rows.", "Write an array of objects, one per row."
            )
    unit, rows = ("line", _array) if first == "[" else _layout(source)
    return unit, partial(_some, source, rows)


def _some(source: SourceFile, rows: Callable[[SourceFile], Iterator[Placed]]) -> Iterator[Placed]:
    found = False
    for row in rows(source):
        found = True
        yield row
    if not found:
        raise DataError(f"{source.name} has no rows.", "Write at least one object with an input and an output.")


def _array(source: SourceFile) -> Iterator[Placed]:
    with reading(source) as reader:
        for line, value in reader.values():
            yield line, _object(source.name, f"line {line}", value)
        reader.end()


@dataclass
class _Part:
    """What stands under a key: how many entries an array has, and how many of them are objects."""

    array: bool
    entries: int = 0
    objects: int = 0

    @property
    def rows(self) -> bool:
        return self.array and self.entries == self.objects > 0


def _layout(source: SourceFile) -> tuple[str, Callable[[SourceFile], Iterator[Placed]]]:
    """How the rows lie in one object, by what stands under its keys."""
    parts = _outline(source)
    lists = {key: part for key, part in parts.items() if part.array}
    if "Instances" in lists:
        return "entry", _natural_instructions
    if "data" in lists and "columns" in lists:  # pandas, orient="split"
        return "row", _by_position
    if len(lists) == len(parts) > 0:
        filled = [part for part in lists.values() if part.entries]
        if all(key.lower() in SPLIT_NAMES for key in lists) and all(part.rows for part in filled):
            return "entry", _by_split
        if not any(part.rows for part in filled) or len(filled) > 1:
            return "row", _columns(source.name, _whole(source))
    nested = [key for key, part in lists.items() if part.rows]
    if len(nested) == 1 and not {"messages", "conversations"} & set(nested):
        return "entry", partial(_nested, key=nested[0])
    value = _whole(source)
    if value and all(isinstance(entry, dict) for entry in value.values()):
        return "entry", _kept(_under_keys(value))
    return "entry", _kept([(1, value)])


def _outline(source: SourceFile) -> dict[str, _Part]:
    """What stands under each key of an object; the whole of it is well formed then."""
    parts: dict[str, _Part] = {}
    with reading(source) as reader:
        for key in reader.members():
            if key in parts:
                raise refused_twice(source.name, key)
            if len(parts) == FEW:
                _check_size(source)
            part = parts[key] = _Part(reader.peek() == "[")
            for _, value in reader.values():
                part.entries += 1
                part.objects += isinstance(value, dict)
        reader.end()
    return parts


def _member(source: SourceFile, wanted: str) -> Iterator[Any]:
    """The entries of the array under a key, or the one value that stands there."""
    with reading(source) as reader:
        for key in reader.members():
            values = (value for _, value in reader.values())
            if key == wanted:
                yield from values
                return
            for _ in values:
                pass


def _whole(source: SourceFile) -> Any:
    _check_size(source)
    with reading(source) as reader:
        return reader.value()


def _check_size(source: SourceFile) -> None:
    if (size := source.plain.stat().st_size) > WHOLE:
        raise DataError(
            f"{source.name} holds columns or rows under keys, which are read whole: {size / MIB:,.0f} MiB, where "
            f"{WHOLE // MIB} MiB are the most.",
            "Write an array of objects, or one object a line (.jsonl): those may be of any length.",
        )


def _kept(rows: list[Placed]) -> Callable[[SourceFile], Iterator[Placed]]:
    return lambda source: iter(rows)


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


def _nested(source: SourceFile, key: str) -> Iterator[Placed]:
    return enumerate(_member(source, key), start=1)


def _by_position(source: SourceFile) -> Iterator[Placed]:
    """The rows of ``{"columns": [...], "data": [[...], ...]}``."""
    name, columns = source.name, list(_member(source, "columns"))
    twice = next((one for i, one in enumerate(columns) if not isinstance(one, str) or one in columns[:i]), None)
    if twice is not None:
        raise DataError(
            f"{name}: its columns are {listed(columns)}.", "Give every column a name of its own, which is a text."
        )
    for place, row in enumerate(_member(source, "data"), start=1):
        if not isinstance(row, list) or len(row) != len(columns):
            values = f"{len(row)} values" if isinstance(row, list) else _kind(row)
            raise DataError(
                f"{name}, row {place}: {values} where {len(columns)} are expected.", "Give a value for each column."
            )
        yield place, dict(zip(columns, row, strict=True))


def _by_split(source: SourceFile) -> Iterator[Placed]:
    number = count(1)
    with reading(source) as reader:
        for key in reader.members():
            for _, row in reader.values():
                yield next(number), {**row, "split": SPLIT_NAMES[key.lower()]}


def _natural_instructions(source: SourceFile) -> Iterator[Placed]:
    parts = [part for part in _member(source, "Definition") if part]
    definition = "\n".join(str(part) for part in parts)
    for number, entry in enumerate(_member(source, "Instances"), start=1):
        row = _object(source.name, f"entry {number} of Instances", entry)
        yield number, {"instruction": definition, "input": row.get("input"), "output": row.get("output")}


def _columns(name: str, lists: dict[str, list[Any]]) -> Callable[[SourceFile], Iterator[Placed]]:
    lengths = {key: len(entries) for key, entries in lists.items()}
    longest = max(lengths.values())
    short = next((key for key, length in lengths.items() if length != longest), None)
    if short is not None:
        long = max(lengths, key=lengths.__getitem__)
        raise DataError(
            f"{name}: the column {short!r} has {lengths[short]} values, {long!r} has {longest}.",
            "Give every column the same number of values.",
        )
    return lambda source: enumerate(
        (dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)), 1
    )


def _under_keys(value: dict[str, dict[str, Any]]) -> list[Placed]:
    """``{"0": {...}, "1": {...}}``, or pandas' ``{"column": {"0": ..., "1": ...}}``."""
    inner = [list(entry) for entry in value.values()]
    if all(keys == inner[0] for keys in inner) and all(key.isdecimal() for key in inner[0]):
        return [(i, {column: entry[key] for column, entry in value.items()}) for i, key in enumerate(inner[0], start=1)]
    return [(i, dict(row)) for i, row in enumerate(value.values(), start=1)]
