"""The one form in which rows are stored: eight columns, missing is an empty string or list."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

Row = dict[str, Any]

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("system", pa.string()),
        ("instruction", pa.string()),
        ("input", pa.string()),
        ("output", pa.string()),
        ("references", pa.list_(pa.string())),
        ("choices", pa.list_(pa.string())),
        ("history", pa.list_(_MESSAGE)),
    ]
)
COLUMNS = tuple(SCHEMA.names)
TEXT_COLUMNS = ("task", "system", "instruction", "input", "output")
LIST_COLUMNS = ("references", "choices", "history")


def canonical(row: Mapping[str, Any]) -> Row:
    """``row`` with all eight columns, in order; other keys are dropped."""
    texts = {name: row.get(name) or "" for name in TEXT_COLUMNS}
    return texts | {name: list(row.get(name) or ()) for name in LIST_COLUMNS}


def to_table(rows: Iterable[Mapping[str, Any]] | pa.Table) -> pa.Table:
    """Rows as an Arrow table with the canonical schema."""
    if isinstance(rows, pa.Table):
        return rows if rows.schema.equals(SCHEMA) else rows.select(COLUMNS).cast(SCHEMA)
    return pa.Table.from_pylist([canonical(row) for row in rows], schema=SCHEMA)


def to_rows(table: pa.Table | pa.RecordBatch) -> list[Row]:
    return [canonical(row) for row in table.to_pylist()]


def iterate(table: pa.Table, size: int = 512) -> Iterator[Row]:
    """The rows of a table, ``size`` of them as Python objects at a time."""
    for batch in table.to_batches(max_chunksize=size):
        yield from batch.to_pylist()


def rows_at(table: pa.Table, places: Sequence[int] | np.ndarray) -> Iterator[Row]:
    """The rows at these places, which rise. Batch by batch: of a table, Arrow's ``take`` copies all of it first."""
    wanted, begin = np.asarray(places, np.int64), 0
    for batch in table.to_batches():
        end = begin + len(batch)
        first, last = np.searchsorted(wanted, (begin, end))
        if last > first:
            yield from to_rows(batch.take(pa.array(wanted[first:last] - begin)))
        begin = end


def column(table: pa.Table, name: str) -> Iterator[Any]:
    """The values of a column, some of them as Python objects at a time."""
    for batch in table.select([name]).to_batches(max_chunksize=1024):
        yield from batch.column(0).to_pylist()


def with_column(table: pa.Table, name: str, value: str) -> pa.Table:
    """The table with one text column set to ``value`` in every row."""
    column = pa.repeat(pa.scalar(value, pa.string()), len(table))
    return table.set_column(table.schema.get_field_index(name), SCHEMA.field(name), column)


class ContentHash:
    """SHA-256 over rows and the facts that change how they are read; the order counts."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, value: Any) -> None:
        line = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        self._hash.update(line.encode("utf-8", "surrogatepass") + b"\n")

    def add_table(self, table: pa.Table) -> None:
        for row in iterate(table):
            self.add(row)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
