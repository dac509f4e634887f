"""What a score has to beat: chance, an answer that needs no understanding, copying the input. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.tasks import Task
from core.evaluation.metrics import OPTION_KINDS, Metric, judge
from core.evaluation.predictions import Answer, references
from core.evaluation.statistics import estimate

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Baselines:
    """Values of one metric. ``chance``: guessing among the options uniformly, 0 for free answers; ``trivial``: the
    data set's own figure (the best of commonest answer, position and length) or always the commonest training
    answer; ``copy``: the input as the answer, for free answers. None: not known."""

    chance: float
    trivial: float | None
    copy: float | None


def baselines(task: Task, metric: Metric, rows: Rows, commonest: str | None) -> Baselines:
    """The baselines of a metric on the scored rows; ``commonest`` is the commonest training answer."""
    if task.info.kind in OPTION_KINDS:
        chance = _chance_f1(task, rows) if metric.name == "macro_f1" else _chance(rows)
        stored = None if metric.name == "macro_f1" else task.info.trivial
        return Baselines(chance, stored if stored is not None else _always(metric, rows, commonest, task), None)
    stored = task.info.trivial if metric.name == task.info.metric else None
    trivial = stored if stored is not None else _always(metric, rows, commonest, task)
    return Baselines(0.0, trivial, _value(metric, rows, [row["input"] for row in rows]))


def commonest_answer(task: Task) -> str | None:
    """The commonest output of the task's training rows, None where it has none."""
    counts = Counter(row["output"] for row in task.iterate("train")) if task.size("train") else Counter()
    return counts.most_common(1)[0][0] if counts else None


def _always(metric: Metric, rows: Rows, answer: str | None, task: Task) -> float | None:
    if answer is None or task.info.kind in ("choice", "sentence"):
        return None
    return _value(metric, rows, [answer] * len(rows))


def _value(metric: Metric, rows: Rows, texts: Sequence[str]) -> float:
    answers = [Answer(text, references(row), (text,), (0.0,), (0.0,)) for text, row in zip(texts, rows, strict=True)]
    return estimate(metric, judge("", answers, [metric])).value


def _chance(rows: Rows) -> float:
    return sum(1 / len(row["choices"]) for row in rows) / len(rows)


def _chance_f1(task: Task, rows: Rows) -> float:
    """Macro F1 expected of uniform guessing: label c with share p among k labels has F1 2p / (kp + 1)."""
    k = len(task.info.labels) or len(rows[0]["choices"])
    shares = [count / len(rows) for count in Counter(row["output"] for row in rows).values()]
    return sum(2 * p / (k * p + 1) for p in shares) / max(k, len(shares))
