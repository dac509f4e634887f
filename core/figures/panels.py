"""From a routing snapshot to the small panels that both drawing libraries show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from core.errors import ConfigurationError, NotFoundError
from core.routing import statistics
from core.routing.snapshot import places

Figure = Literal["mean_gate", "relative_gate", "selection_share", "top1_share", "entropy", "load_cv"]
Role = Literal["answer", "prompt", "all"]

ROLES: tuple[Role, ...] = ("answer", "prompt", "all")
FIGURES: dict[Figure, tuple[str, str]] = {
    "mean_gate": ("Mean gate", "mean applied weight per {unit}"),
    "relative_gate": ("Gate against even", "mean gate over that of the layer's average expert"),
    "selection_share": ("Selection share", "selected slots per {unit}"),
    "top1_share": ("Top-1 share", "share of {unit}s with this expert first"),
    "entropy": ("Routing entropy", "entropy before the cut / log E"),
    "load_cv": ("Load CV", "standard deviation / mean of the gates over the experts"),
}
PER_SITE = ("entropy", "load_cv")
OF_WEIGHTS = ("mean_gate", "relative_gate", "load_cv")
NO_SHARES = "These weights are no shares: over the experts they do not sum to 1."


@dataclass(frozen=True)
class Panel:
    """One small heatmap: ``values`` (layers, across), NaN where nothing was counted; ``present``: where a cell is."""

    row: int
    column: int
    values: np.ndarray
    present: np.ndarray


@dataclass(frozen=True)
class Panels:
    """A grid of heatmaps with one scale.

    Rows are tasks and columns projections, or parts of them that are decided on by themselves; where there is one
    column only, the tasks stand side by side. The scale goes from ``low`` to ``top``.
    """

    figure: Figure
    title: str
    unit_text: str
    units: str  # "tokens" or "samples"
    role: Role
    counts: dict[str, int]  # task -> units behind each of its cells
    row_names: list[str]
    column_names: list[str]
    layers: list[int]
    across: list[str]  # what stands along the horizontal axis of a panel
    across_name: str
    panels: list[Panel]
    low: float  # 0, or less where weights are negative
    top: float
    shares: bool  # the weights of every decision sum to one
    uniform: float | None  # the value of an even router, where all panels share it

    @property
    def counted(self) -> str:
        """What was counted, in words: ``answer tokens``."""
        return self.units if self.role == "all" or self.units == "samples" else f"{self.role} {self.units}"

    def names(self, panel: Panel) -> tuple[str, str]:
        """Task and projection of a panel."""
        row, column = self.row_names[panel.row], self.column_names[panel.column]
        return (row, column) if row in self.counts else (column, row)

    def under(self, name: str) -> str:
        """The line under a task's name: how much stands behind its panels."""
        return f"{self.counts[name]:,} {self.units}" if name in self.counts else ""

    def heads(self, room: float) -> list[str]:
        """Names of columns for a width of ``room`` letters: all of them short where one would not fit."""
        fits = all(len(name) <= room for name in self.column_names)
        return self.column_names if fits or self.column_names[0] in self.counts else list(map(short, self.column_names))

    @property
    def has_absent(self) -> bool:
        return any(not panel.present.all() for panel in self.panels)


def routing_panels(
    snapshot: Any,
    *,
    task: str | None = None,
    figure: Figure = "mean_gate",
    role: Role = "answer",
    projections: Sequence[str] | None = None,
) -> Panels:
    """The panels of ``snapshot`` (a ``RoutingSnapshot``) for one task or all of them."""
    if figure not in FIGURES:
        raise ConfigurationError(f"{figure!r} is not a routing figure.", f"Choose one of {', '.join(FIGURES)}.")
    tasks = _chosen(list(snapshot.tasks), [task] if task else None, "task")
    names = _places(snapshot, projections)
    chosen = [i for i, site in enumerate(snapshot.sites) if site.experts > 1 and site.place in names]
    values, counts = over_roles(snapshot, figure, role)
    units = {snapshot.sites[i].unit for i in chosen}
    unit = units.pop() if len(units) == 1 else "decision"
    grid = _Grid(snapshot, chosen, names, values)
    rows = [list(snapshot.tasks).index(name) for name in tasks]
    panels, across = grid.per_site(rows) if figure in PER_SITE else grid.experts(rows)
    row_names, column_names = tasks, [""] if figure in PER_SITE else names
    if len(column_names) == 1 and len(tasks) > 1:
        panels = [Panel(0, panel.row, panel.values, panel.present) for panel in panels]
        row_names, column_names = column_names, tasks
    finite = np.concatenate([panel.values[np.isfinite(panel.values)] for panel in panels])
    top, negative = float(np.abs(finite).max(initial=0.0)) or 1.0, bool((finite < 0).any())
    shares = all(snapshot.sites[i].sums_to_one for i in chosen)
    title, text = FIGURES[figure]
    return Panels(
        figure=figure,
        title=title,
        unit_text=text.format(unit=unit),
        units=f"{unit}s",
        role=role,
        counts={name: int(counts[row, chosen].max()) for name, row in zip(tasks, rows, strict=True)},
        row_names=row_names,
        column_names=column_names,
        layers=grid.layers,
        across=across,
        across_name="projection" if figure in PER_SITE else "expert",
        panels=panels,
        low=-top if negative else 0.0,
        top=1.0 if figure == "entropy" else top,
        shares=shares,
        uniform=None
        if figure == "mean_gate" and not shares
        else _uniform(figure, [snapshot.sites[i].experts for i in chosen], values, chosen),
    )


def _places(snapshot: Any, projections: Sequence[str] | None) -> list[str]:
    """The places that route, all or those of ``projections``, which may name a projection with all of its parts."""
    sites = [site for site in snapshot.sites if site.experts > 1]
    if not sites:
        raise NotFoundError("This run routes nothing: every site has one expert.", "Choose a mixture, such as mosld.")
    names = places(sites)
    if projections is None:
        return names
    known = [*names, *(site.projection for site in sites if site.projection not in names)]
    wanted = _chosen(list(dict.fromkeys(known)), projections, "projection")
    return places(site for site in sites if site.place in wanted or site.projection in wanted)


def over_roles(snapshot: Any, figure: str, role: Role) -> tuple[np.ndarray, np.ndarray]:
    """Values (task, site[, expert]) and counts (task, site) of one role, or of all roles weighted by counts."""
    if role != "all" and role not in snapshot.roles:
        raise NotFoundError(f"No {role} tokens were recorded.", f"Recorded: {', '.join(snapshot.roles)}.")
    one = None if role == "all" else role
    return statistics.over_roles(snapshot, figure, one), statistics.over_roles(snapshot, "count", one)


class _Grid:
    """Lays sites out by layer and projection."""

    def __init__(self, snapshot: Any, chosen: list[int], names: list[str], values: np.ndarray) -> None:
        self.values, self.names = values, names
        self.at = {(snapshot.sites[i].layer, snapshot.sites[i].place): i for i in chosen}
        self.sizes = {i: snapshot.sites[i].experts for i in chosen}
        self.layers = sorted({layer for layer, _ in self.at})

    def experts(self, rows: list[int]) -> tuple[list[Panel], list[str]]:
        width = max(self.sizes.values())
        panels = []
        for row, task in enumerate(rows):
            for column, name in enumerate(self.names):
                shown = np.full((len(self.layers), width), np.nan)
                present = np.zeros_like(shown, dtype=bool)
                for y, layer in enumerate(self.layers):
                    if (site := self.at.get((layer, name))) is not None:
                        size = self.sizes[site]
                        shown[y, :size] = self.values[task, site, :size]
                        present[y, :size] = True
                panels.append(Panel(row, column, shown, present))
        return panels, [str(i) for i in range(width)]

    def per_site(self, rows: list[int]) -> tuple[list[Panel], list[str]]:
        panels = []
        for row, task in enumerate(rows):
            sites = [[self.at.get((layer, name)) for name in self.names] for layer in self.layers]
            present = np.array([[site is not None for site in line] for line in sites])
            shown = np.array([[np.nan if s is None else self.values[task, s] for s in line] for line in sites])
            panels.append(Panel(row, 0, shown, present))
        return panels, [short(name) for name in self.names]


def scale_ticks(grid: Panels) -> tuple[list[float], list[str]]:
    """Zero, the value of an even router where there is one, and the ends of the scale."""
    marks = {0.0: "0", grid.top: f"{grid.top:.2f}"} | ({grid.low: f"{grid.low:.2f}"} if grid.low < 0 else {})
    if grid.uniform is not None and 0.12 * grid.top < grid.uniform < 0.8 * grid.top:
        marks[grid.uniform] = f"even {grid.uniform:.3g}"
    ordered = sorted(marks)
    return ordered, [marks[value] for value in ordered]


def caption(grid: Panels) -> str:
    """What a cell is, how much was counted, and what the marks mean."""
    cell = "projection" if grid.across_name == "projection" else "expert"
    parts = [
        f"One cell: one {cell} in one layer; layers from bottom to top. Counted: {grid.counted}, padding excluded."
    ]
    if any(" rank " in name for name in (*grid.row_names, *grid.column_names)):
        parts.append("Numbers beside a projection: the ranks that a decision is about.")
    if not grid.shares and grid.figure in OF_WEIGHTS:
        parts.append(NO_SHARES)
    if grid.has_absent:
        parts.append("A dot: no such expert in this layer.")
    if any((panel.present & ~np.isfinite(panel.values)).any() for panel in grid.panels):
        parts.append("A cross: nothing was counted.")
    return " ".join(parts)


def short(projection: str) -> str:
    """``q_proj`` as ``q`` and ``q_proj rank 0-1`` as ``q 0-1``: what a narrow axis has room for."""
    for long, less in (("_proj", ""), (" rank ", " "), (" factors", ""), (" for its block", "")):
        projection = projection.replace(long, less, 1)
    return projection


def _uniform(figure: Figure, sizes: list[int], values: np.ndarray, chosen: list[int]) -> float | None:
    if figure in PER_SITE or len(set(sizes)) != 1:
        return None
    totals = np.nansum(values[:, chosen], axis=-1)
    seen = totals[totals > 0]
    return float(np.median(seen)) / sizes[0] if seen.size else None


def _chosen(known: list[str], wanted: Sequence[str] | None, what: str) -> list[str]:
    if wanted is None:
        return known
    for name in wanted:
        if name not in known:
            raise NotFoundError(f"No {what} {name!r} in this snapshot.", f"It has {', '.join(known)}.")
    return [name for name in known if name in wanted]
