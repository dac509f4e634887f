"""Data sets on disk: ``<id>/meta.json`` and one Parquet file of canonical rows per split.

The id is the first 16 hex digits of a hash over rows and task facts, so the same content is stored once.
"""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from core import access
from core.data.canonical import COLUMNS, SCHEMA, ContentHash, Row, to_rows, to_table, with_column
from core.data.describe import describe
from core.data.kinds import TaskInfo
from core.errors import DataError, NotFoundError
from core.home import read_json, write_json
from core.paths import is_name

SPLITS = ("train", "validation", "test")
ROW_GROUP = 4096
AT_ONCE = 512  # rows as Python objects

Rows = Iterable[Mapping[str, Any]] | pa.Table


class DatasetInfo(BaseModel):
    """What is known of a stored data set, without its rows."""

    model_config = ConfigDict(extra="ignore")

    id: str = ""
    name: str
    aliases: list[str] = Field(default_factory=list, description="Other names that the same content was given.")
    source: str = ""
    created: str = Field("", description="UTC, ISO 8601.")
    owner: str | None = Field(None, description="The name of the user who stored this content first.")
    named: dict[str, str] = Field(default_factory=dict, description="Name -> when it was given last, UTC.")
    tasks: dict[str, TaskInfo] = Field(default_factory=dict)
    mapping: dict[str, Any] = Field(default_factory=dict, description="How columns became roles.")
    notes: list[str] = Field(default_factory=list, description="Things noticed while reading.")

    @property
    def counts(self) -> dict[str, int]:
        """Rows per split, over all tasks."""
        return {split: n for split in SPLITS if (n := sum(t.counts.get(split, 0) for t in self.tasks.values()))}


class DatasetStore:
    """The data sets below one folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def tokens(self) -> Path:
        """Ids of rows, which anybody may delete: in the caches of the home."""
        return self.root.parent / "cache" / "tokens"

    def add(self, info: DatasetInfo, splits: Mapping[str, Mapping[str, Rows]]) -> DatasetInfo:
        """Store ``splits[split][task]`` and return the data set's info with id, counts and task facts filled in.

        A task that ``info`` does not describe is described from its rows. Content that is stored already keeps its
        id; a further name becomes an alias.
        """
        owner = access.need("researcher").name
        tables = _tables(splits)
        tasks = {name: info.tasks.get(name) or describe(name, own) for name, own in tables.items()}
        for name, own in tables.items():
            counts = {split: len(own[split]) for split in SPLITS if split in own}
            tasks[name] = tasks[name].model_copy(update={"name": name, "counts": counts})
        digest = _digest(tasks, tables)
        found = self._read(digest[:16])
        if found is not None:
            return self._named(found, info.name)
        created = info.created or datetime.now(UTC).isoformat(timespec="seconds")
        facts = {"id": digest[:16], "created": created, "tasks": tasks, "named": {info.name: _now()}, "owner": owner}
        info = info.model_copy(update=facts)
        self._write(info, tables)
        return info

    def list(self) -> list[DatasetInfo]:
        """All data sets, newest first."""
        found = [info for path in self.root.glob("*/meta.json") if (info := self._read(path.parent.name))]
        return sorted(found, key=lambda info: (info.created, info.name), reverse=True)

    def find(self, name_or_id: str) -> DatasetInfo:
        """The data set with this id or name; of several with one name the one that was given it last."""
        if info := self._read(name_or_id):
            return info
        known = self.list()
        if named := [info for info in known if name_or_id in (info.name, *info.aliases)]:
            return max(named, key=lambda info: info.named.get(name_or_id, info.created))
        names = sorted({info.name for info in known})
        near = difflib.get_close_matches(name_or_id, names, n=3, cutoff=0.5) or names[:5]
        hint = f"Stored are for example: {', '.join(near)}." if near else "Nothing is stored yet: upload one first."
        raise NotFoundError(f"There is no data set {name_or_id!r}.", hint)

    def rows(self, dataset_id: str, task: str, split: str, start: int = 0, limit: int | None = None) -> list[Row]:
        """Rows ``start`` to ``start + limit`` of one task and split; a row's index there is its identity."""
        return to_rows(self.table(dataset_id, task, split, start, limit))

    def iterate(self, dataset_id: str, task: str, split: str, limit: int | None = None) -> Iterator[Row]:
        """As ``rows`` from the first one on, a few hundred of them in memory at a time."""
        info = self.find(dataset_id)
        count = self._task(info, task).counts.get(split, 0)
        first = self._before(info, task, split)
        last = first + (count if limit is None else min(count, limit))
        if last > first:
            yield from _walk(self.root / info.id / f"{split}.parquet", first, last)

    def table(self, dataset_id: str, task: str, split: str, start: int = 0, limit: int | None = None) -> pa.Table:
        """As ``rows``, as an Arrow table; reads only the row groups that are needed."""
        info = self.find(dataset_id)
        count = self._task(info, task).counts.get(split, 0)
        stop = count if limit is None else min(count, start + limit)
        if start >= stop:
            return SCHEMA.empty_table()
        before = self._before(info, task, split)
        return _slice(self.root / info.id / f"{split}.parquet", before + start, before + stop)

    def delete(self, dataset_id: str) -> None:
        """Refused to those who neither own it nor are admins."""
        info = self.find(dataset_id)
        access.need_own(info.owner, info.name)
        gone = Path(tempfile.mkdtemp(dir=self.root, prefix=".gone-"))
        os.replace(self.root / info.id, gone / info.id)  # it vanishes at once, the files follow
        shutil.rmtree(gone)

    def _task(self, info: DatasetInfo, task: str) -> TaskInfo:
        if task not in info.tasks:
            near = difflib.get_close_matches(task, info.tasks, n=1, cutoff=0) or [""]
            raise NotFoundError(f"The data set {info.name!r} has no task {task!r}.", f"Did you mean {near[0]!r}?")
        return info.tasks[task]

    def _before(self, info: DatasetInfo, task: str, split: str) -> int:
        """Rows of other tasks that lie before the task's in a split's file."""
        names = list(info.tasks)
        return sum(info.tasks[name].counts.get(split, 0) for name in names[: names.index(task)])

    def _read(self, dataset_id: str) -> DatasetInfo | None:
        if not is_name(dataset_id) or dataset_id.startswith("."):
            return None
        path = self.root / dataset_id / "meta.json"
        try:
            stamp = path.stat()
        except OSError:
            return None
        return _info(path, stamp.st_mtime_ns, stamp.st_ino)

    def _named(self, info: DatasetInfo, name: str) -> DatasetInfo:
        more = [] if name in (info.name, *info.aliases) else [name]
        info = info.model_copy(update={"aliases": [*info.aliases, *more], "named": {**info.named, name: _now()}})
        write_json(self.root / info.id / "meta.json", info.model_dump(mode="json"))
        return info

    def _write(self, info: DatasetInfo, tables: Mapping[str, Mapping[str, pa.Table]]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.root, prefix=".new-"))
        try:
            for split in SPLITS:
                parts = [own[split] for own in tables.values() if split in own]
                if parts:
                    _write_parquet(folder / f"{split}.parquet", parts)
            write_json(folder / "meta.json", info.model_dump(mode="json"))
            folder.chmod(0o755)
            try:
                os.rename(folder, self.root / info.id)
            except OSError:
                if self._read(info.id) is None:  # otherwise another process stored the same content first
                    raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=1024)
def _info(path: Path, _written: int, _file: int) -> DatasetInfo:
    """Read once for all readers, who do not change it; again when the file was written again."""
    return DatasetInfo.model_validate(read_json(path))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _tables(splits: Mapping[str, Mapping[str, Rows]]) -> dict[str, dict[str, pa.Table]]:
    """Task -> split -> rows, with the task's name in every row; splits without rows are left out."""
    tables: dict[str, dict[str, pa.Table]] = {}
    for split, tasks in splits.items():
        if split not in SPLITS:
            raise DataError(f"{split!r} is not a split.", f"The splits are {', '.join(SPLITS)}.")
        for task, rows in tasks.items():
            table = with_column(to_table(rows), "task", task)
            if len(table):
                tables.setdefault(task, {})[split] = table
    if not tables:
        raise DataError("The data set has no rows.", "Give at least one row with an output.")
    return tables


def _digest(tasks: Mapping[str, TaskInfo], tables: Mapping[str, Mapping[str, pa.Table]]) -> str:
    content = ContentHash()
    for name, own in tables.items():
        facts = tasks[name]
        content.add([name, facts.kind, facts.instruction, facts.metrics, facts.labels, facts.counts])
        for split in SPLITS:
            if split in own:
                content.add_table(own[split])
    return content.hexdigest()


def _write_parquet(path: Path, parts: Iterable[pa.Table]) -> None:
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for part in parts:
            writer.write_table(part.select(COLUMNS), row_group_size=ROW_GROUP)


def _walk(path: Path, start: int, stop: int) -> Iterator[Row]:
    """Rows ``start`` to ``stop`` of a file, from its row groups one after the other."""
    file, position = pq.ParquetFile(path), 0
    for index in range(file.num_row_groups):
        size = file.metadata.row_group(index).num_rows
        if position < stop and position + size > start:
            place = position
            for batch in file.iter_batches(AT_ONCE, row_groups=[index], columns=list(COLUMNS)):
                own = batch.slice(max(0, start - place), max(0, stop - place - max(0, start - place)))
                yield from to_rows(own)
                place += len(batch)
        position += size


def _slice(path: Path, start: int, stop: int) -> pa.Table:
    file = pq.ParquetFile(path)
    groups, first, position = [], None, 0
    for index in range(file.num_row_groups):
        size = file.metadata.row_group(index).num_rows
        if position < stop and position + size > start:
            first = position if first is None else first
            groups.append(index)
        position += size
    table = file.read_row_groups(groups, columns=list(COLUMNS))
    return table.slice(start - (first or 0), stop - start)
