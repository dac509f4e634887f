"""Runs side by side: scores by task, differences on the same rows, and the settings that differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import ConfigurationError, StudioError
from core.evaluation.predictions import Predictions
from core.evaluation.statistics import Difference, compare_seeds, group_seeds

if TYPE_CHECKING:
    from storage.queries.scores import ScoreRow

BASE = "base"
MEAN = "mean"
FORMATS = ("text", "markdown", "csv", "latex")
TIE = 2.0  # standard errors

# A task as it was scored: name, data set, split, metric.
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Column:
    """One run, the seeds of one setting, or the untouched base; ``trainable`` is None for the base.

    ``badge`` stands beside the method, where its paper had to be interpreted.
    """

    label: str
    runs: list[str]
    method: str = ""
    trainable: int | None = None
    badge: str | None = None


@dataclass(frozen=True)
class Cell:
    """``stderr``: over rows, or None; ``spread``: standard deviation over seeds, None for a single run.

    ``best``: no other is higher and one is lower. ``tie``: not the best, but within two standard errors of it.
    ``unpaired`` says why there is no difference.
    """

    value: float
    stderr: float | None
    spread: float | None = None
    seeds: int = 1
    best: bool = False
    difference: Difference | None = None
    tie: bool = False
    unpaired: str = ""
    by_run: dict[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float | None:
        return self.stderr if self.spread is None else self.spread


@dataclass(frozen=True)
class Row:
    task: str
    dataset: str
    split: str
    metric: str
    chance: float | None
    rows: int
    cells: list[Cell | None]


@dataclass(frozen=True)
class Comparison:
    """``settings``: dotted name -> one value for each column of runs; ``mean``: over tasks that all columns have."""

    columns: list[Column]
    rows: list[Row]
    baseline: str | None = None
    settings: dict[str, list[Any]] = field(default_factory=dict)
    mean: Row | None = None
    metrics: list[str] = field(default_factory=list)

    def render(self, form: str = "text") -> str:
        if form not in FORMATS:
            raise ConfigurationError(f"{form!r} is not a format.", f"Choose one of {', '.join(FORMATS)}.")
        from core import compare_tables

        return compare_tables.RENDER[form](self)


def build(
    columns: Sequence[Column],
    scores: Mapping[str, Sequence[ScoreRow]],
    read: Callable[[ScoreRow], Predictions],
    *,
    baseline: str | None = None,
    settings: dict[str, list[Any]] | None = None,
    metric: str | None = None,
) -> Comparison:
    """``scores``: run -> its scores; ``read`` opens a score's predictions; ``baseline`` is a column's label.

    Each task's primary metric is compared, or ``metric`` where that is given.
    """
    metrics = list(dict.fromkeys(score.metric for own in scores.values() for score in own))
    if metric is not None and metric not in metrics:
        raise ConfigurationError(f"None of the runs was scored by {metric!r}.", f"There are {', '.join(metrics)}.")
    wanted = {
        run: [s for s in own if (s.primary if metric is None else s.metric == metric)] for run, own in scores.items()
    }
    found = [_by_key(wanted, column) for column in columns]
    base = _base(wanted)
    if base:
        columns, found = [*columns, Column(BASE, [])], [*found, base]
    labels = [column.label for column in columns]
    if baseline is not None and baseline not in labels:
        raise ConfigurationError(f"{baseline} is not one of the compared columns.", f"They are {', '.join(labels)}.")
    against = None if baseline is None else found[labels.index(baseline)]
    keys = list(dict.fromkeys(key for own in found for key in own))
    rows = [_row(key, found, against, read) for key in keys]
    place = None if baseline is None else labels.index(baseline)
    return Comparison(list(columns), rows, baseline, settings or {}, _mean(rows, len(found), place), metrics)


def _by_key(scores: Mapping[str, Sequence[ScoreRow]], column: Column) -> dict[Key, list[ScoreRow]]:
    return _collect(score for run in column.runs for score in scores.get(run, ()) if score.model != BASE)


def _base(scores: Mapping[str, Sequence[ScoreRow]]) -> dict[Key, list[ScoreRow]]:
    """The untouched base is the same for every run that scored it on the same rows: its first score counts."""
    found = _collect(score for own in scores.values() for score in own if score.model == BASE)
    return {key: own[:1] for key, own in found.items()}


def _collect(scores: Any) -> dict[Key, list[ScoreRow]]:
    found: dict[Key, list[ScoreRow]] = {}
    for score in scores:
        if score.value is not None:
            found.setdefault((score.task, score.dataset, score.split, score.metric), []).append(score)
    return found


def _row(
    key: Key,
    found: Sequence[Mapping[Key, list[ScoreRow]]],
    against: Mapping[Key, list[ScoreRow]] | None,
    read: Callable[[ScoreRow], Predictions],
) -> Row:
    own = [column.get(key, []) for column in found]
    levels = [_level(scores) for scores in own if scores]
    best = max((scores for scores in own if scores), key=_level) if max(levels) > min(levels) else []
    reference = against.get(key, []) if against is not None else []
    cells = [_cell(scores, reference, best, read) for scores in own]
    first = next(score for scores in own for score in scores)
    return Row(*key, chance=first.chance, rows=first.rows, cells=cells)


def _level(scores: Sequence[ScoreRow]) -> float:
    return float(np.mean([score.value for score in scores]))


def _cell(
    scores: Sequence[ScoreRow],
    reference: Sequence[ScoreRow],
    best: Sequence[ScoreRow],
    read: Callable[[ScoreRow], Predictions],
) -> Cell | None:
    if not scores:
        return None
    group = group_seeds([score.value for score in scores])
    is_best = bool(best) and group.mean >= _level(best) - 1e-12
    against, why = difference(scores, reference, read) if reference else (None, "")
    return Cell(
        value=group.mean,
        stderr=scores[0].stderr if len(scores) == 1 else None,
        spread=group.std,
        seeds=group.n,
        best=is_best,
        difference=against,
        tie=bool(best) and not is_best and _tied(scores, best, read),
        unpaired=why,
        by_run={score.run: score.value for score in scores},
    )


def _tied(scores: Sequence[ScoreRow], best: Sequence[ScoreRow], read: Callable[[ScoreRow], Predictions]) -> bool:
    """Within two standard errors of the best: of the paired difference, else of both scores taken as independent."""
    paired, _ = difference(best, scores, read)
    if paired is not None and paired.stderr is not None:
        return paired.value <= TIE * paired.stderr
    errors = [own[0].stderr if len(own) == 1 else group_seeds([s.value for s in own]).std for own in (scores, best)]
    return _close(_level(best) - _level(scores), errors)


def _close(gap: float, errors: Sequence[float | None]) -> bool:
    known = [error for error in errors if error is not None]
    return len(known) == len(errors) and gap <= TIE * math.hypot(*known)


def difference(
    scores: Sequence[ScoreRow], reference: Sequence[ScoreRow], read: Callable[[ScoreRow], Predictions]
) -> tuple[Difference | None, str]:
    """``scores - reference`` on the same rows, or None and the reason why the two cannot be paired."""
    everyone = (*scores, *reference)
    if {score.id for score in scores} == {score.id for score in reference}:
        return None, ""
    if len({score.key for score in everyone}) > 1:
        return None, "scored on other rows or in another way"
    if not all(score.predictions for score in everyone):
        return None, "no predictions are kept"
    try:
        return compare_seeds([read(one) for one in scores], [read(one) for one in reference], scores[0].metric), ""
    except StudioError as error:  # predictions were deleted or never imported: the scores still stand
        return None, error.message


def _mean(rows: Sequence[Row], columns: int, baseline: int | None) -> Row | None:
    """The macro mean over the tasks that every column has; its errors take the tasks as independent of each other."""
    shared = [row for row in rows if all(cell is not None for cell in row.cells)]
    if len(shared) < 2:
        return None
    cells = [_mean_cell([row.cells[place] for row in shared]) for place in range(columns)]
    best = max(cells, key=lambda cell: cell.value)
    differ = best.value > min(cell.value for cell in cells)
    marked: list[Cell | None] = []
    for place, cell in enumerate(cells):
        change = None if place == baseline else _mean_difference([row.cells[place] for row in shared])
        is_best = differ and cell.value >= best.value - 1e-12
        tie = differ and not is_best and _close(best.value - cell.value, (cell.error, best.error))
        marked.append(replace(cell, best=is_best, tie=tie, difference=change))
    metrics = list(dict.fromkeys(row.metric for row in shared))
    name = metrics[0] if len(metrics) == 1 else f"{len(metrics)} metrics"
    return Row(MEAN, "", "", name, None, sum(row.rows for row in shared), marked)


def _mean_cell(cells: Sequence[Cell | None]) -> Cell:
    own = [cell for cell in cells if cell is not None]
    value = float(np.mean([cell.value for cell in own]))
    if len({tuple(cell.by_run) for cell in own}) == 1 and own[0].seeds > 1:
        levels = {run: float(np.mean([cell.by_run[run] for cell in own])) for run in own[0].by_run}
        group = group_seeds(list(levels.values()))
        return Cell(group.mean, None, group.std, group.n, by_run=levels)
    errors = [cell.stderr for cell in own]
    stderr = None if None in errors else math.hypot(*errors) / len(own)
    return Cell(value, stderr, None, own[0].seeds)


def _mean_difference(cells: Sequence[Cell | None]) -> Difference | None:
    """The mean of the tasks' differences with its error; tasks have no common test."""
    own = [cell.difference for cell in cells if cell is not None and cell.difference is not None]
    if len(own) < len(cells):
        return None
    errors = [one.stderr for one in own]
    stderr = None if None in errors else math.hypot(*errors) / len(own)
    value = float(np.mean([one.value for one in own]))
    p_value = math.erfc(abs(value) / stderr / math.sqrt(2)) if stderr else 1.0
    return Difference(MEAN, value, stderr, p_value, "normal", sum(one.rows for one in own))
