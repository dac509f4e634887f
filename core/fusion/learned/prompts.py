"""Prompts of the tasks without their answers: all that a learned fusion reads. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from core.data.canonical import Row
from core.data.tasks import Task
from core.data.templates import TextEncoder, fit
from core.errors import DataError

LABELS = ("output", "references")
LONGEST_ANSWER = 32  # tokens that an expert writes to a prompt without options


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of an unlabelled row.

    ``options``: its possible answers, each once, without the end-of-sequence token; empty where any text is one.
    ``answer``: what an expert wrote, where there are no options or they are not to be used.
    """

    ids: list[int]
    options: tuple[tuple[int, ...], ...] = ()
    answer: tuple[int, ...] = ()


def unlabelled(row: Mapping[str, Any]) -> Row:
    """The row without what tells the right answer."""
    return {name: value for name, value in row.items() if name not in LABELS}


def check_prompts(tasks: Sequence[Task], split: str) -> None:
    """Raises DataError where a task has no rows in the split that prompts are to be taken from."""
    for task in tasks:
        if not task.size(split):
            has = [name for name in ("train", "validation", "test") if task.size(name)]
            raise DataError(
                f"The task {task.name} has no {split} rows to take unlabelled prompts from; it has rows for "
                f"{', '.join(has) or 'no split at all'}.",
                f"Set method.options.prompts to {' or '.join(has)}." if has else "Upload rows for it.",
            )


class TaskPrompts:
    """The prompts of one task in an order that depends on the seed and the task's name alone.

    ``limit``: tokens of a sample at most; ``count``: prompts at most, drawn by the seed.
    """

    def __init__(self, task: Task, encoder: TextEncoder, split: str, *, limit: int, count: int, seed: int) -> None:
        check_prompts([task], split)
        self.name, self.task = task.name, task
        self._encoder, self._limit, self._seed = encoder, limit, seed
        rows = [unlabelled(row) for row in task.rows(split)]
        self._rows = [rows[i] for i in self._chance(0).permutation(len(rows))[:count]]
        self._closed = all(row.get("choices") for row in self._rows)
        self._encoded: dict[int, Prompt] = {}
        self._epoch: tuple[int, np.ndarray] = (0, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, draw: int, size: int) -> list[Prompt]:
        """Batch number ``draw``: every prompt comes once before any comes again, in a new order each time."""
        return [self[i] for i in self.numbers(draw, size)]

    def numbers(self, draw: int, size: int) -> list[int]:
        size = min(size, len(self))
        return [self._at(place) for place in range(draw * size, (draw + 1) * size)]

    def __getitem__(self, number: int) -> Prompt:
        if number not in self._encoded:
            self._encoded[number] = self._encode(self._rows[number])
        return self._encoded[number]

    def set_answer(self, number: int, answer: Sequence[int]) -> None:
        self._encoded[number] = replace(self[number], answer=tuple(answer))

    def _at(self, place: int) -> int:
        epoch, within = divmod(place, len(self))
        if self._epoch[0] != epoch + 1:
            self._epoch = (epoch + 1, self._chance(epoch + 1).permutation(len(self)))
        return int(self._epoch[1][within])

    def _chance(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, epoch, *self.name.encode()])

    def _encode(self, row: Row) -> Prompt:
        encoder, ids = self._encoder, self._encoder.prompt_ids(row, self.task.template)
        if not self._closed:
            longest = min(LONGEST_ANSWER, self.task.spec.max_new_tokens)
            return Prompt(fit(ids, [], max(1, self._limit - longest)).prompt)
        cut = self._limit - 2  # a prompt token and the end of the answer are always left
        options = dict.fromkeys(tuple(encoder.ids(choice)[:cut]) or (encoder.eos_id,) for choice in row["choices"])
        longest = [*max(options, key=len), encoder.eos_id]  # cut as for scoring, which reads the end too
        return Prompt(fit(ids, longest, self._limit).prompt, tuple(options))
