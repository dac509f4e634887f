"""How long the rows of a run are in tokens, from a sample that takes milliseconds. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from core.data.canonical import Row
from core.data.tasks import Task
from core.data.templates import TextEncoder
from core.errors import StudioError
from core.models import resolve_base
from core.schema import ModelSpec

ROWS = 2000  # rows of a task that are looked at, the first ones
LONG = 6  # of these, the longest texts that are encoded
EVERY = 18  # and as many more, evenly spaced


@dataclass(frozen=True)
class Lengths:
    """``longest``: tokens of the longest row found; ``answers``: mean tokens of an answer."""

    longest: int
    answers: float


def lengths(tasks: Sequence[Task], model: ModelSpec, max_length: int) -> Lengths | None:
    """Of training rows; None where the base's tokenizer is not on this machine or a row cannot be encoded."""
    try:
        folder = resolve_base(model, offline=True)
        found = [_of_task(_Key(task, str(folder), max_length)) for task in tasks if task.size("train")]
    except StudioError:
        return None
    if not found:
        return None
    rows = sum(one.rows for one in found)
    return Lengths(max(one.longest for one in found), sum(one.answers * one.rows for one in found) / rows)


@dataclass(frozen=True)
class _Found:
    rows: int
    longest: int
    answers: float


class _Key:
    """A task as far as its lengths depend on it, so that they are found once."""

    def __init__(self, task: Task, folder: str, max_length: int) -> None:
        self.task, self.folder, self.max_length = task, folder, max_length
        settings = task.spec.model_dump_json(include={"instruction", "template", "train_rows"})
        self.identity = (str(task.store.root), task.dataset_id, task.info.name, task.seed, settings, folder, max_length)

    def __hash__(self) -> int:
        return hash(self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.identity == other.identity


@lru_cache(maxsize=256)
def _of_task(key: _Key) -> _Found:
    task = key.task
    rows = _rows(task)
    encoder = _encoder(key.folder)
    longest = sorted(range(len(rows)), key=lambda i: _characters(rows[i]))[-LONG:]
    spread = range(0, len(rows), max(1, len(rows) // EVERY))
    encoded = {i: encoder.encode(rows[i], task.template, key.max_length) for i in {*longest, *spread}}
    answers = [len(encoded[i].answer) for i in spread]
    most = max(len(one.ids) for one in encoded.values())
    return _Found(task.size("train"), most, sum(answers) / len(answers))


def _rows(task: Task) -> list[Row]:
    """All training rows of a small task; of a large one the first, however the run draws its own."""
    if task.info.counts.get("train", 0) <= ROWS:
        return task.rows("train")
    rows = task.store.rows(task.dataset_id, task.info.name, "train", limit=ROWS)
    choices = list(task.info.labels) if task.info.kind == "classification" else None
    filled = {"task": task.name, **({"choices": choices} if choices else {})}
    return [{**row, **filled, "instruction": row["instruction"] or task.instruction} for row in rows]


@lru_cache(maxsize=4)
def _encoder(folder: str) -> TextEncoder:
    return TextEncoder(Path(folder))


def _characters(row: Row) -> int:
    """Of all that may stand in the prompt or the answer."""
    return sum(len(str(value)) for value in row.values() if value is not None)
