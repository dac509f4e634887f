"""Pictures of the Routing page as values of their components, made from a run's atlas."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from app.pages.routing_choice import ALL, MOST, Cell, Choice, shown_projection
from core.figures import NO_SHARES, short

if TYPE_CHECKING:
    from core.routing.atlas import Atlas, Grid, Moment
    from core.routing.definitions import Definition

EVERY = "all projections"


def stops(atlas: Atlas, moment: str) -> dict[str, Any]:
    """The value of the slider over moments."""
    names = [one.name for one in atlas.moments]
    shown = [
        {"name": one.name, "short": _stop(one), "text": f"{moment_text(one)}, {one.split} rows"}
        for one in atlas.moments
    ]
    return {"stops": shown, "at": names.index(moment)}


def listed(atlas: Atlas) -> list[tuple[str, str]]:
    """What can be looked at by itself: every projection, those of several parts as a whole, and each part."""
    whole = [(f"{name}, all parts", name) for name in atlas.whole]
    every = [(EVERY, ALL)] if len(atlas.projections) <= MOST else []
    return [*every, *whole, *((name, name) for name in atlas.projections)]


def moment_text(moment: Moment) -> str:
    if moment.name == "end":
        return f"end, step {moment.step:,}"
    return "step 0" if moment.step == 0 else f"step {moment.step:,}"


def _stop(moment: Moment) -> str:
    return "end" if moment.name == "end" else f"{moment.step:,}"


def heat(atlas: Atlas, choice: Choice, definition: Definition, *, other: Atlas | None = None) -> dict[str, Any]:
    """One figure of one moment; the scale holds for all moments, and for ``other`` too."""
    grid = grid_of(atlas, choice, definition)
    top = max(a.top(definition.name, choice.one_role) for a in (atlas, other) if a is not None)
    value = _panels(grid, definition, choice) | {"top": _round_up(top), "mid": definition.even}
    if definition.name == "mean_gate" and any(a.signed for a in (atlas, other) if a is not None):
        value["mid"] = 0.0
    if definition.even is not None:  # twice as much and half as much stand as far from the middle
        value |= {"log": True, "top": _round_up(max(top, 1.05))}
    if definition.name == "entropy":
        value["top"] = 1.0
    shares = definition.name == "top1_share" or (definition.name == "mean_gate" and grid.shares)
    if shares and (sizes := _experts(grid)) is not None:
        value |= {"even": 1 / sizes, "evenName": "even"}
    caption = f"{atlas.run}, {moment_text(atlas.moment(choice.moment))}, {_counted(grid, choice)}"
    if not grid.shares and definition.name in ("mean_gate", "relative_gate", "load_cv"):
        caption += f"; {NO_SHARES[0].lower()}{NO_SHARES[1:].rstrip('.')}"
    return value | {
        "figure": f"{definition.title}: {definition.values}",
        "caption": f"{caption}; one scale for all moments",
        "picked": picked(grid, choice.cell, definition),
        "name": f"{atlas.run}-{definition.name}-{choice.moment}-{choice.projection}",
    }


def beside(atlas: Atlas, other: Atlas, choice: Choice, definition: Definition) -> dict[str, Any]:
    """The other run's picture at the moment of the same name, else at its newest, with the scale of both."""
    names = [moment.name for moment in other.moments]
    moment = choice.moment if choice.moment in names else names[-1]
    projection = shown_projection(other, choice.projection)
    chosen = replace(choice, run=other.run, moment=moment, projection=projection)
    return heat(other, chosen, definition, other=atlas)


def difference(atlas: Atlas, choice: Choice, definition: Definition) -> dict[str, Any]:
    """This moment less another one, or every task less one of them; the scale holds for all moments."""
    kind, _, name = choice.beside.partition(":")
    grid = grid_of(atlas, choice, definition)
    spans = []
    for moment in atlas.moments:
        now = grid_of(atlas, choice, definition, moment.name)
        changed = _less(atlas, choice, definition, now, kind, name)
        spans.append(float(np.nanmax(np.abs(changed))) if np.isfinite(changed).any() else 0.0)
        if moment.name == choice.moment:
            grid.values[:] = changed
    than = f"task {name}" if kind == "task" else moment_text(atlas.moment(name))
    return _panels(grid, definition, choice) | {
        "top": _round_up(max(spans)) or 1.0,
        "mid": 0.0,
        "figure": f"{definition.title}: difference to {than}",
        "short": "difference",
        "caption": f"{atlas.run}, {moment_text(atlas.moment(choice.moment))}, {_counted(grid, choice)}; orange: less",
        "picked": picked(grid, choice.cell, definition),
        "name": f"{atlas.run}-{definition.name}-{choice.moment}-less-{name}",
    }


def _less(atlas: Atlas, choice: Choice, definition: Definition, grid: Grid, kind: str, name: str) -> np.ndarray:
    if kind == "task":
        if name not in grid.tasks:
            return np.full_like(grid.values, np.nan)
        return grid.values - grid.values[[grid.tasks.index(name)]]
    before = grid_of(atlas, choice, definition, name)
    result = np.full_like(grid.values, np.nan)
    if before.values.shape[1:] == grid.values.shape[1:]:
        for index, task in enumerate(grid.tasks):
            if task in before.tasks:
                result[index] = grid.values[index] - before.values[before.tasks.index(task)]
    return result


def grid_of(atlas: Atlas, choice: Choice, definition: Definition, moment: str = "") -> Grid:
    """A figure with one value for all experts is shown for all projections."""
    one = definition.per_expert and choice.projection != ALL
    projection = choice.projection if one else None
    return atlas.grid(moment or choice.moment, definition.name, choice.one_role, projection)


def _panels(grid: Grid, definition: Definition, choice: Choice) -> dict[str, Any]:
    layers = ["–" if layer < 0 else layer for layer in grid.layers]
    value = {"rows": grid.tasks, "layers": layers, "unit": unit(grid, choice), "short": definition.title}
    counts = grid.counts.max(axis=2, initial=0)
    if not definition.per_expert:  # layer x projection: the one value of a site stands where an expert would
        values = np.moveaxis(grid.values[..., 0], 1, 2)[:, None]
        exists = np.moveaxis(grid.exists[..., 0], 0, 1)[None]
        across = [short(name) for name in grid.projections]
        value |= {"cols": [""], "across": across, "acrossName": "projection", "experts": len(across)}
        counts = counts.max(axis=1, keepdims=True)
    else:
        values, exists = grid.values, grid.exists
        value |= {"cols": grid.projections, "heads": list(map(short, grid.projections)), "experts": len(grid.across)}
    return value | {"values": plain(values, exists), "counts": counts.astype(int).tolist()}


def plain(values: np.ndarray, exists: np.ndarray) -> list:
    """Numbers as JSON: None where nothing is, False where nothing was counted."""
    shown = np.round(values.astype(float), 4).astype(object)
    shown[~np.isfinite(values)] = False
    shown[~np.broadcast_to(exists, values.shape)] = None
    return shown.tolist()


def unit(grid: Grid, choice: Choice) -> str:
    return f"{choice.role} token" if grid.unit == "token" and choice.role != ALL else grid.unit


def _counted(grid: Grid, choice: Choice) -> str:
    return f"{unit(grid, choice)}s"


def _experts(grid: Grid) -> int | None:
    """The number of experts, where every layer has as many."""
    sizes = set(grid.exists.sum(-1)[grid.exists.any(-1)].tolist())
    return sizes.pop() if len(sizes) == 1 else None


def picked(grid: Grid, cell: Cell | None, definition: Definition) -> str | None:
    """The place of the chosen cell in this picture, if it is there."""
    if cell is None or cell.task not in grid.tasks or cell.layer not in grid.layers:
        return None
    if cell.projection not in grid.projections:
        return None
    task, layer, column = (
        grid.tasks.index(cell.task),
        grid.layers.index(cell.layer),
        grid.projections.index(cell.projection),
    )
    if not definition.per_expert:
        return f"{task},0,{layer},{column}"
    return f"{task},{column},{layer},{cell.expert or 0}"


def cell_at(grid: Grid, definition: Definition, place: dict[str, Any]) -> Cell | None:
    """The cell of a click; what comes from a browser may be anything."""
    try:
        row, col, layer, expert = (int(place[name]) for name in ("row", "col", "layer", "expert"))
        column = col if definition.per_expert else expert
        inside = grid.exists[column, layer, expert if definition.per_expert else 0]
        if min(row, col, layer, expert) < 0 or not inside:
            return None
        which = expert if definition.per_expert else None
        return Cell(grid.tasks[row], grid.projections[column], grid.layers[layer], which)
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def _distance(atlas: Atlas) -> str:
    return "Distance of mean gates" if atlas.signed else "Jensen–Shannon distance"


def similarity(atlas: Atlas, choice: Choice) -> dict[str, Any]:
    """Distances between tasks as a square; the scale holds for all moments."""
    projection = None if choice.projection == ALL else choice.projection
    found = atlas.distances(choice.moment, choice.one_role, projection)
    all_found = [atlas.distances(moment.name, choice.one_role, projection).between for moment in atlas.moments]
    top = max((float(np.nanmax(d)) for d in all_found if np.isfinite(d).any()), default=1.0)
    values = [[None if x != x else round(x, 4) for x in line] for line in found.between.tolist()]
    moment = moment_text(atlas.moment(choice.moment))
    return {
        "names": found.tasks,
        "values": values,
        "low": 0,
        "top": _round_up(top) or 1.0,
        "figure": f"{_distance(atlas)}: 0 alike, 1 apart",
        "caption": f"{atlas.run}, {moment}; {found.sites} sites, {projection or EVERY}",
        "name": f"{atlas.run}-distance-{choice.moment}",
    }


def places(atlas: Atlas, choice: Choice) -> dict[str, Any]:
    """Where tasks part: the mean distance of all pairs of tasks, layer by projection."""
    found = [atlas.distances(moment.name, choice.one_role).by_site for moment in atlas.moments]
    here = atlas.distances(choice.moment, choice.one_role)
    top = max((float(np.nanmax(d)) for d in found if np.isfinite(d).any()), default=1.0)
    values = here.by_site.T[None, None]
    chosen = here.projections.index(choice.projection) if choice.projection in here.projections else None
    picked_at = None
    if chosen is not None and np.isfinite(here.by_site[chosen]).any():
        picked_at = f"0,0,{int(np.nanargmax(here.by_site[chosen]))},{chosen}"
    return {
        "rows": ["all pairs of tasks"],
        "cols": [""],
        "layers": here.layers,
        "across": [short(name) for name in here.projections],
        "acrossName": "projection",
        "experts": len(here.projections),
        "values": plain(values, np.isfinite(values)),
        "top": _round_up(top) or 1.0,
        "figure": _distance(atlas),
        "short": "mean distance",
        "unit": "pair",
        "picked": picked_at,
        "name": f"{atlas.run}-places-{choice.moment}",
    }


def _round_up(value: float) -> float:
    """Two digits: an end of a scale that reads well."""
    if value <= 0 or not np.isfinite(value):
        return 0.0
    step = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(round(np.ceil(value / step - 1e-9) * step, 6))
