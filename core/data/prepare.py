"""From files to the tables and facts of a data set, ready to be previewed or stored."""

from __future__ import annotations

import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, Field

from core.data import hub_sets, splits
from core.data.apply import Mapped, RowReader
from core.data.canonical import column, to_table, with_column
from core.data.checks import keys_of, overlap, without_overlap
from core.data.describe import describe, fill_choices
from core.data.formats import RawFile, read_file
from core.data.kinds import OPTION_KINDS, TaskInfo, detect_kind, distinct
from core.data.mapping import detect
from core.data.metadata import TaskMetadata
from core.data.names import task_name
from core.data.pace import Pace
from core.data.sources import Plan, PlannedFile, plan
from core.data.spill import Spill
from core.data.store import SPLITS, DatasetInfo
from core.errors import DataError
from core.home import RESERVE
from core.schema import Spec
from core.texts import printable
from core.units import size

Told = Callable[[str], None]
SMALL = 2**24  # bytes that are not worth a refusal
_BLOCK = 4096
_BLOCK_CHARACTERS = 2**21
LONGEST_NAME = 120  # characters
MOST_TASKS = 2000


class Options(Spec):
    """What a person may say about an upload; empty means found out."""

    name: str | None = Field(None, max_length=LONGEST_NAME)
    mapping: dict[str, Any] | None = None
    task: str | None = Field(None, max_length=LONGEST_NAME)
    instruction: str | None = None
    kind: str | None = None
    metric: str | None = None
    splits: dict[str, str] | None = None
    validation: float = 0.1
    test: float = 0.2
    seed: int = Field(0, ge=0, lt=2**31)
    drop_overlap: bool = False
    header: bool | None = None
    cache: Path | None = None


class FileReport(BaseModel):
    """How one file was read."""

    name: str
    format: str
    encoding: str = ""
    columns: list[str]
    mapping: dict[str, Any]
    task: str
    split: str | None = None
    rows: int = 0


def silent(text: str) -> None:
    """Nobody listens."""


@dataclass
class Gathered:
    """The rows of one task and split as they come in: their batches on disk, and the raw row that each came from."""

    batches: list[int] = field(default_factory=list)
    groups: array[int] = field(default_factory=lambda: array("q"))


@dataclass
class Prepared:
    info: DatasetInfo
    tables: dict[str, dict[str, pa.Table]]  # task -> split -> rows
    files: list[FileReport]

    def by_split(self) -> dict[str, dict[str, pa.Table]]:
        found: dict[str, dict[str, pa.Table]] = {}
        for task, own in self.tables.items():
            for split, table in own.items():
                found.setdefault(split, {})[task] = table
        return found


def prepare(
    paths: str | Path | Sequence[str | Path], options: Options, room: Path | None = None, told: Told = silent
) -> Prepared:
    """Read, map, split and describe everything that ``paths`` name: files, folders or a Hub data set.

    The rows lie in nameless files in ``room`` (else where the system keeps temporary files), so that few are in memory.
    ``told`` hears how far it is.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    if not paths:
        raise DataError("Nothing to upload.", "Name a file, a folder or a Hub data set.")
    source, found = find_files(paths, options)
    _check_room(found, room)
    spill = Spill(room)
    rows, labelled, files, notes = _gather(found, options, spill, told)
    tables: dict[str, dict[str, pa.Table]] = {}
    tasks: dict[str, TaskInfo] = {}
    for task, parts in rows.items():
        own = {split: spill.table(part.batches) for split, part in parts.items()}
        groups = parts["train"].groups if "train" in parts else []
        entry = found.metadata.get(task, TaskMetadata(name=task))
        own, hoisted = _hoist(own)
        given = [split for split in own if split != "train"]
        told(f"Drawing the splits of {task} from {sum(map(len, own.values())):,} rows.")
        own, said = splits.draw(
            own,
            groups,
            task=task,
            validation=options.validation,
            test=options.test,
            seed=options.seed,
            room=room,
        )
        notes += said
        own = {split: own[split] for split in SPLITS if split in own}
        own, said = _overlap(task, own, given, options.drop_overlap, room)
        notes += said
        told(f"Describing {task}.")
        info = _describe(task, own, entry, hoisted, options, task in labelled)
        own = {split: fill_choices(info, table) for split, table in own.items()}
        _check_options(info, own)
        notes += _few(info)
        tables[task], tasks[task] = own, info
    info = DatasetInfo(
        name=options.name or found.name,
        source=source,
        tasks=tasks,
        mapping={file.name: file.mapping for file in files},
        notes=list(dict.fromkeys(notes)),
    )
    return Prepared(info, tables, files)


def _check_room(found: Plan, room: Path | None) -> None:
    """Refuse what the disk cannot take, before any of it is written: rows that wait and rows that are stored."""
    folder = room if room is not None and room.exists() else Path(tempfile.gettempdir())
    needed = 2 * sum(file.path.stat().st_size for file in found.files)
    free = shutil.disk_usage(folder).free
    if needed > max(0, free - RESERVE) and needed > SMALL:
        raise DataError(
            f"Reading these files takes about {size(needed)} on the disk of {folder}, which has {size(free)} free.",
            "Make room there, or keep the data on another disk with --home.",
        )


def find_files(paths: Sequence[str | Path], options: Options) -> tuple[str, Plan]:
    """Where the rows come from, in words, and the files to read."""
    hub = hub_sets.parse_hub(paths[0]) if len(paths) == 1 else None
    if hub is None:
        places = [Path(path).expanduser() for path in paths]
        return printable(", ".join(map(str, places))), plan(places, options.splits)
    found = plan([hub_sets.fetch(hub, options.cache)], options.splits)
    name = task_name(hub.repo.split("/")[1])
    commit = found.name  # a snapshot's folder is called by its commit
    found.files = [PlannedFile(f.path, name if f.task == commit else f.task, f.split) for f in found.files]
    found.name = name
    return f"{hub_sets.PREFIX}{hub}", found


def _gather(
    found: Plan, options: Options, spill: Spill, told: Told
) -> tuple[dict[str, dict[str, Gathered]], set[str], list[FileReport], list[str]]:
    """Rows by task and split, the tasks whose answers are class labels, reports of the files, notes."""
    rows: dict[str, dict[str, Gathered]] = {}
    labelled: set[str] = set()
    others: set[str] = set()
    files, notes = [], list(found.notes)
    pace = Pace([planned.path.stat().st_size for planned in found.files])
    for number, planned in enumerate(found.files):
        told(f"Opening {printable(planned.path.name)}.")
        raw = read_file(planned.path, header=options.header)
        sample = raw.sample()
        mapping, said = detect(
            raw.columns, sample, file=raw.name, given=options.mapping, label_names=raw.label_names
        )  # fmt: skip
        if len(found.files) > 1 and mapping.label and all(_is_hidden(row.get(mapping.label)) for row in sample):
            notes.append(f"{raw.name} was left out: all its labels are -1, which stands for hidden ones.")
            continue
        reader = RowReader(raw, mapping)
        count = 0
        for block in _blocks(reader):
            count += len(block)
            told(f"{count:,} rows of {raw.name} read{pace.said(number, raw.source.share())}.")
            for (task, split), part in _parts(block, planned, options, raw, mapping.task).items():
                gathered = rows.setdefault(task, {}).setdefault(split, Gathered())
                gathered.batches += spill.put(with_column(to_table([item.row for item in part]), "task", task))
                gathered.groups.extend(number * 2**40 + item.number for item in part)
                (labelled if mapping.label and not mapping.choices else others).add(task)
            if len(rows) > MOST_TASKS:
                raise DataError(
                    f"{raw.name} names more than {MOST_TASKS:,} tasks{_by(mapping.task)}.",
                    "Unset the role task, or give one name for all rows with task=NAME.",
                )
        notes += [*raw.notes, *said, *reader.notes()]
        files.append(_report(raw, mapping.shown(), planned, count))
    return rows, labelled - others, files, notes


def _report(raw: RawFile, mapping: dict[str, Any], planned: PlannedFile, rows: int) -> FileReport:
    return FileReport(
        name=raw.name,
        format=raw.format,
        encoding=raw.encoding,
        columns=raw.columns,
        mapping=mapping,
        task=planned.task,
        split=planned.split,
        rows=rows,
    )


def _blocks(reader: RowReader) -> Iterator[list[Mapped]]:
    """Rows that are handled together: few where they are long."""
    block, size = [], 0
    for item in reader:
        block.append(item)
        size += len(item.row["input"]) + len(item.row["output"]) + len(item.row["instruction"])
        if len(block) == _BLOCK or size > _BLOCK_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _by(column: str | None) -> str:
    return f" in the column {column!r}" if column else ""


def _parts(
    block: list[Mapped], planned: PlannedFile, options: Options, raw: RawFile, column: str | None
) -> dict[tuple[str, str], list[Mapped]]:
    parts: dict[tuple[str, str], list[Mapped]] = {}
    for item in block:
        own = item.row["task"].strip()
        if len(own) > LONGEST_NAME and not options.task:
            raise DataError(
                f"{raw.where(item.place, column)}: a task's name of {len(own):,} characters.",
                f"Use at most {LONGEST_NAME}, or unset the role task if the column holds something else.",
            )
        task = options.task or (task_name(own) if own else planned.task)
        parts.setdefault((task, item.split or planned.split or "train"), []).append(item)
    return parts


def _is_hidden(value: Any) -> bool:
    return str(value) == "-1"


def _hoist(own: dict[str, pa.Table]) -> tuple[dict[str, pa.Table], str]:
    """An instruction that all rows share, beside inputs of their own, belongs to the task."""
    first = next((table["instruction"][0].as_py() for table in own.values() if len(table)), "")
    shared = first and all(text == first for table in own.values() for text in column(table, "instruction"))
    if not shared or not all(all(column(table, "input")) for table in own.values()):
        return own, ""
    return {split: with_column(table, "instruction", "") for split, table in own.items()}, first


def _overlap(
    task: str, own: dict[str, pa.Table], given: list[str], drop: bool, room: Path | None
) -> tuple[dict[str, pa.Table], list[str]]:
    """Notes on rows of the given splits that are also trained on, or those training rows removed."""
    notes = []
    if "train" not in own or not given:
        return own, notes  # drawn splits never overlap
    known = keys_of(own["train"])
    found = {split: overlap(known, own[split], keys_of(own[split])) for split in given}
    found = {split: report for split, report in found.items() if report.rows}
    if drop and found:
        own, gone = without_overlap(own, room)
        if not len(own["train"]):
            raise DataError(
                f"{task}: every training row is also in validation or test.", "Check the files, or keep the overlap."
            )
        return own, [f"{task}: {gone} training rows were removed because their input is in validation or test."]
    for split, report in found.items():
        notes.append(
            f"{task}: {report.rows} of {len(own[split])} {split} rows ({report.share:.1%}) have an input that is also "
            "trained on."
        )
    return own, notes


def _describe(
    task: str, own: dict[str, pa.Table], entry: TaskMetadata, hoisted: str, options: Options, labelled: bool
) -> TaskInfo:
    instruction = options.instruction if options.instruction is not None else entry.instruction or hoisted
    kind = options.kind or entry.task_kind()
    if kind is None and labelled and detect_kind(own) == "generation" and _recur(own):
        kind = "classification"
    return describe(
        task,
        own,
        instruction=instruction,
        kind=kind,
        metric=options.metric or entry.metric,
        labels=entry.labels or (),
        chance=None if options.kind else entry.chance,
        trivial=None if options.kind else entry.trivial,
        about=entry.about,
    )


def _recur(own: dict[str, pa.Table]) -> bool:
    """Whether a label column's values come again, as classes do."""
    return 2 <= len(distinct(own, 1000)) <= min(1000, sum(map(len, own.values())) // 2)


def _check_options(info: TaskInfo, own: dict[str, pa.Table]) -> None:
    """Rows of tasks that are scored by options need options that hold the answer."""
    if info.kind not in OPTION_KINDS:
        return
    if info.kind == "classification" and len(info.labels) < 2:
        raise DataError(
            f"{info.name}: classification needs two labels or more; it has {', '.join(info.labels) or 'none'}.",
            "Check the label column, or upload it with kind generation.",
        )
    for split, table in own.items():
        columns = (column(table, "choices"), column(table, "output"))
        for number, (choices, output) in enumerate(zip(*columns, strict=True), start=1):
            if not choices:
                raise DataError(
                    f"{info.name}, {split} row {number}: no choices, but the kind is {info.kind}.",
                    "Map the column of the choices, or use kind generation.",
                )
            if output not in choices:
                raise DataError(
                    f"{info.name}, {split} row {number}: {output[:60]!r} is not among the labels "
                    f"{', '.join(choices[:8])}.",
                    "Correct the row, or the labels in tasks.json.",
                )


def _few(info: TaskInfo) -> list[str]:
    if "train" not in info.counts:
        return [f"{info.name} has no training rows; it can only be scored."]
    if "test" not in info.counts and "validation" not in info.counts:
        return [f"{info.name} has training rows only; it cannot be scored."]
    return []
