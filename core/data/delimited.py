"""CSV and TSV: delimiter, header and quoting are found out; every line is checked and counted."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from core.data.names import ROLE_NAMES, plain_name
from core.data.textfile import SourceFile
from core.errors import DataError

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
LONGEST_FIELD = 16 * 2**20  # characters
_SAMPLE = 200  # rows that decide about delimiter and header


@dataclass(frozen=True)
class Dialect:
    delimiter: str
    quoting: int = csv.QUOTE_MINIMAL


def read_delimited(source: SourceFile, header: bool | None = None) -> tuple[list[str], Any]:
    """Column names and a function that iterates over (line number, row) anew at each call.

    ``header`` says whether the first line names the columns; None: found out.
    """
    _refuse_others(source)
    dialect = _dialect(source)
    first = [cells for _, cells in islice(_records(source, dialect), _SAMPLE)]
    if not first:
        raise DataError(f"{source.name} holds only blank lines.", "Export the file again.")
    if len(first) > 1 and all(re.fullmatch(r"\s*:?-{2,}:?\s*", cell) for cell in first[1] if cell):
        raise DataError(f"{source.name} is a Markdown table.", "Save its rows as CSV.")
    has_header = _looks_like_header(first) if header is None else header
    if has_header:
        columns = _header(source, first[0])
    else:
        columns = [f"column{i + 1}" for i in range(len(first[0]))]
        source.notes.append(f"{source.name} has no header line; its columns are called {', '.join(columns)}.")
    skip = 1 if has_header else 0
    if not any(True for _ in islice(_records(source, dialect), skip, skip + 1)):
        raise DataError(f"{source.name} has a header (line 1) but no rows.", "Add rows below the header.")

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for line, cells in islice(_records(source, dialect, len(columns)), skip, None):
            yield line, dict(zip(columns, cells, strict=True))

    return columns, rows


def _refuse_others(source: SourceFile) -> None:
    """Refuse what reads as text with commas but is something else."""
    with source.plain.open(encoding=source.encoding, errors="replace") as file:
        head = file.read(4096).lstrip()
    if re.match(r"\{\s*\"[^\"\n]*\"\s*:|\[\s*[\[{]", head):
        raise DataError(f"{source.name} holds JSON, not {source.format}.", "Rename it to end in .json or .jsonl.")
    if head.lower().startswith("sep="):
        raise DataError(
            f"{source.name}, line 1: {head.splitlines()[0][:20]} is for a spreadsheet, not a row.",
            "Remove the first line; the separator is found out.",
        )


def _dialect(source: SourceFile) -> Dialect:
    usual = "\t" if source.format == "tsv" else ","
    delimiter = _delimiter(source, usual)
    if delimiter != usual:
        source.notes.append(f"{source.name} is separated by {DELIMITERS[delimiter]}, not {DELIMITERS[usual]}.")
    dialect = Dialect(delimiter)
    if delimiter == "\t":  # many TSV writers do not quote, so that a quotation mark is only a character
        try:
            for _ in _records(source, dialect):
                pass
        except DataError:
            dialect = Dialect(delimiter, csv.QUOTE_NONE)
            source.notes.append(f"{source.name}: quotation marks were read as text, not as quoting.")
    return dialect


def _delimiter(source: SourceFile, usual: str) -> str:
    """The usual delimiter if it splits the first rows evenly, else the one that does."""
    best, most = usual, 0.0
    for delimiter in [usual, *(d for d in DELIMITERS if d != usual)]:
        widths = []
        try:
            for _, cells in islice(_records(source, Dialect(delimiter)), 20):
                widths.append(len(cells))
        except DataError:
            if delimiter != "\t" and len(widths) < 2:
                continue
        if not widths or max(widths) < 2:
            continue
        even = sum(width == widths[0] for width in widths) / len(widths)
        score = even if widths[0] > 1 else 0.0
        if score > most:
            best, most = delimiter, score
        if delimiter == usual and widths[0] > 1:
            return usual  # a ragged line is reported as such
    return best


def _records(source: SourceFile, dialect: Dialect, width: int | None = None) -> Iterator[tuple[int, list[str]]]:
    """(line where the record begins, cells) without blank lines; checks the number of cells if ``width`` is given."""
    csv.field_size_limit(LONGEST_FIELD)
    with source.text(newline="") as file:
        reader = csv.reader(file, delimiter=dialect.delimiter, quoting=dialect.quoting, strict=True)
        line = 1
        try:
            for cells in reader:
                if cells and any(cells):
                    if width is not None and len(cells) != width:
                        _refuse_ragged(source, dialect, line, cells, width)
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{source.name}, line {line}: {_explain(error)}.",
                'Write quotation marks inside a quoted field twice ("") and close every quoted field.',
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{source.name}, after line {line}: bytes that are not {source.encoding}.", "Save the file as UTF-8."
            ) from error


def _explain(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return "a quoted field begins here or before and is never closed"
    if "field limit" in text:
        return f"a field of more than {LONGEST_FIELD} characters; a quotation mark is probably not closed"
    if "expected after" in text:
        return "text follows a closing quotation mark"
    return text


def _refuse_ragged(source: SourceFile, dialect: Dialect, line: int, cells: list[str], width: int) -> None:
    separator = DELIMITERS[dialect.delimiter]
    extra = f"the first extra one is {cells[width][:40]!r}" if len(cells) > width else f"the last is {cells[-1][:40]!r}"
    remedy = f"Put fields that contain {separator} or line breaks in quotation marks."
    if len(cells) < width:
        remedy = f"Add the missing fields, as many {separator} as in the other lines."
    raise DataError(
        f"{source.name}, line {line}: {len(cells)} fields where the first line has {width}; {extra}.", remedy
    )


def _header(source: SourceFile, cells: list[str]) -> list[str]:
    columns = [cell.strip().lstrip("\ufeff") or f"column{i + 1}" for i, cell in enumerate(cells)]
    for i, name in enumerate(columns):
        if name in columns[:i]:
            raise DataError(
                f"{source.name}, line 1: the columns {columns.index(name) + 1} and {i + 1} are both called {name!r}.",
                "Give every column a name of its own.",
            )
    return columns


def _looks_like_header(rows: list[list[str]]) -> bool:
    """Whether the first row names the columns rather than being one of the rows."""
    cells = [cell.strip() for cell in rows[0]]
    if any(plain_name(cell) in ROLE_NAMES for cell in cells):
        return True
    if any(_is_number(cell) or len(cell) > 60 for cell in cells):
        return False
    body = [row for row in rows[1:] if len(row) == len(cells)]
    for i, cell in enumerate(cells):
        if cell and any(row[i].strip() == cell for row in body):
            return False  # a label that comes again
        if body and all(_is_number(row[i]) for row in body):
            return True
    return all(len(cell.split()) <= 3 for cell in cells)


def _is_number(cell: str) -> bool:
    return bool(re.fullmatch(r"\s*[-+]?\d+([.,]\d+)?([eE][-+]?\d+)?%?\s*", cell))
