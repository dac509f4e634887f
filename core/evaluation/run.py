"""Scores of a run: every task, adapter and base, as events and predictions files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.store import DatasetStore
from core.data.tasks import Task, load_tasks
from core.data.templates import TextEncoder
from core.errors import ConfigurationError, DataError, NotFoundError
from core.evaluation.answers import Asked, answer, ask
from core.evaluation.base_scores import BaseScores
from core.evaluation.baselines import Baselines, baselines, commonest_answer
from core.evaluation.batching import Progress
from core.evaluation.metrics import OPTION_KINDS, Metric, judge, select
from core.evaluation.predictions import Predictions, write_predictions
from core.evaluation.statistics import estimate
from core.evaluation.view import ModelView
from core.home import Home, RunFolder
from core.jobs.sinks import Sink
from core.schema import RunSpec, TaskSpec

ADAPTER, BASE = "adapter", "base"


def score(
    spec: RunSpec,
    folder: RunFolder,
    store: DatasetStore,
    sink: Sink,
    *,
    tasks: Sequence[TaskSpec] | None = None,
    split: str | None = None,
    models: Sequence[str] = (ADAPTER, BASE),
    device: str = "auto",
) -> None:
    """Score a run's adapter and its untouched base on tasks of any data set; None: the run's own tasks and split.

    Emits ``progress``, ``log`` and ``score`` events and writes ``predictions/``. The base's answers are kept in the
    home's cache, so that runs on the same rows share them. Raises Cancelled when the sink asks to stop.
    """
    from core.models import download_progress, load_base, pick_device, resolve_base

    sink.emit("progress", step=0, total=0, phase="loading", seconds_left=None)
    chosen = load_tasks(store, list(tasks) if tasks else spec.tasks, spec.seed)
    if not chosen:
        raise ConfigurationError("The run has no tasks of its own to score.", "Name a data set to score it on.")
    device = pick_device(device)
    source = resolve_base(spec.model, progress=download_progress(sink))
    model = load_base(spec.model, device, folder=source)
    if ADAPTER in models:
        model = _with_adapter(model, folder)
    settings = {"max_length": spec.train.max_length, "dtype": str(model.dtype), "device": device.partition(":")[0]}
    settings["quantization"] = spec.model.quantization
    score_model(
        model,
        TextEncoder(source),
        chosen,
        folder,
        sink,
        split=split or spec.evaluation.split,
        models=models,
        batch_size=spec.evaluation.batch_size,
        max_length=spec.train.max_length,
        kept=_kept(folder, source, settings),
    )


def score_model(
    model: Any,
    encoder: TextEncoder,
    tasks: Sequence[Task],
    folder: RunFolder,
    sink: Sink,
    *,
    split: str,
    models: Sequence[str] = (ADAPTER, BASE),
    batch_size: int = 32,
    max_length: int = 512,
    kept: BaseScores | None = None,
) -> None:
    """As ``score``, for a model in memory; ``kept`` holds the base's answers from other runs."""
    sheets = _sheets(tasks, split, sink)
    for sheet in sheets:
        sheet.kept = kept.find(sheet.key) if kept and BASE in models else None
    base_rows = sum(len(sheet.rows) for sheet in sheets if BASE in models and not sheet.kept)
    progress = Progress(sink, base_rows + sum(len(sheet.rows) for sheet in sheets if ADAPTER in models))
    for which in models:
        view = ModelView(model, encoder, adapter=which == ADAPTER, max_length=max_length)
        places = [_task_index(view, sheet.task) for sheet in sheets]
        for sheet, place in zip(sheets, places, strict=True):
            if which == BASE and sheet.kept:
                answers = sheet.kept.answers
            else:
                sheet.asked = sheet.asked or ask(view, sheet.task, sheet.rows)
                answers = answer(
                    view,
                    sheet.task,
                    sheet.rows,
                    progress,
                    task_index=place,
                    batch_size=batch_size,
                    asked=sheet.asked,
                )
            predictions = judge(sheet.key, answers, sheet.metrics)
            if which == BASE and kept and not sheet.kept:
                _write(kept.path(sheet.key), sheet, predictions)
            _publish(sheet, which, predictions, folder, sink)


@dataclass
class Sheet:
    """A task's rows in one split with the metrics and baselines they are scored by."""

    task: Task
    split: str
    rows: Sequence[Mapping[str, Any]]
    metrics: list[Metric]
    baselines: dict[str, Baselines]
    key: str
    kept: Predictions | None = None
    asked: Asked | None = None


def _sheets(tasks: Sequence[Task], split: str, sink: Sink) -> list[Sheet]:
    sheets = []
    for task in tasks:
        rows = task.rows(split)
        if not rows:
            sink.emit("log", level="warning", message=f"{task.name} has no {split} rows: it is not scored.")
            continue
        metrics = select(task.info.kind, task.metrics)
        commonest = commonest_answer(task)
        worth = {metric.name: baselines(task, metric, rows, commonest) for metric in metrics}
        sheets.append(Sheet(task, split, rows, metrics, worth, score_key(task, split, len(rows))))
    if not sheets:
        raise DataError(
            f"None of the tasks has {split} rows.", "Choose another split, or upload rows for this one and score again."
        )
    return sheets


def score_key(task: Task, split: str, rows: int) -> str:
    """A hash of what was asked and how it is scored, not of who answers or by which metric: equal keys pair."""
    facts = {
        "dataset": task.dataset_id,
        "task": task.info.name,
        "split": split,
        "rows": rows,
        "instruction": task.instruction,
        "template": task.template.model_dump(),
    }
    if task.info.kind in OPTION_KINDS:
        facts["option_score"] = task.spec.option_score
    else:
        facts["max_new_tokens"] = task.spec.max_new_tokens
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _publish(sheet: Sheet, which: str, predictions: Predictions, folder: RunFolder, sink: Sink) -> None:
    """Write the predictions, then say the scores: an event never names a file that is not there."""
    file = f"{_slug(sheet.task.name)}-{sheet.split}-{which}-{sheet.key}.jsonl"
    _write(folder.predictions / file, sheet, predictions)
    for metric in sheet.metrics:
        found, worth = estimate(metric, predictions), sheet.baselines[metric.name]
        sink.emit(
            "score",
            task=sheet.task.name,
            dataset=sheet.task.dataset_id,
            split=sheet.split,
            model=which,
            metric=metric.name,
            value=found.value,
            stderr=found.stderr,
            rows=found.rows,
            primary=metric is sheet.metrics[0],
            chance=worth.chance,
            trivial=worth.trivial,
            copy=worth.copy,
            predictions=file,
            key=sheet.key,
        )


def _write(path: Path, sheet: Sheet, predictions: Predictions) -> None:
    write_predictions(path, sheet.key, sheet.rows, predictions.answers, predictions.values)


def _with_adapter(model: Any, folder: RunFolder) -> Any:
    from core.adapters.attach import load

    if not folder.adapter.is_dir():
        raise NotFoundError(
            f"The run has no adapter at {folder.adapter}.", "Let its training finish first, or score the base alone."
        )
    return load(model, folder.adapter, name="default")


def _task_index(view: ModelView, task: Task) -> int:
    """The number that the adapter was trained to know the task by, 0 for tasks it has not seen.

    Raises ConfigurationError where a task gate would have to decide about an unseen task.
    """
    from core.adapters.config import needs_task

    if not (view.adapted and view.adapter):
        return 0
    config = view.model.peft_config[view.model.active_adapter]
    known = list(getattr(config, "tasks", ()))
    if task.name in known:
        return known.index(task.name)
    if needs_task(config):
        raise ConfigurationError(
            f"This adapter chooses its experts by task and was not trained on {task.name}.",
            f"It knows {', '.join(known)}. Score it on these, or use a method with token or sequence gates.",
        )
    return 0


def _kept(folder: RunFolder, base: Path, settings: dict[str, Any]) -> BaseScores | None:
    """The home's store of base answers; None for a run folder that lies outside a home."""
    home = Home(folder.root.resolve().parent.parent)
    if folder.root.resolve().parent != home.runs or not home.cache.is_dir():
        return None
    return BaseScores(home.cache / "base-scores", base, settings)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")[:80] or "task"
