"""Files that callers from elsewhere send, piece by piece: below the cache, in parcels whose names nobody can guess.

A parcel belongs to who began it. Its files are written at an offset, so that a broken transfer goes on where it
stopped, and are never held in memory. What nobody touched for a day is removed when the next parcel begins.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from core import access
from core.errors import ConfigurationError, DataError, NotFoundError
from core.home import RESERVE, Home, write_text
from core.units import GIB

LARGEST = 2 * GIB  # bytes of one file, as on the page Data
MOST_BYTES = 8 * GIB  # of all parcels of one person
MOST_FILES = 1000  # of one parcel
MOST_PARCELS = 50  # of one person
DEEPEST = 6  # folders
KEPT_SECONDS = 24 * 3600.0
_PARCEL = re.compile(r"[0-9a-f]{16}")
_PART = re.compile(r"[^\x00-\x1f\x7f/\\.][^\x00-\x1f\x7f/\\]*")
_writing: set[Path] = set()
_lock = threading.Lock()


class Received:
    """The parcels of one home, as the actor sees them."""

    def __init__(self, home: Home) -> None:
        self._root = home.cache / "received"

    def begin(self) -> str:
        """A new parcel; its name."""
        owner = access.need("researcher").name or ""
        self._root.mkdir(parents=True, exist_ok=True)
        own = [folder for folder in self._folders() if _owner(folder) == owner]
        for folder in [folder for folder in own if time.time() - _touched(folder) > KEPT_SECONDS]:
            shutil.rmtree(folder, ignore_errors=True)
            own.remove(folder)
        if len(own) >= MOST_PARCELS:
            raise ConfigurationError(
                f"{len(own)} parcels wait to be stored already.", "Store or delete them; after a day they go."
            )
        name = secrets.token_hex(8)
        folder = self._root / f"tessera-{name}"
        (folder / "files").mkdir(parents=True, mode=0o700)
        write_text(folder / "owner", owner)
        return name

    def size(self, name: str) -> int:
        """Bytes that have come of a file, ``PARCEL/path``."""
        path = self.path(name)
        if not path.is_file():
            raise NotFoundError(f"{name} is a folder.", "Name one file.")
        return path.stat().st_size

    def path(self, name: str) -> Path:
        """Where a file or folder that was sent lies."""
        path = self._place(name)
        if not path.exists():
            raise NotFoundError(f"Nothing was sent as {name!r}.", "Send it first; parcels are kept for a day.")
        return path

    @contextmanager
    def writing(self, name: str, at: int) -> Iterator[Writer]:
        """Write a file from byte ``at`` on, which is where it ends so far; 0 begins it anew. One writer at a time."""
        access.need("researcher")
        path = self._place(name)
        parcel = self._root / path.relative_to(self._root).parts[0]
        with _alone(path):
            room = _room(parcel, path, _owner(parcel), self._folders())
            has = path.stat().st_size if path.is_file() else 0
            if at not in (0, has):
                raise DataError(f"{name} has {has} bytes, so it does not go on at {at}.", f"Go on at {has}.")
            with _opened(path, at) as file:
                yield Writer(file, min(LARGEST - at, room + (has if not at else 0)))

    def forget(self, parcel: str) -> None:
        """Delete a parcel with its files."""
        shutil.rmtree(self._parcel(parcel), ignore_errors=True)

    def _place(self, name: str) -> Path:
        parcel, _, inside = name.partition("/")
        parts = inside.rstrip("/").split("/")
        if len(parts) > DEEPEST or not all(_PART.fullmatch(part) and len(part.encode()) <= 200 for part in parts):
            raise DataError(
                f"{inside[:80]!r} is no name for a file.",
                f"Up to {DEEPEST} parts with / between them; none is empty, begins with a dot or has control letters.",
            )
        return self._parcel(parcel).joinpath("files", *parts)

    def _parcel(self, name: str) -> Path:
        folder = self._root / f"tessera-{name}"
        if not _PARCEL.fullmatch(name) or not folder.is_dir() or _owner(folder) != (access.acting().name or ""):
            raise NotFoundError(f"There is no parcel {name[:40]!r}.", "Begin one and send your files in it.")
        return folder

    def _folders(self) -> list[Path]:
        return [folder for folder in self._root.glob("tessera-*") if folder.is_dir()]


class Writer:
    """An open file that takes so many bytes more and says what went wrong in a sentence."""

    def __init__(self, file: BinaryIO, room: int) -> None:
        self._file, self._room = file, room

    def write(self, block: bytes) -> None:
        self._room -= len(block)
        if self._room < 0:
            raise DataError(
                f"The file is too large: {LARGEST / GIB:g} GiB each, {MOST_BYTES / GIB:g} GiB of one person, and "
                "room on the disk are the limits.",
                "Split it, free space, or store it from the studio's own machine with python app.py upload.",
            )
        try:
            self._file.write(block)
            self._file.flush()
        except OSError as error:
            raise _unwritten(error) from error

    @property
    def received(self) -> int:
        return self._file.tell()


def _opened(path: Path, at: int) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("r+b" if at else "wb")
        file.seek(at)
    except OSError as error:
        raise _unwritten(error) from error
    return file


def _unwritten(error: OSError) -> DataError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    why = "the disk of the studio is full" if full else error.strerror
    return DataError(f"The file could not be written: {why}.", "Free space there, then go on sending.")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with _lock:
        if path in _writing:
            raise DataError("This file is being sent already.", "Wait for that, or begin another parcel.")
        _writing.add(path)
    try:
        yield
    finally:
        with _lock:
            _writing.discard(path)


def _room(parcel: Path, path: Path, owner: str, folders: list[Path]) -> int:
    """Bytes that may come, beside what lies there already."""
    files = [one for one in parcel.rglob("*") if one.is_file()]
    if path not in files and len(files) > MOST_FILES:
        raise DataError(f"The parcel holds {MOST_FILES} files.", "Put rows of one task into one file.")
    own = [folder for folder in folders if _owner(folder) == owner]
    taken = sum(one.stat().st_size for folder in own for one in folder.rglob("*") if one.is_file())
    return min(MOST_BYTES - taken, shutil.disk_usage(parcel).free - RESERVE)


def _owner(folder: Path) -> str | None:
    try:
        return (folder / "owner").read_text("utf-8")
    except OSError:
        return None


def _touched(folder: Path) -> float:
    """When something in a parcel changed last."""
    return max((os.stat(path).st_mtime for path in (folder, *folder.rglob("*")) if path.exists()), default=0.0)
