"""A model's answers to the rows of one task, by option likelihood or by generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.data.tasks import Task
from core.data.templates import Encoded, fit
from core.evaluation.batching import Progress
from core.evaluation.generate import GenerationSample, generate
from core.evaluation.metrics import OPTION_KINDS
from core.evaluation.options import OptionSample, score_options
from core.evaluation.predictions import Answer, references
from core.evaluation.view import ModelView

Rows = Sequence[Mapping[str, Any]]


def answer(
    view: ModelView, task: Task, rows: Rows, progress: Progress, *, task_index: int, batch_size: int
) -> list[Answer]:
    """One answer for each row, in order; reports what was cut or cannot be right as log events."""
    work = _choose if task.info.kind in OPTION_KINDS else _write
    return work(view, task, rows, progress, task_index, batch_size)


def _choose(
    view: ModelView, task: Task, rows: Rows, progress: Progress, task_index: int, batch_size: int
) -> list[Answer]:
    limit = min(view.max_length, view.positions or view.max_length)
    options_of = {choice: view.encoder.answer_ids(choice)[: limit - 1] for row in rows for choice in row["choices"]}
    samples, cut = [], 0
    for row in rows:
        options = [options_of[choice] for choice in row["choices"]]
        prompt = fit(view.encoder.prompt_ids(row, task.template), max(options, key=len), limit)
        cut += prompt.cut > 0
        samples.append(OptionSample(prompt.prompt, options, task_index))
    _tell_cut(progress, task, cut, limit)
    impossible = sum(not set(references(row)) & set(row["choices"]) for row in rows)
    if impossible:
        message = f"{task.name}: in {impossible} rows the right answer is not among the choices; they count as wrong."
        progress.sink.emit("log", level="warning", message=message)
    found = score_options(view, samples, batch_size=batch_size, done=progress.add)
    answers = []
    for row, scores in zip(rows, found, strict=True):
        values = getattr(scores, f"{task.spec.option_score}s")
        best = max(range(len(values)), key=values.__getitem__)
        answers.append(Answer(row["choices"][best], references(row), tuple(row["choices"]), scores.sums, scores.means))
    return answers


def _write(
    view: ModelView, task: Task, rows: Rows, progress: Progress, task_index: int, batch_size: int
) -> list[Answer]:
    limit = view.prompt_limit(task.spec.max_new_tokens)
    prompts: list[Encoded] = [fit(view.encoder.prompt_ids(row, task.template), [], limit) for row in rows]
    _tell_cut(progress, task, sum(prompt.cut > 0 for prompt in prompts), limit)
    texts = generate(
        view,
        [GenerationSample(prompt.prompt, task_index) for prompt in prompts],
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
