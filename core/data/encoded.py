"""Token ids of a task's rows, kept on disk under a hash of all that they depend on, and read by mapping the file.

A file is written under another name and renamed when it is whole, so workers that start together at worst write the
same file twice. The oldest files go when all of them take more than ``MOST`` bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from core.data.canonical import Row
from core.data.spill import Shelf
from core.data.tasks import Task
from core.data.templates import Encoded, TextEncoder

FORMAT = 2
BATCH = 1024  # rows that lie together in the file
MOST = 2 * 2**30
SIDES = ("prompt", "answer")
SCHEMA = pa.schema([(side, pa.large_list(pa.int32())) for side in SIDES])


class EncodedRows:
    """Rows of one task and split as ids: from the file where there is one, else encoded when they are asked for."""

    def __init__(self, task: Task, encoder: TextEncoder, split: str, max_length: int | None = None) -> None:
        self.task, self.encoder, self.split, self.max_length = task, encoder, split, max_length
        self.size = task.size(split)
        self.path = task.store.tokens / f"{_key(task, encoder, split, max_length)}.arrow"
        self._shelf: Shelf | None = None
        self._kept = _read(self.path, self.size)

    @property
    def kept(self) -> bool:
        return self._kept is not None or not self.size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Encoded:
        if self._kept is not None:
            sides, place = self._kept[index // BATCH], index % BATCH
            return Encoded(*(values[starts[place] : starts[place + 1]].tolist() for starts, values in sides))
        return self.encoder.encode(self._text(index), self.task.template, self.max_length)

    def _text(self, index: int) -> Row:
        if self._shelf is None:
            try:
                self._shelf = Shelf(self.task.iterate(self.split), self.task.store.root)
            except OSError:  # nothing can be written there
                self._shelf = Shelf(self.task.iterate(self.split))
        return self._shelf[index]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, all of which are kept."""
        self.keep()
        own = [sum(np.diff(starts) for starts, _ in sides) for sides in self._kept or ()]
        return np.concatenate(own) if own else np.zeros(0, np.int64)

    def keep(self) -> None:
        """Encode all rows, once for all runs, a few of them in memory. Without a place to write, this run alone has
        them, all in memory."""
        if self.kept:
            return
        encoded = self.encoder.encode_all(self.task.iterate(self.split), self.task.template, self.max_length)
        try:
            _write(_batches(encoded), self.path)
            self._kept = _read(self.path, self.size)
        except OSError:
            encoded = self.encoder.encode_all(self.task.iterate(self.split), self.task.template, self.max_length)
        if self._kept is None:
            self._kept = [_sides(batch) for batch in _batches(encoded)]
        self._shelf = None


def _key(task: Task, encoder: TextEncoder, split: str, max_length: int | None) -> str:
    cut = split == "train" and task.size(split) < task.info.counts.get(split, 0)  # drawn by the run's seed
    facts = [
        FORMAT, task.dataset_id, task.info.name, task.name, split, task.size(split), task.instruction,
        task.template.model_dump(), encoder.fingerprint, max_length, [task.seed, task.index] if cut else None,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _batches(rows: Iterable[Encoded]) -> Iterator[pa.RecordBatch]:
    """``BATCH`` rows each, but for the last."""
    waiting = iter(rows)
    while block := list(islice(waiting, BATCH)):
        columns = []
        for side in SIDES:
            ids = [np.array(getattr(row, side), dtype=np.int32) for row in block]
            starts = np.concatenate(([0], np.cumsum([len(own) for own in ids])))
            columns.append(pa.LargeListArray.from_arrays(starts, np.concatenate(ids)))
        yield pa.record_batch(columns, schema=SCHEMA)


def _sides(batch: pa.RecordBatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of prompts and of answers: where each begins, and all ids."""
    return [(column.offsets.to_numpy(), column.values.to_numpy()) for column in map(batch.column, SIDES)]


def _read(path: Path, size: int) -> list[list[tuple[np.ndarray, np.ndarray]]] | None:
    """Batch by batch; None where there is no whole file."""
    try:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            batches = [reader.get_batch(place) for place in range(reader.num_record_batches)]
        os.utime(path)  # used just now
    except (OSError, pa.ArrowInvalid):
        return None
    return list(map(_sides, batches)) if sum(map(len, batches)) == size > 0 else None


def _write(batches: Iterable[pa.RecordBatch], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    os.close(handle)
    try:
        with pa.OSFile(name, "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            for batch in batches:
                writer.write_batch(batch)
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
