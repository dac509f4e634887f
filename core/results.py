"""What runs found, as frames: curves, scores, routing, comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from core import sheets
from core.errors import ConfigurationError, NotFoundError
from core.home import Home, write_text
from core.paths import child
from core.records import Records

if TYPE_CHECKING:
    from core.routing.atlas import Atlas
    from core.routing.snapshot import RoutingSnapshot

SCORE_COLUMNS = ("run", "task", "dataset", "split", "model", "metric", "value", "stderr", "chance", "rows", "primary")


def curves(
    records: Records,
    run: str,
    *,
    names: Sequence[str] | None = None,
    after_step: int | None = None,
    max_points: int | None = None,
) -> pd.DataFrame:
    """Long form: one row for each point."""
    from storage.queries import series

    with records.read() as session:
        found = series.read(session, run=run, names=names, after_step=after_step, max_points=max_points)
    parts = [pd.DataFrame({"name": name, "step": one.steps, "value": one.values}) for name, one in found.items()]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["name", "step", "value"])


def scores(records: Records, runs: Sequence[str], primary: bool) -> pd.DataFrame:
    from storage.queries import scores as stored

    with records.read() as session:
        found = stored.of_runs(session, runs=runs, primary_only=primary)
    columns = [*SCORE_COLUMNS, "job", "key", "predictions"]
    return pd.DataFrame([{name: getattr(score, name) for name in columns} for score in found], columns=columns)


def moments(records: Records, run: str) -> list[dict[str, Any]]:
    from storage.queries import routing as stored

    with records.read() as session:
        found = stored.moments(session, run=run)
    return [{"moment": one.moment, "step": one.step, "split": one.split, "file": one.file} for one in found]


def routing(records: Records, home: Home, run: str, moment: str) -> RoutingSnapshot:
    """The figures of one moment; of several of that name the newest."""
    from core.routing.snapshot import RoutingSnapshot

    known = moments(records, run)
    if not known:
        raise NotFoundError(
            f"{run} has recorded no routing.", "Methods with one expert route nothing; others record while they train."
        )
    found = [one for one in known if one["moment"] == moment]
    if not found:
        have = ", ".join(dict.fromkeys(one["moment"] for one in known))
        raise NotFoundError(f"{run} has no routing of the moment {moment!r}.", f"It has: {have}.")
    path = child(home.run(run).routing, found[-1]["file"])
    if not path.is_file():
        raise NotFoundError(f"The routing file {path} is missing.", "Copy it from where the run was made.")
    return RoutingSnapshot.load(path)


def routed(records: Records, runs: Sequence[str]) -> set[str]:
    from storage.queries import routing as stored

    with records.read() as session:
        return {run for run, found in stored.moments_of(session, runs=runs).items() if found}


def atlas(records: Records, home: Home, run: str) -> Atlas:
    """Every moment of a run whose file is there."""
    from core.routing.atlas import Atlas, Moment, latest

    folder = home.run(run).routing
    known = [(one, child(folder, one["file"])) for one in moments(records, run)]
    found = [
        Moment(one["moment"], one["step"], one["split"], _snapshot(path, path.stat().st_mtime_ns))
        for one, path in known
        if path.is_file()
    ]
    if known and not found:
        raise NotFoundError(f"The routing files of {run} are missing.", f"Copy them into {folder}.")
    return Atlas(run, latest(found))


@lru_cache(maxsize=64)
def _snapshot(path: Path, _written: int) -> RoutingSnapshot:
    """Read once for all readers, who do not change it; again when the file was written again."""
    from core.routing.snapshot import RoutingSnapshot

    return RoutingSnapshot.load(path)


def routing_table(
    snapshot: RoutingSnapshot, *, figure: str = "mean_gate", role: str = "answer", task: str | None = None
) -> pd.DataFrame:
    """One row for each task, layer and projection, or part of one that is decided on by itself.

    One column for each expert, NaN past a site's experts; of a figure that a whole site has (entropy, load_cv) one
    column of its name. ``role`` all: every role, weighted by its decisions. ``attrs["note"]`` says where the weights
    are no shares.
    """
    from core.figures.panels import FIGURES, NO_SHARES, OF_WEIGHTS, ROLES, over_roles

    _known("routing figure", figure, tuple(FIGURES))
    _known("role", role, ROLES)
    if task is not None:
        _known("task", task, tuple(snapshot.tasks))
    values, _ = over_roles(snapshot, figure, role)
    rows = []
    for t, name in enumerate(snapshot.tasks):
        if task is not None and name != task:
            continue
        for s, site in enumerate(snapshot.sites):
            cell = np.atleast_1d(values[t, s])
            heads = [figure] if values.ndim == 2 else [str(e) for e in range(len(cell))]
            found = dict(zip(heads, map(float, cell), strict=True))
            rows.append({"task": name, "layer": site.layer, "projection": site.place, **found})
    frame = pd.DataFrame(rows)
    if figure in OF_WEIGHTS and not all(site.sums_to_one for site in snapshot.sites):
        frame.attrs["note"] = NO_SHARES
    return frame


def no_routing() -> pd.DataFrame:
    return pd.DataFrame(columns=["task", "layer", "projection"])


def write_routing(
    snapshot: RoutingSnapshot,
    title: str,
    *,
    figure: str = "mean_gate",
    role: str = "answer",
    task: str | None = None,
    projections: Sequence[str] | None = None,
    html: Path | None = None,
    png: Path | None = None,
    csv: Path | None = None,
) -> list[Path]:
    """The heatmap as a page or a picture, every figure as a long table; returns the files written.

    ``png`` may end in .pdf or .svg too.
    """
    from core import figures

    chosen: dict[str, Any] = {"figure": figure, "role": role, "task": task, "title": title}
    chosen["projections"] = projections
    written = []
    if html is not None:
        drawn = figures.routing_heatmap(snapshot, **chosen)
        written.append(figures.write_html(drawn, html, title=title))
    if png is not None:
        written.append(figures.routing_heatmap_static(snapshot, png, **chosen))
    if csv is not None:
        write_text(csv, sheets.of_frame(snapshot.to_frame()))
        written.append(csv)
    return written


def _known(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigurationError(f"{value!r} is not a {what}.", f"Choose one of {', '.join(known)}.")
