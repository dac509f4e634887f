"""A comparison as HTML: scores with errors, the settings that differ, score against trainable parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from app.ui import components as ui

if TYPE_CHECKING:
    from core.studio import Comparison

# The parts of a comparison, as core/compare.py describes them.
Cell = Column = Row = Any
Box = tuple[float, float, float, float]  # left, top, right, bottom

e = ui.escape
W, H, LEFT, RIGHT, TOP, BOTTOM = 680, 320, 56, 24, 22, 44
LETTER = 6.4  # width of a letter of a name
NOTE = (
    "<p><b>Bold</b>: best. <u>Underlined</u>: within two standard errors of the best, on the same rows where both were "
    "scored on them. ± is one standard error over rows; for several seeds, their standard deviation.{more}</p>"
)
PAIRED = " Below each score: difference to {baseline} on the same rows, with its paired error; coloured beyond two."


def table(found: Comparison, names: Mapping[str, str]) -> str:
    """Task by run; one column for each run, the seeds of one setting, and the untouched base."""
    rows = "".join(_row(row, found) for row in found.rows)
    mean = "" if found.mean is None else _row(found.mean, found, "mean")
    size = "".join(f'<td class="num">{ui.number(column.trainable)}</td>' for column in found.columns)
    foot = f'<tr class="quiet"><th>trainable parameters</th><td></td>{size}</tr>'
    heads = '<th>task</th><th class="num">chance</th>'
    heads += "".join(_head(column, names, found.baseline) for column in found.columns)
    more = "" if found.baseline is None else PAIRED.format(baseline=e(found.baseline))
    return (
        f'<div class="scroll"><table class="grid"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}{mean}{foot}</tbody></table></div>{NOTE.format(more=more)}"
    )


def onward(runs: Sequence[str]) -> str:
    """Where one can go with the compared runs."""
    link = f'<a href="/fusion?runs={e(",".join(runs))}">Fuse these runs</a>'
    return f'<nav class="links">{link}</nav>' if len(runs) > 1 else ""


def _head(column: Column, names: Mapping[str, str], baseline: str | None) -> str:
    mark = " · baseline" if column.label == baseline else ""
    if not column.runs:
        return f'<th class="num">untouched base<small>{mark or "&nbsp;"}</small></th>'
    links = ", ".join(f'<a href="/runs?run={e(run)}">{e(run)}</a>' for run in column.runs[:6])
    more = f" and {len(column.runs) - 6} more" if len(column.runs) > 6 else ""
    seeds = f", {len(column.runs)} seeds" if len(column.runs) > 1 else ""
    name = names.get(column.runs[0], column.label)
    method = e(column.method) + ui.badge(column.badge)
    return f'<th class="num" title="{e(name)}">{method}{seeds}<small>{links}{more}{mark}</small></th>'


def _row(row: Row, found: Comparison, css: str = "") -> str:
    if css:
        about = f"over {sum(all(r.cells) for r in found.rows)} tasks"
    else:
        about = f"{row.metric.replace('_', ' ')}, {row.rows:,} {row.split} rows"
    cells = "".join(map(lambda cell: _cell(cell, row, found), row.cells))
    chance = f'<td class="num">{ui.number(row.chance)}</td>'
    return f'<tr class="{css}"><th>{e(row.task)}<small>{e(about)}</small></th>{chance}{cells}</tr>'


def _cell(cell: Cell | None, row: Row, found: Comparison) -> str:
    if cell is None:
        return '<td class="num">–</td>'
    css = "best" if cell.best else "tie" if cell.tie else ""
    error = "" if cell.error is None else f"<small>± {cell.error:.3f}</small>"
    return f'<td class="num {css}"><b>{cell.value:.3f}</b>{error}{_change(cell, row, found)}</td>'


def _change(cell: Cell, row: Row, found: Comparison) -> str:
    """The difference to the baseline, below the score; said to be unpaired where it is."""
    if found.baseline is None:
        return ""
    told = cell.difference
    if told is not None and told.stderr is not None:
        sure = abs(told.value) > 2 * told.stderr
        css = ("up" if told.value > 0 else "down") if sure else ""
        title = f"p = {told.p_value:.3g} ({told.test})"
        return f'<span class="delta {css}" title="{e(title)}">{told.value:+.3f} ± {told.stderr:.3f}</span>'
    place = [column.label for column in found.columns].index(found.baseline)
    base = row.cells[place]
    if base is None or base is cell:
        return '<span class="delta">&nbsp;</span>'
    why = cell.unpaired or "some of its tasks cannot be paired"
    return f'<span class="delta" title="{e(why)}">{cell.value - base.value:+.3f}, no paired error</span>'


def settings(found: Comparison, every: bool) -> str:
    """One line for each setting, one column for each column of runs."""
    columns = [column for column in found.columns if column.runs]
    if not found.settings:
        told = (
            "These runs differ in nothing but their seeds." if len(columns) < 2 else "These runs have equal settings."
        )
        return f"<h3>Settings</h3><p>{told}</p>"
    heads = "<th></th>" + "".join(f"<th>{e(column.label)}</th>" for column in columns)
    lines = ""
    for name, values in found.settings.items():
        same = " same" if len({repr(value) for value in values}) == 1 else ""
        cells = "".join(f'<td class="wrap{same}">{e(_setting(value))}</td>' for value in values)
        lines += f"<tr><th>{e(name)}</th>{cells}</tr>"
    title = "All settings" if every else "Settings that differ"
    return (
        f'<h3>{title}</h3><div class="scroll"><table class="grid settings-diff"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _setting(value: Any) -> str:
    if value is None:
        return "–"
    return ", ".join(map(str, value)) or "–" if isinstance(value, list) else str(value)


def cost(found: Comparison) -> str:
    """Score against trainable parameters as SVG, or why there is none."""
    row = found.mean or (found.rows[0] if len(found.rows) == 1 else None)
    if row is None:
        return '<p class="waiting">The runs share no task that all of them were scored on.</p>'
    points = [
        (column, cell)
        for column, cell in zip(found.columns, row.cells, strict=True)
        if column.runs and column.trainable and cell is not None
    ]
    if not points:
        return '<p class="waiting">None of these runs has trainable parameters.</p>'
    base = next((c for column, c in zip(found.columns, row.cells, strict=True) if not column.runs), None)
    what = "mean score over the tasks" if row is found.mean else f"{row.task}: {row.metric.replace('_', ' ')}"
    return _scatter(points, base, what)


def _scatter(points: Sequence[tuple[Column, Cell]], base: Cell | None, what: str) -> str:
    sizes = [math.log10(column.trainable or 1) for column, _ in points]
    x0, x1 = min(sizes) - 0.25, max(sizes) + 0.35
    reach = [cell.value + sign * 2 * (cell.error or 0) for _, cell in points for sign in (-1, 1)]
    ticks = _ticks(min([*reach, *([base.value] if base else [])]), max(reach))
    low, high = ticks[0], ticks[-1]

    def x(size: float) -> float:
        return LEFT + (size - x0) / (x1 - x0) * (W - LEFT - RIGHT)

    def y(value: float) -> float:
        return H - BOTTOM - (value - low) / (high - low) * (H - TOP - BOTTOM)

    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{W - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:.2f}</text>'
        for t in ticks
    ]
    for tick in _decades(x0, x1):
        label = ui.short(10**tick).replace(".0 ", " ")
        parts.append(f'<text x="{x(tick):.1f}" y="{H - BOTTOM + 17}" text-anchor="middle">{label}</text>')
    if base is not None:
        at = y(base.value)
        parts.append(f'<line class="base" x1="{LEFT}" x2="{W - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{W - RIGHT}" y="{at - 5:.1f}" text-anchor="end">untouched base {base.value:.3f}</text>')
    taken = [_dot(x(size), cell, y) for (_, cell), size in zip(points, sizes, strict=True)]
    for index, ((column, cell), size) in enumerate(zip(points, sizes, strict=True)):
        parts.append(_point(index, column, cell, x(size), y, taken))
    mid = (LEFT + W - RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{mid}" y="{H - 6}" text-anchor="middle">trainable parameters (log scale)</text>'
    )
    up = (TOP + H - BOTTOM) / 2
    parts.append(
        f'<text class="axis" x="13" y="{up}" transform="rotate(-90 13 {up})" text-anchor="middle">{e(what)}</text>'
    )
    label = f"{what} against trainable parameters"
    return f'<svg viewBox="0 0 {W} {H}" role="img" aria-label="{e(label)}">{"".join(parts)}</svg>'


def _point(index: int, column: Column, cell: Cell, at: float, y: Any, taken: list[Box]) -> str:
    """A dot with two standard errors, and its name in its colour."""
    hue, height = f"var(--expert-{index % 8})", y(cell.value)
    bar = ""
    if cell.error:
        top, foot = y(cell.value + 2 * cell.error), y(cell.value - 2 * cell.error)
        bar = f'<line class="bar" style="stroke:{hue}" x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{foot:.1f}"/>'
    x, text, anchor = _label(at, height, LETTER * len(column.label), taken)
    tip = f"{column.label}: {cell.value:.3f} with {column.trainable:,} parameters"
    return (
        f'{bar}<circle style="fill:{hue}" cx="{at:.1f}" cy="{height:.1f}" r="5"><title>{e(tip)}</title></circle>'
        f'<text class="name" style="fill:color-mix(in oklab, {hue} 75%, var(--ink))" x="{x:.1f}" y="{text:.1f}" '
        f'text-anchor="{anchor}">{e(column.label)}</text>'
    )


def _dot(at: float, cell: Cell, y: Any) -> Box:
    """What a point covers with its bar."""
    reach = 2 * (cell.error or 0)
    return (
        at - 6,
        min(y(cell.value) - 6, y(cell.value + reach)),
        at + 6,
        max(y(cell.value) + 6, y(cell.value - reach)),
    )


def _label(at: float, height: float, wide: float, taken: list[Box]) -> tuple[float, float, str]:
    """Where the name of a point stands: beside, above or below it, where it covers neither points nor other names."""
    found = []
    for dy in (4, -10, 19, -24, 33, -38, 47):
        for x, left, anchor in ((at + 10, at + 10, "start"), (at - 10, at - 10 - wide, "end")):
            box = (left, height + dy - 11, left + wide, height + dy + 3)
            covered = sum(_overlap(box, other) for other in taken)
            outside = max(0.0, LEFT - box[0]) + max(0.0, box[2] - (W - 4)) + max(0.0, TOP - 14 - box[1])
            found.append((covered + 40 * outside, abs(dy - 4), box, (x, height + dy, anchor)))
    *_, box, place = min(found, key=lambda one: one[:2])
    taken.append(box)
    return place


def _overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers around the data, at most six."""
    low, high = max(0.0, low - 0.02), min(1.0, high + 0.02) if high <= 1 else high
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if (high - low) / s <= 5 or s == 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * n, 10) for n in range(first, max(last, first + 1) + 1)]


def _decades(x0: float, x1: float) -> list[float]:
    """Powers of ten inside the axis, with 2 and 5 between where there are few."""
    marks = [decade + math.log10(m) for decade in range(math.floor(x0), math.ceil(x1) + 1) for m in (1, 2, 5)]
    inside = [mark for mark in marks if x0 <= mark <= x1]
    whole = [mark for mark in inside if abs(mark - round(mark)) < 1e-9]
    return whole if len(whole) >= 3 else inside
