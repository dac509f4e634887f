"""A model's answers to the rows of one task, by option likelihood or by generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.tasks import Task
from core.data.templates import fit
from core.evaluation.batching import Progress
from core.evaluation.generate import GenerationSample, generate
from core.evaluation.metrics import OPTION_KINDS
from core.evaluation.options import score_options
from core.evaluation.predictions import Answer, references
from core.evaluation.trees import OptionSample
from core.evaluation.view import ModelView

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Asked:
    """Rows as token ids: prompts, and for scored options each row's options. ``cut`` prompts were over ``limit``."""

    prompts: list[list[int]]
    options: list[list[list[int]]]
    cut: int
    limit: int


def ask(view: ModelView, task: Task, rows: Rows) -> Asked:
    """Tokenise the rows of a task; an adapter and its base read the same."""
    scored = task.info.kind in OPTION_KINDS
    if scored:
        limit = min(view.max_length, view.positions or view.max_length)
        choices = dict.fromkeys(choice for row in rows for choice in row["choices"])
        ids = {choice: view.encoder.answer_ids(choice)[: limit - 1] for choice in choices}
        options = [[ids[choice] for choice in row["choices"]] for row in rows]
    else:
        limit, options = view.prompt_limit(task.spec.max_new_tokens), [[[]]] * len(rows)
    encoded = [
        fit(view.encoder.prompt_ids(row, task.template), max(own, key=len), limit)
        for row, own in zip(rows, options, strict=True)
    ]
    cut = sum(prompt.cut > 0 for prompt in encoded)
    return Asked([prompt.prompt for prompt in encoded], options if scored else [], cut, limit)


def answer(
    view: ModelView,
    task: Task,
    rows: Rows,
    progress: Progress,
    *,
    task_index: int,
    batch_size: int,
    asked: Asked | None = None,
) -> list[Answer]:
    """One answer for each row, in order; reports what was cut or cannot be right as log events.

    ``asked`` saves tokenising the rows again.
    """
    asked = asked or ask(view, task, rows)
    _tell_cut(progress, task, asked.cut, asked.limit)
    work = _choose if task.info.kind in OPTION_KINDS else _write
    return work(view, task, rows, asked, progress, task_index, batch_size)


def _choose(
    view: ModelView, task: Task, rows: Rows, asked: Asked, progress: Progress, task_index: int, batch_size: int
) -> list[Answer]:
    impossible = sum(not set(references(row)) & set(row["choices"]) for row in rows)
    if impossible:
        message = f"{task.name}: in {impossible} rows the right answer is not among the choices; they count as wrong."
        progress.sink.emit("log", level="warning", message=message)
    samples = [OptionSample(*one, task_index) for one in zip(asked.prompts, asked.options, strict=True)]
    found = score_options(view, samples, batch_size=batch_size, done=progress.add)
    answers = []
    for row, scores in zip(rows, found, strict=True):
        values = getattr(scores, f"{task.spec.option_score}s")
        best = max(range(len(values)), key=values.__getitem__)
        answers.append(Answer(row["choices"][best], references(row), tuple(row["choices"]), scores.sums, scores.means))
    return answers


def _write(
    view: ModelView, task: Task, rows: Rows, asked: Asked, progress: Progress, task_index: int, batch_size: int
) -> list[Answer]:
    texts = generate(
        view,
        [GenerationSample(prompt, task_index) for prompt in asked.prompts],
        max_new_tokens=task.spec.max_new_tokens,
        batch_size=batch_size,
        done=progress.add,
        check=progress.check,
    )
    return [Answer(text, references(row)) for text, row in zip(texts, rows, strict=True)]


def _tell_cut(progress: Progress, task: Task, cut: int, limit: int) -> None:
    if cut:
        message = f"{task.name}: {cut} prompts are longer than {limit} tokens and lost their middle."
        progress.sink.emit("log", level="warning", message=message)
