"""Files that a browser uploaded: only those that Gradio received itself, under the names that people gave them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr
from filelock import FileLock, Timeout
from gradio.utils import get_upload_folder

from app.holders import FILES
from core.errors import DataError
from core.paths import child, inside

METADATA = "tasks.json"
MOST_NAMED = 1000  # files of one event, as many as one upload takes
NOT_UPLOADED = ("A file that was not uploaded here was named.", "Drop the file on the page again.")
_OWN = "server-"
_UPLOADED = re.compile(r"[^,]*/tessera-[0-9a-f]{16}/[^/,]+/?")


def received(value: Any) -> list[Path]:
    """The files of a ``gr.File`` that whoever acts has uploaded; any other path is refused."""
    root = Path(get_upload_folder())
    given = value if isinstance(value, list) else [value] if value else []
    try:
        paths = [inside(str(path), [root]) for path in given]
    except DataError as error:
        raise DataError(*NOT_UPLOADED) from error
    if not all(path.is_file() and FILES.may(path) for path in paths):
        raise DataError(*NOT_UPLOADED)
    return paths


def check_named(inputs: Any) -> None:
    """Refuse an event that names files elsewhere: Gradio would copy them from this machine, or fetch them from another.

    Raises:
        gr.Error: a file, in the value of whatever component, that does not lie in Gradio's own folder; or too many.
    """
    root, waiting, named = Path(get_upload_folder()), [inputs], set()
    while waiting and len(named) <= MOST_NAMED:
        one = waiting.pop()
        if isinstance(one, list):
            waiting.extend(one)
        elif isinstance(one, dict):
            waiting.extend(one.values())
            if isinstance(one.get("path"), str) and "meta" in one:
                named.add(one["path"])
    try:
        if len(named) > MOST_NAMED or not all(map(os.path.isabs, named)):
            raise DataError(*NOT_UPLOADED)
        for path in named:
            inside(path, [root])
    except DataError as error:
        raise gr.Error(NOT_UPLOADED[0], print_exception=False) from error


def private_folder() -> Path:
    """Let Gradio keep uploads and downloads where other accounts of this machine cannot read them; the folder.

    ``GRADIO_TEMP_DIR`` names another place. In a folder for everybody, such as /tmp, somebody else may have made ours.
    """
    if given := os.environ.get("GRADIO_TEMP_DIR"):
        return Path(given)
    folder = Path(tempfile.gettempdir()) / f"tessera-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        folder = Path(tempfile.mkdtemp(prefix="tessera-"))
    folder.chmod(0o700)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for what is sent to this process alone; what servers that were killed left in theirs goes first."""
    root = private_folder()
    root.mkdir(parents=True, exist_ok=True)
    for held in root.glob(f"{_OWN}*.lock"):
        with suppress(Timeout, OSError), FileLock(held, blocking=False):
            shutil.rmtree(held.with_suffix(""), ignore_errors=True)
            held.unlink()
    before, folder = os.environ.get("GRADIO_TEMP_DIR"), Path(tempfile.mkdtemp(prefix=_OWN, dir=root))
    held = folder.with_suffix(".lock")
    with FileLock(held):
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        try:
            yield folder
        finally:
            os.environ["GRADIO_TEMP_DIR"] = before or str(root)
            shutil.rmtree(folder, ignore_errors=True)
            held.unlink(missing_ok=True)


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
        target = child(folder, path.name)
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
