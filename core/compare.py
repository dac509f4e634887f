"""Runs side by side: scores by task, differences on the same rows, and the settings that differ."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import ConfigurationError, StudioError
from core.evaluation.predictions import Predictions
from core.evaluation.statistics import Difference, compare, group_seeds, paired

if TYPE_CHECKING:
    from storage.queries.scores import ScoreRow

BASE = "base"
FORMATS = ("text", "markdown", "csv", "latex")

# A task as it was scored: name, data set, split, metric.
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Column:
    """One run, the seeds of one setting, or the untouched base; ``trainable`` is None for the base."""

    label: str
    runs: list[str]
    method: str = ""
    trainable: int | None = None


@dataclass(frozen=True)
class Cell:
    """``stderr``: over rows, or None; ``spread``: standard deviation over seeds, None for a single run."""

    value: float
    stderr: float | None
    spread: float | None = None
    seeds: int = 1
    best: bool = False
    difference: Difference | None = None

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
    """``settings``: dotted name -> one value for each column of runs; only those that differ."""

    columns: list[Column]
    rows: list[Row]
    baseline: str | None = None
    settings: dict[str, list[Any]] = field(default_factory=dict)

    def render(self, form: str = "text") -> str:
        if form not in FORMATS:
            raise ConfigurationError(f"{form!r} is not a format.", f"Choose one of {', '.join(FORMATS)}.")
        return {"text": _text, "markdown": _markdown, "csv": _csv, "latex": _latex}[form](self)


def build(
    columns: Sequence[Column],
    scores: Mapping[str, Sequence[ScoreRow]],
    read: Callable[[ScoreRow], Predictions],
    *,
    baseline: str | None = None,
    settings: dict[str, list[Any]] | None = None,
) -> Comparison:
    """``scores``: run -> its primary scores; ``read`` opens a score's predictions; ``baseline`` is a column's label."""
    found = [_by_key(scores, column) for column in columns]
    base = _base(scores)
    if base:
        columns, found = [*columns, Column(BASE, [])], [*found, base]
    labels = [column.label for column in columns]
    if baseline is not None and baseline not in labels:
        raise ConfigurationError(f"{baseline} is not one of the compared columns.", f"They are {', '.join(labels)}.")
    against = None if baseline is None else found[labels.index(baseline)]
    keys = list(dict.fromkeys(key for own in found for key in own))
    rows = [_row(key, found, against, read) for key in keys]
    return Comparison(list(columns), rows, baseline, settings or {})


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
    means = [float(np.mean([score.value for score in scores])) for scores in own if scores]
    reference = against.get(key, []) if against is not None else []
    cells = [_cell(scores, reference, max(means), read) for scores in own]
    first = next(score for scores in own for score in scores)
    return Row(*key, chance=first.chance, rows=first.rows, cells=cells)


def _cell(
    scores: Sequence[ScoreRow], reference: Sequence[ScoreRow], best: float, read: Callable[[ScoreRow], Predictions]
) -> Cell | None:
    if not scores:
        return None
    group = group_seeds([score.value for score in scores])
    return Cell(
        value=group.mean,
        stderr=scores[0].stderr if len(scores) == 1 else None,
        spread=group.std,
        seeds=group.n,
        best=group.mean >= best - 1e-12,
        difference=difference(scores, reference, read) if reference and scores is not reference else None,
    )


def difference(
    scores: Sequence[ScoreRow], reference: Sequence[ScoreRow], read: Callable[[ScoreRow], Predictions]
) -> Difference | None:
    """``scores - reference`` on the same rows, rows averaged over seeds; None where the two cannot be paired."""
    if {score.id for score in scores} == {score.id for score in reference}:
        return None
    if len({score.key for score in (*scores, *reference)}) > 1 or not all(s.predictions for s in (*scores, *reference)):
        return None
    metric = scores[0].metric
    try:
        first, second = [read(score) for score in scores], [read(score) for score in reference]
        if len(first) == len(second) == 1:
            return compare(first[0], second[0], metric)
        if all(metric in predictions.values for predictions in (*first, *second)):
            return paired(metric, _mean(first, metric), _mean(second, metric))
    except StudioError:
        return None  # predictions were deleted or never imported: the scores still stand
    return None


def _mean(predictions: Sequence[Predictions], metric: str) -> list[float]:
    return np.mean([one.values[metric] for one in predictions], axis=0).tolist()


def _shown(cell: Cell | None, plus_minus: str = "±") -> str:
    if cell is None:
        return "-"
    error = "" if cell.error is None else f" {plus_minus} {cell.error:.3f}"
    return f"{cell.value:.3f}{error}"


def _delta(cell: Cell | None, plus_minus: str = "±") -> str:
    if cell is None or cell.difference is None:
        return ""
    error = "" if cell.difference.stderr is None else f" {plus_minus} {cell.difference.stderr:.3f}"
    return f"{cell.difference.value:+.3f}{error}"


def _grid(comparison: Comparison, mark: Callable[[str], str], plus_minus: str = "±") -> list[list[str]]:
    """Heading and rows of the table as text; ``mark`` sets off the best value of a row."""
    deltas = comparison.baseline is not None
    grid = [["task", "metric", "chance", *(_label(column) for column in comparison.columns)]]
    for row in comparison.rows:
        cells = []
        for cell in row.cells:
            text = _shown(cell, plus_minus)
            text = mark(text) if cell is not None and cell.best else text
            change = _delta(cell, plus_minus) if deltas else ""
            cells.append(f"{text} ({change})" if change else text)
        chance = "-" if row.chance is None else f"{row.chance:.3f}"
        grid.append([row.task, row.metric, chance, *cells])
    grid.append(["trainable", "", "", *("" if c.trainable is None else f"{c.trainable:,}" for c in comparison.columns)])
    return grid


def _label(column: Column) -> str:
    return column.label if len(column.runs) < 2 else f"{column.label} ({len(column.runs)} seeds)"


def _notes(comparison: Comparison) -> list[str]:
    notes = ["± is the standard error over rows, or the standard deviation over seeds; * marks the best of a row."]
    if comparison.baseline is not None:
        notes.append(f"In brackets: difference to {comparison.baseline} on the same rows, with its paired error.")
    return notes


def _settings(comparison: Comparison) -> list[list[str]]:
    if not comparison.settings:
        return []
    columns = [column.label for column in comparison.columns if column.runs]
    return [["setting", *columns], *([n, *map(str, values)] for n, values in comparison.settings.items())]


def _text(comparison: Comparison) -> str:
    parts = [_aligned(_grid(comparison, lambda text: f"{text}*")), "\n".join(_notes(comparison))]
    if settings := _settings(comparison):
        parts.append(_aligned(settings))
    return "\n\n".join(parts)


def _aligned(grid: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in grid)


def _markdown(comparison: Comparison) -> str:
    parts = [
        _pipes(_grid(comparison, lambda text: f"**{text}**")),
        "\n".join(_notes(comparison)).replace("* marks", "bold marks"),
    ]
    if settings := _settings(comparison):
        parts.append(_pipes(settings))
    return "\n\n".join(parts)


def _pipes(grid: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in grid]
    return "\n".join([lines[0], "|" + "---|" * len(grid[0]), *lines[1:]])


def _csv(comparison: Comparison) -> str:
    """One line for each task and column, numbers unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = ("task", "dataset", "split", "metric", "chance", "rows", "column", "runs", "trainable", "value", "stderr")
    writer.writerow([*heads, "seeds", "spread", "difference", "difference_stderr", "p_value"])
    for row in comparison.rows:
        for column, cell in zip(comparison.columns, row.cells, strict=True):
            if cell is None:
                continue
            told = cell.difference
            change = (told.value, told.stderr, told.p_value) if told else ("", "", "")
            place = (row.task, row.dataset, row.split, row.metric, row.chance, row.rows)
            column_facts = (column.label, " ".join(column.runs), column.trainable)
            writer.writerow([*place, *column_facts, cell.value, cell.stderr, cell.seeds, cell.spread, *change])
    return out.getvalue().rstrip("\n")


def _latex(comparison: Comparison) -> str:
    grid = _grid(comparison, lambda text: f"\\textbf{{{text}}}", "$\\pm$")
    lines = [" & ".join(_escaped(cell) for cell in line) + r" \\" for line in grid]
    columns = "ll" + "r" * (len(grid[0]) - 2)
    body = [lines[0], r"\midrule", *lines[1:-1], r"\midrule", lines[-1]]
    return "\n".join([f"\\begin{{tabular}}{{{columns}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"])


def _escaped(cell: str) -> str:
    return cell.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&").replace("#", r"\#")
