"""Rows that wait on disk while a data set is read: what is kept in memory does not grow with the file."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pyarrow as pa

from core.data.canonical import SCHEMA, Row, to_table

BLOCK = 512  # rows of a shelf that are written together


class Spill:
    """Batches of rows in a file without a name, which is gone with the last table made of it, however that ends."""

    def __init__(self, room: Path | None = None) -> None:
        if room is not None:
            room.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=room)  # noqa: SIM115 (the tables outlive this)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, mode="w"), SCHEMA)
        self._reader: pa.RecordBatchFileReader | None = None
        self._count = 0

    def put(self, table: pa.Table) -> list[int]:
        """Add rows; returns the numbers under which ``table`` gives them back."""
        first = self._count
        for batch in table.to_batches():
            self._writer.write_batch(batch)
            self._count += 1
        return list(range(first, self._count))

    def table(self, numbers: Iterable[int]) -> pa.Table:
        """These batches as a table that lies in the file; nothing can be added after the first call."""
        if self._reader is None:
            self._writer.close()
            self._file.flush()
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._file.close()
            self._reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped)))
        return pa.Table.from_batches([self._reader.get_batch(number) for number in numbers], SCHEMA)


class Shelf:
    """Rows that lie on disk, each read when it is asked for."""

    def __init__(self, rows: Iterable[Row], room: Path | None = None) -> None:
        spill, waiting, numbers = Spill(room), iter(rows), []
        while block := list(islice(waiting, BLOCK)):
            numbers += spill.put(to_table(block))
        self._batches = spill.table(numbers).to_batches()

    def __getitem__(self, index: int) -> Row:
        return self._batches[index // BLOCK].slice(index % BLOCK, 1).to_pylist()[0]


def filtered(table: pa.Table, kept: Iterable[bool], room: Path | None = None) -> pa.Table:
    """The rows that are marked, on disk like the table that they come from."""
    spill, mask, numbers, start = Spill(room), pa.array(kept, pa.bool_()), [], 0
    for batch in table.to_batches():
        part = pa.Table.from_batches([batch.filter(mask.slice(start, len(batch)))])
        numbers += spill.put(part)
        start += len(batch)
    return spill.table(numbers)
