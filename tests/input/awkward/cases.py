"""What a case of an awkward file is: how to make it, and what must become of it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Pairs = list[tuple[str, str]]
Make = Callable[[Path], object]
Content = str | bytes | list | dict | Make

TWO: Pairs = [("a red hat", "clothes"), ("a green pear", "fruit")]
OBJECTS = [{"input": text, "output": answer} for text, answer in TWO]


@dataclass(frozen=True)
class Case:
    """``files`` are written below a folder, ``source`` (the first file if empty, "." the folder) is uploaded.

    Either ``rows`` are the stored (input, output) pairs over all splits in order, or ``refused`` is a pattern of the
    message, and ``remedy`` one of the hint.
    """

    name: str
    files: Mapping[str, Content]
    rows: Pairs | None = None
    refused: str = ""
    remedy: str = "."
    source: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def write(self, folder: Path) -> Path:
        """Make the files and return what is to be uploaded."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8", newline="")
        return folder / (self.source or next(iter(self.files)))


def reads(name: str, file: str, content: Content, rows: Pairs = TWO, **more: Any) -> Case:
    """One file that is accepted with exactly ``rows``; ``note``: a pattern of what is said about it."""
    return Case(name, {file: content}, rows=rows, note=more.pop("note", ""), options=more)


def refuses(name: str, file: str, content: Content, message: str, remedy: str = ".", **options: Any) -> Case:
    """One file that is refused: the message names the file and matches ``message``, the hint matches ``remedy``."""
    return Case(name, {file: content}, refused=message, remedy=remedy, options=options)


def csv(rows: Pairs = TWO, separator: str = ",", header: str = "text,label", end: str = "\n") -> str:
    head = header.replace(",", separator)
    return end.join([head, *(f"{text}{separator}{label}" for text, label in rows)]) + end


def lines(rows: list[Any] = OBJECTS, end: str = "\n") -> str:
    return end.join(json.dumps(row, ensure_ascii=False) for row in rows) + end


def packed(content: str | bytes) -> bytes:
    return gzip.compress(content.encode() if isinstance(content, str) else content)
