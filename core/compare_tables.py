"""A comparison as text, Markdown, CSV or LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from core import sheets

if TYPE_CHECKING:
    from core.compare import Cell, Column, Comparison


TEX = {letter: f"\\{letter}" for letter in "_%&#{}$"}
TEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


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


def _grid(comparison: Comparison, best: str, tie: str, plus_minus: str = "±") -> list[list[str]]:
    """Heading and rows of the table as text; ``best`` and ``tie`` are patterns around such values."""
    grid = [["task", "metric", "chance", *(_label(column) for column in comparison.columns)]]
    for row in [*comparison.rows, *([comparison.mean] if comparison.mean else [])]:
        cells = []
        for cell in row.cells:
            text = _shown(cell, plus_minus)
            if cell is not None and (cell.best or cell.tie):
                text = (best if cell.best else tie).replace("#", text)
            change = _delta(cell, plus_minus) if comparison.baseline is not None else ""
            cells.append(f"{text} ({change})" if change else text)
        chance = "-" if row.chance is None else f"{row.chance:.3f}"
        grid.append([row.task, row.metric, chance, *cells])
    grid.append(["trainable", "", "", *("" if c.trainable is None else f"{c.trainable:,}" for c in comparison.columns)])
    return grid


def _label(column: Column) -> str:
    told = f" [{column.badge}]" if column.badge else ""
    return f"{column.label}{told}" + (f" ({len(column.runs)} seeds)" if len(column.runs) > 1 else "")


def _notes(comparison: Comparison) -> list[str]:
    notes = [
        "± is the standard error over rows, or the standard deviation over seeds; * marks the best of a row, "
        "~ what is within two standard errors of it."
    ]
    if comparison.mean is not None:
        notes.append("mean is the macro mean over the tasks that every column has.")
    if any(column.badge for column in comparison.columns):
        notes.append(
            "In square brackets: the method's paper was not fully read; docs/methods, and docs/fusion.md for fused "
            "runs, say what is known."
        )
    if comparison.baseline is not None:
        notes.append(f"In brackets: difference to {comparison.baseline} on the same rows, with its paired error.")
    return notes


def _settings(comparison: Comparison) -> list[list[str]]:
    if not comparison.settings:
        return []
    columns = [column.label for column in comparison.columns if column.runs]
    return [["setting", *columns], *([n, *map(setting, values)] for n, values in comparison.settings.items())]


def setting(value: Any) -> str:
    """A setting in one cell of a table: lists with commas, line ends as they are written in a string."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return str(value).replace("\n", "\\n")


def _text(comparison: Comparison) -> str:
    parts = [_aligned(_grid(comparison, "#*", "#~")), "\n".join(_notes(comparison))]
    if settings := _settings(comparison):
        parts.append(_aligned(settings))
    return "\n\n".join(parts)


def _aligned(grid: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in grid)


def _markdown(comparison: Comparison) -> str:
    parts = [
        _pipes(_named(_grid(comparison, "**#**", "<u>#</u>"), _inert)),
        "\n".join(_notes(comparison)).replace("* marks", "bold marks").replace("~ what", "underlined what"),
    ]
    if settings := _settings(comparison):
        parts.append(_pipes([list(map(_inert, line)) for line in settings]))
    return "\n\n".join(parts)


def _named(grid: Sequence[Sequence[str]], inert: Callable[[str], str]) -> list[list[str]]:
    """The grid with its names (the head, and two columns of task and metric) made inert; values hold our own marks."""
    rows = [[*map(inert, line[:2]), *line[2:]] for line in grid[1:]]
    return [list(map(inert, grid[0])), *rows]


def _pipes(grid: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in grid]
    return "\n".join([lines[0], "|" + "---|" * len(grid[0]), *lines[1:]])


def _inert(name: str) -> str:
    """A name in a Markdown table: it makes no columns, links, images or tags."""
    return "".join(f"\\{letter}" if letter in "\\|[]!`<>" else letter for letter in " ".join(name.split()))


def _csv(comparison: Comparison) -> str:
    """One line for each task and column, numbers unrounded."""
    heads = ("task", "dataset", "split", "metric", "chance", "rows", "column", "runs", "trainable", "value", "stderr")
    rows = [(*heads, "seeds", "spread", "difference", "difference_stderr", "p_value", "best", "tie", "badge")]
    for row in comparison.rows:
        for column, cell in zip(comparison.columns, row.cells, strict=True):
            if cell is None:
                continue
            told = cell.difference
            change = (told.value, told.stderr, told.p_value) if told else ("", "", "")
            marks = (int(cell.best), int(cell.tie), column.badge)
            place = (row.task, row.dataset, row.split, row.metric, row.chance, row.rows)
            column_facts = (column.label, " ".join(column.runs), column.trainable)
            rows.append((*place, *column_facts, cell.value, cell.stderr, cell.seeds, cell.spread, *change, *marks))
    return sheets.text(rows).rstrip("\n")


def _latex(comparison: Comparison) -> str:
    grid = _grid(comparison, r"\textbf{#}", r"\underline{#}", r"$\pm$")
    lines = [" & ".join(line) + r" \\" for line in _named(grid, _escaped)]
    columns = "ll" + "r" * (len(grid[0]) - 2)
    body = [lines[0], r"\midrule", *lines[1:-1], r"\midrule", lines[-1]]
    return "\n".join([f"\\begin{{tabular}}{{{columns}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"])


def _escaped(cell: str) -> str:
    """A name in LaTeX: it runs no commands."""
    return "".join(TEX.get(letter, letter) for letter in " ".join(cell.split()))


RENDER: dict[str, Callable[[Comparison], str]] = {"text": _text, "markdown": _markdown, "csv": _csv, "latex": _latex}
