"""Copies of the SQLite file before a migration: checked, few, and only where there is room for them."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from storage.errors import StorageError

KEPT = 3  # older copies go: each is as large as the database


def back_up(path: Path, revision: str) -> Path:
    """Copy a database of ``revision`` beside itself, open the copy and check it; StorageError changes nothing.

    The migration that follows writes every table that it changes once more, so room for two copies is asked for.
    """
    need = 2 * sum(part.stat().st_size for part in (path, path.with_name(path.name + "-wal")) if part.exists())
    free = shutil.disk_usage(path.parent).free
    if free < need:
        raise StorageError(
            f"The database {path} has to be brought to a newer schema, which takes {need >> 20:,} MiB for a copy and "
            f"the change; {free >> 20:,} MiB are free.",
            "Make room there. Nothing was changed.",
        )
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    target = path.with_name(f"{path.name}.{revision}-{stamp}.bak")
    part = path.with_name(f".{target.name}.part")
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(part)) as copy:
            source.backup(copy)
        _check(part, revision)
        part.replace(target)
    except (OSError, sqlite3.Error) as error:
        raise StorageError(
            f"The database {path} has to be brought to a newer schema, and the copy before it failed: {error}.",
            "Look at the disk. Nothing was changed.",
        ) from error
    finally:
        part.unlink(missing_ok=True)
    for old in sorted(path.parent.glob(f"{path.name}.*.bak"))[:-KEPT]:
        old.unlink(missing_ok=True)
    return target


def _check(copy: Path, revision: str) -> None:
    """Raise sqlite3.Error unless the copy opens, is whole and has the revision."""
    with closing(sqlite3.connect(copy)) as connection:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        (stored,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        if stored != revision:
            raise sqlite3.DatabaseError(f"its schema is {stored}, not {revision}")
