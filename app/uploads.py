"""Files that a browser uploaded: only those that Gradio received itself, under the names that people gave them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder

from app.holders import FILES
from core.errors import DataError

METADATA = "tasks.json"
_UPLOADED = re.compile(r"[^,]*/tessera-[0-9a-f]{16}/[^/,]+/?")


def received(value: Any) -> list[Path]:
    """The files of a ``gr.File`` that whoever acts has uploaded; any other path is refused."""
    root = Path(get_upload_folder()).resolve()
    given = value if isinstance(value, list) else [value] if value else []
    paths = [Path(str(path)).resolve() for path in given]
    for path in paths:
        if root not in path.parents or not path.is_file() or not FILES.may(path):
            raise DataError("A file that was not uploaded here was named.", "Drop the file on the page again.")
    return paths


def together(paths: Sequence[Path], name: str) -> list[Path]:
    """The files side by side in a folder called ``name``, as they were on the machine that they came from.

    Gradio keeps each in a folder of its own, so that ``train.csv`` beside ``test.csv`` would be two strange tasks.
    With a ``tasks.json`` among them the folder itself is the source.
    """
    if not paths:
        raise DataError("Nothing was uploaded.", "Drop one or several files, or name a folder.")
    key = hashlib.sha256("\n".join(map(str, paths)).encode()).hexdigest()[:16]
    folder = Path(get_upload_folder()) / f"tessera-{key}" / (_safe(name) or "data")
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for path in paths:
        target = folder / path.name
        if target in found:
            raise DataError(f"Two files are called {path.name}.", "Rename one of them.")
        if not target.exists():
            _link(path, target)
        found.append(target)
    return [folder] if any(path.name == METADATA for path in found) else found


def shown(source: str) -> str:
    """Where a data set came from, in words; of uploaded files the names, since their folder means nothing to people."""
    names = ", ".join(_UPLOADED.sub("", part) for part in source.split(", "))
    return source if names == source else f"uploaded {names or 'files'}"


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # another file system
        shutil.copyfile(path, target)


def _safe(name: str) -> str:
    return "".join(letter for letter in name if letter.isalnum() or letter in "-_ .")[:80].strip(" .")
