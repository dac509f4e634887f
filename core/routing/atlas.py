"""All routing of one run: its moments as one grid with one scale, and distances between its tasks (numpy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import NotFoundError
from .definitions import DEFINITIONS
from .snapshot import RoutingSnapshot, SiteInfo, places
from .statistics import over_roles, site_distances


@dataclass(frozen=True)
class Moment:
    """When routing was recorded, on which rows, and what it was."""

    name: str
    step: int
    split: str
    snapshot: RoutingSnapshot = field(repr=False)


@dataclass(frozen=True)
class Grid:
    """One figure of one moment: ``values`` (task, projection, layer, across), NaN where nothing was counted.

    ``across`` names the experts, or is empty for a figure that a site has one of. ``exists`` (projection, layer,
    across) tells an expert that a layer does not have from one without a count; ``counts`` is (task, projection,
    layer), in ``unit``: token, sample or decision. ``projections`` are places: a projection, or a part of one.
    ``shares``: all weights sum to one; ``signed``: some can be negative.
    """

    tasks: list[str]
    projections: list[str]
    layers: list[int]
    across: list[str]
    values: np.ndarray
    exists: np.ndarray
    counts: np.ndarray
    unit: str
    shares: bool = True
    signed: bool = False


@dataclass(frozen=True)
class Distances:
    """Jensen-Shannon distances of tasks: ``tasks x tasks`` over ``sites``, and the mean of each site over all pairs."""

    tasks: list[str]
    between: np.ndarray
    sites: int
    layers: list[int]
    projections: list[str]
    by_site: np.ndarray  # (projection, layer), NaN where nothing is adapted

    @property
    def most_specific(self) -> tuple[int, str]:
        """Layer and projection with the largest distance; (-1, "") where there is none."""
        if not np.isfinite(self.by_site).any():
            return -1, ""
        projection, layer = np.unravel_index(np.nanargmax(self.by_site), self.by_site.shape)
        return self.layers[layer], self.projections[projection]


@dataclass(frozen=True)
class Atlas:
    run: str
    moments: list[Moment]

    def moment(self, name: str) -> Moment:
        for moment in self.moments:
            if moment.name == name:
                return moment
        have = ", ".join(moment.name for moment in self.moments)
        raise NotFoundError(f"{self.run} has no routing of the moment {name!r}.", f"It has: {have}.")

    @property
    def projections(self) -> list[str]:
        """The places of all moments, in order: a projection, or each part of one that decides by itself."""
        return places(site for moment in self.moments for site in moment.snapshot.sites)

    @property
    def whole(self) -> list[str]:
        """Projections of several parts, which can be asked for together."""
        known = self.projections
        found = [site.projection for moment in self.moments for site in _routed(moment.snapshot)]
        return [name for name in dict.fromkeys(found) if name not in known]

    @property
    def signed(self) -> bool:
        """Whether some weights can be negative."""
        return any(site.signed for moment in self.moments for site in _routed(moment.snapshot))

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for moment in self.moments for task in moment.snapshot.tasks))

    def grid(self, moment: str, figure: str, role: str | None = None, projection: str | None = None) -> Grid:
        """``role`` None: prompts and answers together; ``projection`` None: all of them; else a place, or a whole."""
        shot = self.moment(moment).snapshot
        chosen = {i: s for i, s in enumerate(shot.sites) if s.experts > 1 and s.within(projection)}
        sites = list(chosen.values())
        names = self.projections if projection is None else places(sites)
        if not sites:
            raise NotFoundError(f"{self.run} routes nothing at {projection}.", f"It has {', '.join(self.projections)}.")
        layers = sorted({site.layer for site in sites})
        per_expert = DEFINITIONS.of(figure).per_expert
        wide = max(site.experts for site in sites) if per_expert else 1
        values, counts = over_roles(shot, figure, role), over_roles(shot, "count", role)
        shape = (len(names), len(layers), wide)
        grid = np.full((len(shot.tasks), *shape), np.nan)
        exists, counted = np.zeros(shape, bool), np.zeros((len(shot.tasks), *shape[:2]))
        for index, site in chosen.items():
            p, layer, size = names.index(site.place), layers.index(site.layer), site.experts if per_expert else 1
            found = values[:, index, :size] if per_expert else values[:, index, None]
            grid[:, p, layer, :size] = found
            exists[p, layer, :size] = not (site.signed and figure == "relative_gate")
            counted[:, p, layer] = counts[:, index]
        units = {site.unit for site in sites}
        across = [str(e) for e in range(wide)] if per_expert else []
        unit = units.pop() if len(units) == 1 else "decision"
        shares, signed = all(site.sums_to_one for site in sites), any(site.signed for site in sites)
        return Grid(list(shot.tasks), names, layers, across, grid, exists, counted, unit, shares, signed)

    def top(self, figure: str, role: str | None = None) -> float:
        """The end of the scale: the largest value of any moment, or the largest distance from 0."""
        found = [over_roles(moment.snapshot, figure, role) for moment in self.moments]
        known = [values[np.isfinite(values)] for values in found]
        return max((float(np.abs(values).max()) for values in known if values.size), default=1.0) or 1.0

    def distances(self, moment: str, role: str | None = None, projection: str | None = None) -> Distances:
        """``between`` averages over the sites of ``projection``, or over all sites."""
        shot = self.moment(moment).snapshot
        found = _distances(shot, role)
        names = self.projections
        chosen = [i for i, s in enumerate(shot.sites) if s.experts > 1 and s.within(projection)]
        layers = sorted({site.layer for site in _routed(shot)})
        by_site = np.full((len(names), len(layers)), np.nan)
        upper = np.triu_indices(len(shot.tasks), 1)
        for index, site in enumerate(shot.sites):
            if site.experts > 1:
                by_site[names.index(site.place), layers.index(site.layer)] = _mean(found[index][upper])
        between = np.array([[_mean(found[chosen, a, b]) for b in _range(shot)] for a in _range(shot)])
        return Distances(list(shot.tasks), between, len(chosen), layers, names, by_site)


def _distances(snapshot: RoutingSnapshot, role: str | None) -> np.ndarray:
    """site x task x task; worked out once for a snapshot, which nobody changes."""
    kept = snapshot.__dict__.setdefault("_distances", {})
    if role not in kept:
        kept[role] = site_distances(snapshot, role)
    return kept[role]


def latest(moments: Sequence[Moment]) -> list[Moment]:
    """One moment of each name, the newest, in the order of the steps."""
    return sorted({moment.name: moment for moment in moments}.values(), key=lambda moment: moment.step)


def _routed(snapshot: RoutingSnapshot) -> list[SiteInfo]:
    return [site for site in snapshot.sites if site.experts > 1]


def _range(snapshot: RoutingSnapshot) -> range:
    return range(len(snapshot.tasks))


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
