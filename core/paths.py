"""Names and paths that pages, commands and files give: what may become a path, and below which folder."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from core.access import acting
from core.errors import DataError
from core.home import data_roots

LONGEST_NAME = 255  # bytes, what file systems hold
MOST_FILES = 100_000  # of one imported folder
SNAPSHOTS = "snapshots"  # the Hub's cache keeps links there, to blobs beside it


def is_name(name: str) -> bool:
    """Whether a text names one file or folder: no way up, no other folder, nothing unprintable, not too long."""
    return (
        name not in ("", ".", "..")
        and name.isprintable()
        and not set(name) & {"/", "\\"}
        and len(name.encode("utf-8", "surrogatepass")) <= LONGEST_NAME
    )


def child(root: Path, name: str) -> Path:
    """``root / name`` for a name that somebody or a file gave; links that lead out of ``root`` are refused.

    Raises:
        DataError: the name is no name of a file directly in ``root``.
    """
    if not isinstance(name, str) or not is_name(name):
        raise DataError(f"{shortened(name)} is not a file name.", "Name a file of that folder, without a path.")
    path = root / name
    if path.is_symlink():
        inside(path, [root])
    return path


def inside(path: str | Path, roots: Iterable[str | Path]) -> Path:
    """``path`` resolved, if it lies under one of the allowed folders; links are followed first."""
    resolved = real(path)
    allowed = [real(root) for root in roots]
    if any(resolved == root or root in resolved.parents for root in allowed):
        return resolved
    shown = ", ".join(map(str, allowed)) or "none is set"
    raise DataError(
        f"{shortened(path)} is outside the folders that may be read.",
        f"Allowed folders: {shown}. TESSERA_DATA names others.",
    )


def allowed(path: str | Path) -> Path:
    """A path of the machine that was named: any for who owns its account, for others only below the data folders."""
    return Path(path).expanduser() if acting().name is None else inside(path, data_roots())


def real(path: str | Path) -> Path:
    """Absolute and without links; DataError for what no path can be."""
    try:
        whole = Path(path).expanduser().resolve()
        if any(len(os.fsencode(part)) > LONGEST_NAME for part in whole.parts):
            raise ValueError("a name in it is too long")
        return whole
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL byte, no such user, links in a circle
        raise DataError(f"{shortened(path)} is not a path: {error}.", "Check the path.") from error


def copy_folder(source: Path, target: Path, wanted: Callable[[str], bool] | None = None, *, deep: bool = True) -> None:
    """Copy the plain files of ``source`` (``deep``: and below) that are ``wanted`` by name over those in ``target``.

    Raises:
        DataError: a link that leads out of ``source``, or a file that is no file (a device, a pipe, a socket).
    """
    for path in plain_files(source, deep):
        if wanted is None or wanted(path.name):
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def check_plain(folder: Path) -> None:
    """Refuse a folder from elsewhere for what ``copy_folder`` would, before anything is stored of it."""
    for _ in plain_files(folder):
        pass


def plain_files(folder: Path, deep: bool = True) -> Iterator[Path]:
    """The files below a folder from elsewhere, each checked: links stay inside it, and nothing else lies there."""
    count, root = 0, link_root(folder)
    for place, folders, names in os.walk(folder):
        if not deep:
            folders.clear()
        for name in sorted([*folders, *names]):
            count += 1
            if count > MOST_FILES:
                raise DataError(f"{folder} holds more than {MOST_FILES:,} files.", "Give the run's own folder.")
            path = Path(place) / name
            if (mode := _mode(path, root)) is not None and stat.S_ISREG(mode):
                yield path


def link_root(folder: Path) -> Path:
    """The folder that links in ``folder`` may point into: itself; for a snapshot in the Hub's cache, its repository."""
    whole = real(folder)
    return whole.parent.parent if whole.parent.name == SNAPSHOTS else whole


def _mode(path: Path, root: Path) -> int | None:
    """The mode of a plain file or folder; None for a link to a folder, which is not walked into."""
    own = path.lstat().st_mode
    if stat.S_ISLNK(own):
        target = real(path)
        if root not in target.parents:
            raise DataError(f"{path} is a link that leads out of its folder.", "Put the file itself there.")
        if target.is_dir():
            return None
        own = target.stat().st_mode if target.exists() else 0
    if not stat.S_ISREG(own) and not stat.S_ISDIR(own):
        raise DataError(f"{path} is no plain file (a device, a pipe, a broken link).", "Remove it and try again.")
    return own


def shortened(text: object) -> str:
    """What somebody gave, short enough for a sentence and without what a terminal would obey."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in str(text)[:120])
    return shown if len(str(text)) <= 120 else f"{shown}…"
