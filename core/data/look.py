"""The columns and first rows of files as they are, before anything is known about what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from core.data.formats import read_file
from core.data.hub_sets import parse_hub
from core.data.prepare import Options, find_files
from core.errors import DataError
from core.paths import inside

_CELL = 200


class Glimpse(BaseModel):
    """One file: what its columns are called, or why it cannot be read."""

    name: str
    format: str = ""
    encoding: str = ""
    columns: list[str] = Field(default_factory=list)
    rows: list[list[str]] = Field(default_factory=list, description="The first rows, each cell as a short text.")
    problem: str = ""


def look(paths: str | Path | Sequence[str | Path], *, header: bool | None = None, rows: int = 4) -> list[Glimpse]:
    """A glimpse of every file that ``paths`` name; a file that cannot be read says why and stops none of the others."""
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    _, found = find_files(paths, Options())
    return [_glimpse(file.path, header, rows) for file in found.files]


def _glimpse(path: Path, header: bool | None, rows: int) -> Glimpse:
    try:
        raw = read_file(path, header=header)
        sample = raw.sample(rows)
    except DataError as error:
        return Glimpse(name=path.name, problem=str(error))
    cells = [[_short(row.get(column)) for column in raw.columns] for row in sample]
    return Glimpse(name=raw.name, format=raw.format, encoding=raw.encoding, columns=raw.columns, rows=cells)


def typed_source(text: str, roots: Iterable[str | Path]) -> str:
    """What somebody typed as a source: a Hub id, or a file or folder below one of ``roots``."""
    text = text.strip()
    if not text:
        raise DataError("Nothing is named.", "Give a folder, a file or a Hub data set such as owner/name.")
    hub = parse_hub(text)
    return f"hub:{hub}" if hub is not None else str(inside(text, roots))


def _short(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"
