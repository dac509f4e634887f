"""What the home takes on disk, by kind, and what of it may go."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from core.errors import ConfigurationError
from core.home import Home
from core.records import Records

DISK_SECONDS = 30.0
SETTLED_SECONDS = 600.0  # a folder without a row may belong to a run that is being stored right now
LEFT_BEHIND = ("run-", ".gone-", ".import-")

CLEANABLE = ("checkpoints", "caches", "orphans")


def usage(home: Home, records: Records) -> dict[str, Any]:
    """``kinds``: kind -> bytes, ``removable``: kind -> bytes that ``clean`` would free, and ``free`` and ``total``."""
    states = _states(records)
    orphans = list(_orphans(home, states))
    folders = [folder for folder in _folders(home.runs) if folder not in orphans]
    points = {folder.name: size(folder / "checkpoints") for folder in folders}
    finished = sum(points[folder.name] for folder in folders if states.get(folder.name) == "done")
    lost = sum(map(size, orphans))
    caches = size(home.cache)
    disk = shutil.disk_usage(home.root)
    return {
        "kinds": {
            "datasets": size(home.datasets),
            "runs": sum(map(size, folders)) - sum(points.values()),
            "checkpoints": sum(points.values()),
            "caches": caches,
            "orphans": lost,
            "database": sum(size(path) for path in home.root.glob("tessera.db*")),
        },
        "removable": {"checkpoints": finished, "caches": caches, "orphans": lost},
        "free": disk.free,
        "total": disk.total,
    }


def clean(home: Home, records: Records, kinds: Iterable[str]) -> dict[str, int]:
    """Delete what ``kinds`` name; returns the bytes that each freed.

    Runs that were not finished keep their checkpoints, from which they resume. Caches stay while jobs work.
    """
    wanted = list(dict.fromkeys(kinds))
    unknown = [kind for kind in wanted if kind not in CLEANABLE]
    if unknown or not wanted:
        named = f"{unknown[0]!r} cannot be cleaned up." if unknown else "Nothing to clean up was named."
        raise ConfigurationError(named, f"Choose from {', '.join(CLEANABLE)}.")
    states = _states(records)
    if "caches" in wanted and _busy(records):
        raise ConfigurationError("Jobs that work use the caches.", "Empty them when no job works.")
    targets = {
        "checkpoints": [home.run(run).checkpoints for run, state in states.items() if state == "done"],
        "caches": [home.cache],
        "orphans": list(_orphans(home, states)),
    }
    return {kind: sum(_remove(path, home, keep=kind != "orphans") for path in targets[kind]) for kind in wanted}


def _remove(path: Path, home: Home, keep: bool) -> int:
    """Take a folder away in one step, so that nobody reads half of it; ``keep`` leaves an empty one."""
    if not path.is_dir() or path.is_symlink():
        return 0
    before = size(path)
    gone = home.runs / f".gone-{uuid.uuid4().hex}"
    try:
        path.rename(gone)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be moved away: {error.strerror}.", "Look at its rights.") from error
    if keep:
        path.mkdir()
    shutil.rmtree(gone, ignore_errors=True)
    return before - size(gone)


def size(path: Path) -> int:
    """Bytes of a file or of all files below a folder; links count nothing, and what vanishes meanwhile neither."""
    try:
        if path.is_symlink() or not path.exists():
            return 0
        if path.is_file():
            return path.stat().st_size
        with os.scandir(path) as entries:
            return sum(_entry(entry) for entry in entries)
    except OSError:
        return 0


def _entry(entry: os.DirEntry[str]) -> int:
    try:
        if entry.is_dir(follow_symlinks=False):
            return size(Path(entry.path))
        return entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else 0
    except OSError:
        return 0


def _folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]


def _orphans(home: Home, states: dict[str, str]) -> Iterator[Path]:
    """Folders that look like runs, have no row, and have not changed for a while."""
    for folder in _folders(home.runs):
        if folder.name in states or not folder.name.startswith(LEFT_BEHIND):
            continue
        if time.time() - folder.stat().st_mtime > SETTLED_SECONDS:
            yield folder


def _states(records: Records) -> dict[str, str]:
    """Run -> state, of all runs."""
    from storage.queries import runs

    with records.read() as session:
        return runs.states(session)


def _busy(records: Records) -> int:
    from storage.queries import jobs

    with records.read() as session:
        return jobs.busy(session)
