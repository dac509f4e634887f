"""Any supported file to raw rows: csv, tsv, json, jsonl and parquet, each also gzipped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.data.delimited import read_delimited
from core.data.jsonfile import json_rows, line_rows
from core.data.textfile import FORMATS, SourceFile, open_source
from core.errors import DataError
from core.texts import HALF, HALF_REMEDY, whole

__all__ = ["FORMATS", "RawFile", "read_file"]

SAMPLE = 1000
_LINE = 2**22  # characters; a longer first line is one value


@dataclass
class RawFile:
    """The rows of a file before any mapping; iterating reads the file anew, so few rows are in memory.

    Rows come with their place: the line in text files, the row number (from 1) in others.
    """

    source: SourceFile
    columns: list[str]
    open: Callable[[], Iterator[tuple[int, dict[str, Any]]]]
    unit: str = "line"
    label_names: dict[str, list[str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def format(self) -> str:
        return self.source.format

    @property
    def encoding(self) -> str:
        return self.source.encoding

    @property
    def notes(self) -> list[str]:
        return self.source.notes

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return self.open()

    def sample(self, size: int = SAMPLE) -> list[dict[str, Any]]:
        """The first rows, for finding out what the columns are."""
        return [row for _, row in zip(range(size), (row for _, row in self), strict=False)]

    def where(self, place: int, column: str | None = None) -> str:
        """``rows.csv, line 12, column 'label'``"""
        return f"{self.name}, {self.unit} {place}" + (f", column {column!r}" if column else "")


def read_file(path: str | Path, *, header: bool | None = None) -> RawFile:
    """Open a data file; raises ``DataError`` with file, place and remedy for anything that cannot be read.

    ``header``: whether the first line of a csv or tsv file names the columns; None: found out.
    """
    source = open_source(path)
    if source.format in ("csv", "tsv"):
        columns, rows = read_delimited(source, header)
        return RawFile(source, columns, rows)
    if source.format == "parquet":
        return _parquet(source)
    if source.format == "jsonl" and _first_character(source) != "[":
        return _json_lines(source)
    return _json(source)


def _json_lines(source: SourceFile) -> RawFile:
    raw = RawFile(source, [], lambda: line_rows(source))
    raw.columns = _columns(raw)
    return raw


def _json(source: SourceFile) -> RawFile:
    if source.format == "json" and _is_lines(source):
        source.notes.append(f"{source.name} holds one JSON object a line and was read so.")
        return _json_lines(source)
    if source.format == "jsonl":
        source.notes.append(f"{source.name} holds one JSON array, not one object a line, and was read so.")
    unit, rows = json_rows(source)
    raw = RawFile(source, [], rows, unit)
    raw.columns = _columns(raw)
    return raw


def _columns(raw: RawFile) -> list[str]:
    """The keys of the first rows, in the order of their first appearance."""
    names: dict[str, None] = {}
    for row in raw.sample():
        names.update(dict.fromkeys(row))
    if not names:
        raise DataError(f"{raw.name} has no rows with columns.", "Write one object per row, such as "
                        '{"input": "...", "output": "..."}.')  # fmt: skip
    if broken := next((name for name in names if not whole(name)), None):
        raise DataError(f"{raw.name}: the key {broken[:60]!r} holds {HALF}.", HALF_REMEDY)
    return list(names)


def _is_lines(source: SourceFile) -> bool:
    """Whether a text is several JSON objects, one a line, rather than one JSON value."""
    if _first_character(source) != "{":
        return False
    with source.text() as file:
        found = (line for line in iter(lambda: file.readline(_LINE), "") if line.strip())
        first, second = next(found), next(found, "")
    if not second.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _first_character(source: SourceFile) -> str:
    with source.text() as file:
        while part := file.read(4096):
            if text := part.lstrip():
                return text[0]
    raise DataError(f"{source.name} holds only blank lines.", "Export the file again.")


def _parquet(source: SourceFile) -> RawFile:
    try:
        file = pq.ParquetFile(source.plain)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source.name} is a damaged Parquet file: {error}.", "Write or copy it again.") from error
    if not file.metadata.num_rows:
        raise DataError(f"{source.name} has no rows.", "Export the file again.")
    columns = [name for name in file.schema_arrow.names if not name.startswith("__index_level_")]
    twice = next((name for i, name in enumerate(columns) if name in columns[:i]), None)
    if twice is not None:
        raise DataError(f"{source.name}: two columns are called {twice!r}.", "Give every column a name of its own.")

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        place = 0
        source.share = lambda: place / file.metadata.num_rows
        try:
            for batch in pq.ParquetFile(source.plain).iter_batches(batch_size=2048, columns=columns):
                for row in batch.to_pylist():
                    place += 1
                    yield place, row
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{source.name}, after row {place}: {error}.", "The file is damaged; write or copy it again."
            ) from error
        except (ValueError, OverflowError) as error:  # a date or number that Python cannot hold
            raise DataError(
                f"{source.name}, after row {place}: {error}.", "Write such a column as text, or leave it out."
            ) from error

    return RawFile(source, columns, rows, "row", _class_labels(file.schema_arrow))


def _class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of integer class labels, as the ``datasets`` library writes them into a file's schema."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {
        name: [str(label) for label in feature["names"]]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }
