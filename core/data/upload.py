"""Upload and preview: the same reading, once to store it and once to look at it."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.data.prepare import Options, Prepared, Told, prepare, silent
from core.data.preview import Preview, inspect
from core.data.store import DatasetInfo, DatasetStore
from core.data.templates import PromptTemplate, TextEncoder
from core.errors import DataError
from core.room import FULL

__all__ = ["Options", "Preview", "preview", "preview_stored", "upload"]

Paths = str | Path | Sequence[str | Path]


def upload(store: DatasetStore, paths: Paths, *, told: Told = silent, **options: Any) -> DatasetInfo:
    """Store what ``paths`` name (files, folders, or a Hub id ``owner/name``); keywords are the fields of ``Options``.

    The same content is stored once: uploading it again returns the stored data set.
    """
    with explained(store.root):
        ready = prepare(paths, Options.parse(options), store.root, told)
        told(f"Storing {sum(ready.info.counts.values()):,} rows.")
        return store.add(ready.info, ready.by_split())


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """A disk that ran full, in words."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*FULL, errno.EFBIG):
            raise
        raise DataError(f"The disk of {folder} is full.", "Make room; nothing of this upload was kept.") from error


def preview(
    paths: Paths,
    *,
    encoder: TextEncoder | None = None,
    template: PromptTemplate | None = None,
    max_length: int | None = 512,
    rows: int = 3,
    room: Path | None = None,
    told: Told = silent,
    **options: Any,
) -> Preview:
    """What ``upload`` with the same options would store, and how the model would see it. Nothing is stored."""
    ready = prepare(paths, Options.parse(options), room, told)
    told("Looking at the rows as a model sees them.")
    return inspect(ready, encoder, template or PromptTemplate(), max_length, rows)


def preview_stored(
    store: DatasetStore,
    name_or_id: str,
    *,
    encoder: TextEncoder | None = None,
    template: PromptTemplate | None = None,
    max_length: int | None = 512,
    rows: int = 3,
) -> Preview:
    """As ``preview``, for a data set that is stored."""
    info = store.find(name_or_id)
    tables = {
        name: {split: store.table(info.id, name, split) for split in task.counts} for name, task in info.tasks.items()
    }
    return inspect(Prepared(info, tables, []), encoder, template or PromptTemplate(), max_length, rows)
