"""Words and bars of the Routing page: the chosen cell, what the numbers say, the definitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from app.pages.routing_choice import ALL, Cell, Choice
from app.pages.routing_views import moment_text, unit
from app.ui.components import escape, number
from core.figures import NO_SHARES

if TYPE_CHECKING:
    from core.routing.atlas import Atlas, Distances
    from core.routing.definitions import Definition, Definitions

COLOURS = 8
FEW = 200
SILENT = 0.1  # of an even share: an expert below it for every task hardly speaks
NUMBERS = "Layers and experts are numbered from 0, here as in tables, files and on the command line."
NO_CELL = "<h3>No cell chosen</h3><p>Click a cell, or walk with the arrow keys and press Enter.</p>"


def cell_view(atlas: Atlas, choice: Choice, definition: Definition) -> str:
    """The whole layer of the chosen cell, the same expert for every task and at every moment."""
    cell = choice.cell
    if cell is None:
        return NO_CELL
    named = definition.name if definition.per_expert else "mean_gate"
    grid = atlas.grid(
        choice.moment, named, choice.one_role, cell.projection if cell.projection in atlas.projections else None
    )
    if cell.task not in grid.tasks or cell.layer not in grid.layers or cell.projection not in grid.projections:
        return (
            f"<h3>No such cell</h3><p>{escape(atlas.run)} has no {escape(cell.projection)} in layer {cell.layer}.</p>"
        )
    task, layer = grid.tasks.index(cell.task), grid.layers.index(cell.layer)
    column = grid.projections.index(cell.projection)
    exists = grid.exists[column, layer]
    line = grid.values[task, column, layer][exists]
    title = f"{cell.task} · {cell.projection} · layer {cell.layer}" + (
        "" if cell.expert is None else f" · expert {cell.expert}"
    )
    parts = [
        f"<h3>{escape(title)}</h3>",
        f"<p>{escape(_figure_text(atlas, named))} over the experts of this layer.</p>",
    ]
    even = _even(named, len(line)) if grid.shares or named != "mean_gate" else None
    if not grid.shares and named != "top1_share":
        parts.append(f"<p><small>{escape(NO_SHARES)}</small></p>")
    parts.append(_expert_bars(line, cell.expert, even))
    if cell.expert is not None and cell.expert < len(line):
        parts += _same_expert(atlas, choice, cell, named, grid, column, layer, cell.expert)
    parts.append(_facts(atlas, choice, cell, int(grid.counts[task, column, layer]), unit(grid, choice)))
    return "".join(parts)


def _same_expert(
    atlas: Atlas, choice: Choice, cell: Cell, named: str, grid: Any, column: int, layer: int, expert: int
) -> list[str]:
    tasks = [(name, grid.values[t, column, layer, expert], name == cell.task) for t, name in enumerate(grid.tasks)]
    times = []
    for moment in atlas.moments:
        then = atlas.grid(moment.name, named, choice.one_role, cell.projection)
        if cell.task in then.tasks and cell.layer in then.layers:
            value = then.values[then.tasks.index(cell.task), 0, then.layers.index(cell.layer), expert]
            times.append((moment_text(moment), value, moment.name == choice.moment))
    return [
        f"<h4>Expert {expert}, task by task</h4>",
        _named_bars(tasks),
        f"<h4>Expert {expert} for {escape(cell.task)}, moment by moment</h4>",
        _named_bars(times),
    ]


def _facts(atlas: Atlas, choice: Choice, cell: Cell, count: int, counted: str) -> str:
    rows = [(f"{counted}s", f"{count:,}")]
    for name, title in (("entropy", "normalised entropy"), ("load_cv", "load CV")):
        grid = atlas.grid(choice.moment, name, choice.one_role, cell.projection)
        value = grid.values[grid.tasks.index(cell.task), 0, grid.layers.index(cell.layer), 0]
        rows.append((title, number(float(value))))
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in rows)}</dl>"


def _expert_bars(values: Sequence[float], chosen: int | None, even: float | None) -> str:
    top = max([abs(float(v)) for v in values if v == v] + [even or 0.0], default=0.0) or 1.0
    tick = "" if even is None else f'<u style="left:{100 * even / top:.1f}%" title="an even share"></u>'
    bars = [
        f'<div class="bar{" on" if e == chosen else ""}"><b>{e}</b><span class="track">'
        f'<i style="width:{_percent(v, top)}%;background:{_colour(v, f"expert-{e % COLOURS}")}"></i>{tick}</span>'
        f"<em>{number(float(v))}</em></div>"
        for e, v in enumerate(values)
    ]
    return "".join(bars) + ("" if even is None else "<p><small>The line marks an even share.</small></p>")


def _named_bars(rows: Sequence[tuple[str, float, bool]]) -> str:
    top = max((abs(float(v)) for _, v, _ in rows if v == v), default=0.0) or 1.0
    return "".join(
        f'<div class="bar named{" on" if on else ""}"><b title="{escape(name)}">{escape(name)}</b><span class="track">'
        f'<i style="width:{_percent(v, top)}%;background:{_colour(v, "accent")}"></i></span>'
        f"<em>{number(float(v))}</em></div>"
        for name, v, on in rows
    )


def _percent(value: float, top: float) -> int:
    return round(100 * abs(float(value)) / top) if value == value else 0


def _colour(value: float, name: str) -> str:
    """A bar below zero has the colour of less, whatever its name says."""
    return "var(--diverge-3)" if value < 0 else f"var(--{name})"


def _even(named: str, experts: int) -> float | None:
    return {"mean_gate": 1 / experts, "top1_share": 1 / experts, "relative_gate": 1.0}.get(named)


def _figure_text(atlas: Atlas, named: str) -> str:
    return {
        "mean_gate": "Mean gate",
        "relative_gate": "Gate against even",
        "selection_share": "Selection share",
        "top1_share": "Top-1 share",
    }[named]


def findings(atlas: Atlas, choice: Choice) -> str:
    """What the numbers of this moment say about the tasks, in sentences."""
    found = atlas.distances(choice.moment, choice.one_role, None if choice.projection == ALL else choice.projection)
    items = [*_by_place(found), *_by_pair(found), *_over_time(atlas, choice), *_certainty(atlas, choice)]
    items += _cautions(atlas, choice)
    return f"<h3>What the numbers say</h3><ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def over(atlas: Atlas, choice: Choice) -> str:
    """What the square of distances is an average of."""
    found = atlas.distances(choice.moment, choice.one_role, None if choice.projection == ALL else choice.projection)
    names = f"{len(atlas.projections)} projections" if choice.projection == ALL else choice.projection
    kind = (
        "Distance of the mean gates (0 routed alike, 1 opposite)"
        if atlas.signed
        else ("Jensen–Shannon distance of the mean gates (0 routed alike, 1 no expert in common)")
    )
    return f"<p>{kind}, averaged over {found.sites} sites: every layer of {escape(names)}.</p>"


def _by_place(found: Distances) -> list[str]:
    if len(found.tasks) < 2 or not np.isfinite(found.by_site).any():
        return ["One task: there is nothing to compare its routing with."] if len(found.tasks) < 2 else []
    most = np.unravel_index(np.nanargmax(found.by_site), found.by_site.shape)
    least = np.unravel_index(np.nanargmin(found.by_site), found.by_site.shape)
    pairs = len(found.tasks) * (len(found.tasks) - 1) // 2

    def place(at: tuple[Any, ...]) -> str:
        return f"layer {found.layers[at[1]]}, {escape(found.projections[at[0]])}"

    return [
        f"Most task-specific: {place(most)} (mean distance <b>{found.by_site[most]:.3f}</b> over {pairs} "
        f"pair{'s' if pairs > 1 else ''} of tasks); least: {place(least)} (<b>{found.by_site[least]:.3f}</b>)."
    ]


def _by_pair(found: Distances) -> list[str]:
    upper = [(found.between[a, b], a, b) for a in range(len(found.tasks)) for b in range(a)]
    known = sorted(pair for pair in upper if pair[0] == pair[0])
    if len(known) < 2:
        return []
    (low, a, b), (high, c, d) = known[0], known[-1]
    names = [escape(name) for name in found.tasks]
    return [
        f"Routed most alike: {names[b]} and {names[a]} (<b>{low:.3f}</b>); most apart: {names[d]} and {names[c]} "
        f"(<b>{high:.3f}</b>)."
    ]


def _over_time(atlas: Atlas, choice: Choice) -> list[str]:
    first, here = atlas.moments[0], atlas.moment(choice.moment)
    before, now = (_overall(atlas, moment.name, choice) for moment in (first, here))
    if first.name == here.name or before is None or now is None:
        return []
    return [
        f"Mean distance over all places: <b>{now:.3f}</b>, {'up' if now >= before else 'down'} from "
        f"<b>{before:.3f}</b> at {escape(moment_text(first))}."
    ]


def _overall(atlas: Atlas, moment: str, choice: Choice) -> float | None:
    found = atlas.distances(moment, choice.one_role).by_site
    return float(np.nanmean(found)) if np.isfinite(found).any() else None


def _certainty(atlas: Atlas, choice: Choice) -> list[str]:
    values = atlas.grid(choice.moment, "entropy", choice.one_role).values
    if not np.isfinite(values).any():
        return []
    mean = float(np.nanmean(values))
    word = "are nearly undecided" if mean > 0.9 else "lean" if mean > 0.5 else "are decided"
    relative = atlas.grid(choice.moment, "relative_gate", choice.one_role)
    loudest = np.nanmax(np.where(np.isfinite(relative.values), relative.values, -1), axis=0)[relative.exists]
    silent = int((loudest < SILENT).sum())
    said = f"The routers {word}: mean normalised entropy <b>{mean:.2f}</b> (0 certain, 1 undecided)."
    quiet = (
        f"<b>{silent}</b> of {relative.exists.sum():,} experts hardly speak: below a tenth of an even share for "
        "every task."
    )
    return [said, quiet] if silent else [said]


def _cautions(atlas: Atlas, choice: Choice) -> list[str]:
    grid = atlas.grid(choice.moment, "mean_gate", choice.one_role)
    counts = grid.counts.max(axis=(1, 2))
    task = int(counts.argmin())
    if counts[task] >= FEW:
        return []
    name = escape(grid.tasks[task])
    return [
        f"Few decisions: only <b>{int(counts[task]):,}</b> {unit(grid, choice)}s of {name}; small differences are "
        "noise."
    ]


def definitions(known: Definitions) -> str:
    rows = [(figure.title, figure.text) for figure in known.figures]
    rows += [("What is counted", known.counted), ("Distance of tasks", known.distance), ("Numbers", NUMBERS)]
    return f"<dl>{''.join(f'<dt>{escape(title)}</dt><dd>{escape(text)}</dd>' for title, text in rows)}</dl>"
