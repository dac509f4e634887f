"""Token ids of a task's rows, kept on disk under a hash of all that they depend on, and read by mapping the file.

A file is written under another name and renamed when it is whole, so workers that start together at worst write the
same file twice. The oldest files go when all of them take more than ``MOST`` bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa

from core.data.canonical import Row
from core.data.tasks import Task
from core.data.templates import Encoded, TextEncoder

FORMAT = 1
MOST = 2 * 2**30
SIDES = ("prompt", "answer")


class EncodedRows:
    """Rows of one task and split as ids: from the file where there is one, else encoded when they are asked for."""

    def __init__(self, task: Task, encoder: TextEncoder, split: str, max_length: int | None = None) -> None:
        self.task, self.encoder, self.split, self.max_length = task, encoder, split, max_length
        self.size = task.size(split)
        self.path = task.store.tokens / f"{_key(task, encoder, split, max_length)}.arrow"
        self._rows: list[Row] | None = None
        self._kept = _read(self.path, self.size)

    @property
    def kept(self) -> bool:
        return self._kept is not None or not self.size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Encoded:
        if self._kept is not None:
            return Encoded(*(values[starts[index] : starts[index + 1]].tolist() for starts, values in self._kept))
        return self.encoder.encode(self._texts[index], self.task.template, self.max_length)

    @property
    def _texts(self) -> list[Row]:
        if self._rows is None:
            self._rows = self.task.rows(self.split)
        return self._rows

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, all of which are kept."""
        self.keep()
        return sum((np.diff(starts) for starts, _ in self._kept or ()), np.zeros(self.size, np.int64))

    def keep(self) -> None:
        """Encode all rows, once for all runs. Without a place to write, this run alone has them."""
        if self.kept:
            return
        table = _table(self.encoder.encode_all(self._texts, self.task.template, self.max_length))
        self._kept, self._rows = _columns(table), None
        with suppress(OSError):
            _write(table, self.path)


def _key(task: Task, encoder: TextEncoder, split: str, max_length: int | None) -> str:
    cut = split == "train" and task.size(split) < task.info.counts.get(split, 0)  # drawn by the run's seed
    facts = [
        FORMAT, task.dataset_id, task.info.name, task.name, split, task.size(split), task.instruction,
        task.template.model_dump(), encoder.fingerprint, max_length, [task.seed, task.index] if cut else None,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _table(rows: Iterable[Encoded]) -> pa.Table:
    ids, starts = {side: [] for side in SIDES}, {side: [0] for side in SIDES}
    for row in rows:
        for side in SIDES:
            ids[side].append(np.array(getattr(row, side), dtype=np.int32))
            starts[side].append(starts[side][-1] + len(ids[side][-1]))
    columns = [pa.LargeListArray.from_arrays(starts[side], np.concatenate(ids[side])) for side in SIDES]
    return pa.table(columns, names=SIDES)


def _columns(table: pa.Table) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of prompts and of answers: where each begins, and all ids."""
    columns = [table[side].chunk(0) for side in SIDES]
    return [(column.offsets.to_numpy(), column.values.to_numpy()) for column in columns]


def _read(path: Path, size: int) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """None where there is no whole file."""
    try:
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        os.utime(path)  # used just now
    except (OSError, pa.ArrowInvalid):
        return None
    return _columns(table) if len(table) == size > 0 else None


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    os.close(handle)
    try:
        with pa.OSFile(name, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _bound(path.parent)


def _bound(folder: Path) -> None:
    """Let the files that were used longest ago go; a worker that reads one keeps what it has mapped."""
    files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob("*.arrow"))
    total = sum(size for _, size, _ in files)
    for _, size, path in files[:-1]:
        if total <= MOST:
            return
        path.unlink(missing_ok=True)
        total -= size
