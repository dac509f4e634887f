"""How long the rows of a run are in tokens: the longest texts and a sample are encoded. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.data.canonical import TEXT_COLUMNS, Row, to_rows
from core.data.tasks import Task
from core.data.templates import TextEncoder
from core.errors import StudioError
from core.models import resolve_base
from core.schema import ModelSpec

LONG = 6  # rows of a task that are encoded: those with the longest texts
EVERY = 18  # and as many more, evenly spaced
ITEM = 50  # characters that an item of a list is taken to have


@dataclass(frozen=True)
class Lengths:
    """``longest``: tokens of the longest row found; ``answers``: mean tokens of an answer; ``usual``: mean and standard
    deviation of the tokens of a row."""

    longest: int
    answers: float
    usual: tuple[float, float]


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
    answers, mean, squares = (
        sum(getattr(one, name) * one.rows for one in found) / rows for name in ("answers", "mean", "squares")
    )
    return Lengths(max(one.longest for one in found), answers, (mean, math.sqrt(max(0.0, squares - mean**2))))


@dataclass(frozen=True)
class _Found:
    rows: int
    longest: int
    answers: float
    mean: float
    squares: float  # mean of the squared tokens


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
    task, encoder = key.task, _encoder(key.folder)
    table = task.store.table(task.dataset_id, task.info.name, "train")
    spread = range(0, len(table), max(1, len(table) // EVERY))
    chosen = [*np.argsort(_characters(table))[-LONG:].tolist(), *spread]
    found = [encoder.encode(row, task.template, key.max_length) for row in _rows(task, table.take(chosen))]
    usual = found[-len(spread) :]
    answers, tokens = np.array([len(one.answer) for one in usual]), np.array([len(one.ids) for one in usual])
    longest = max(len(one.ids) for one in found)
    return _Found(task.size("train"), longest, float(answers.mean()), float(tokens.mean()), float((tokens**2).mean()))


def _rows(task: Task, table: pa.Table) -> list[Row]:
    """Stored rows as the run asks them."""
    choices = {"choices": list(task.info.labels)} if task.info.kind == "classification" else {}
    return [
        {**row, "task": task.name, "instruction": row["instruction"] or task.instruction}
        | (choices if not row["choices"] else {})
        for row in to_rows(table)
    ]


def _characters(table: pa.Table) -> np.ndarray:
    """How long each row is, roughly: its texts, and a short text for each item of its lists."""
    texts = [pc.fill_null(pc.utf8_length(table[name]), 0) for name in TEXT_COLUMNS]
    lists = [pc.multiply(pc.fill_null(pc.list_value_length(table[name]), 0), ITEM) for name in ("choices", "history")]
    return sum(column.to_numpy().astype(np.int64) for column in (*texts, *lists))


@lru_cache(maxsize=4)
def _encoder(folder: str) -> TextEncoder:
    return TextEncoder(Path(folder))
