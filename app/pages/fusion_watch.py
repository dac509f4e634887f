"""A fused run while it is made and after: curves of what it learns, its coefficients, its mask, what saving lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from app.pages.fusion_grid import Grid, round_up
from app.pages.run_curves import POINTS, Family
from app.ui import components as ui
from core.studio import Studio

WORKING = ("starting", "running", "cancelling")
EXACT = 1e-6
e = ui.escape


def members(family: Family, known: Sequence[str]) -> list[str]:
    """The curves of a family that a run has."""
    return [n for n in known if n in family.names or (family.below and n.startswith(family.below))]


def choices(families: Mapping[str, Family], known: Sequence[str]) -> list[tuple[str, str]]:
    """Families that a run has curves of; the first of all where there are none yet."""
    found = [(family.label, name) for name, family in families.items() if members(family, known)]
    return found or [(family.label, name) for name, family in list(families.items())[:1]]


def curves(
    studio: Studio, run: Mapping[str, Any], families: Mapping[str, Family], name: str, known: Sequence[str]
) -> dict[str, Any]:
    """The value of a curve component; ``name`` is a family's, else the first that the run has."""
    offered = [value for _, value in choices(families, known)]
    name = name if name in offered else offered[0]
    family = families[name]
    found = studio.watch.run_curves(run["id"], members(family, sorted(known)), POINTS)
    job, waits = fuse_job(run), run["state"] in (*WORKING, "queued")
    return {
        "name": f"{run['id']}-{name}",
        "series": [
            {"name": n.removeprefix(family.below) if family.below else n.replace("_", " "), "points": points}
            for n, points in found.items()
        ],
        "xmax": job["total"] if job and job["total"] and job["state"] in WORKING else 0,
        "x": "step",
        "y": family.unit,
        "empty": f"{family.label}: {'none yet' if waits else 'this method learns none'}.",
    }


def fuse_job(run: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((job for job in run["jobs"] if job["kind"] == "fuse"), None)


def newest(tables: Sequence[tuple[int, pd.DataFrame]]) -> tuple[int, pd.DataFrame] | None:
    return tables[-1] if tables else None


def coefficients(run: str, step: int, frame: pd.DataFrame) -> dict[str, Any]:
    """The value of a heatmap, a panel for each fused run: how much of its task vector each projection takes."""
    paths = [str(name) for name in frame.columns if name != "run"]
    values = frame.drop(columns="run").to_numpy(dtype=float)
    return Grid.of(paths).panels([str(name) for name in frame["run"]], values) | {
        **_span_of(values),
        "rowName": "run",
        "figure": "Coefficient of each task vector",
        "short": "coefficient",
        "caption": f"{run}, step {step:,}",
        "name": f"{run}-coefficients",
    }


def _span_of(values: np.ndarray) -> dict[str, float]:
    """A scale about 0 where there are negative coefficients, else over what there is: they often lie close together."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low < 0:
        return {"mid": 0.0, "top": round_up(max(-low, high))}
    step = 10.0 ** np.floor(np.log10(max(high - low, 0.005)))
    low, high = float(np.floor(low / step) * step), float(np.ceil(high / step) * step)
    return {"low": round(low, 4), "top": round(max(high, low + step), 4)}


def layered(frame: pd.DataFrame) -> bool:
    """Whether coefficients differ by projection, so that they make a heatmap."""
    return Grid.of([str(name) for name in frame.columns if name != "run"]).layered


def few_coefficients(frame: pd.DataFrame) -> str:
    """Coefficients that do not tell projections apart, as bars."""
    names = [name for name in frame.columns if name != "run"]
    top = float(np.nanmax(np.abs(frame[names].to_numpy(dtype=float)), initial=0.0)) or 1.0
    parts = []
    for name in names:
        bars = "".join(
            f'<div class="bar named"><b title="{e(row["run"])}">{e(row["run"])}</b><span class="track">'
            f'<i style="width:{abs(row[name]) / top:.1%};background:var(--expert-{i % 8})"></i></span>'
            f'<em class="num">{row[name]:.3f}</em></div>'
            for i, row in enumerate(frame.to_dict("records"))
        )
        parts.append((f"<h4>{e(name)}</h4>" if len(names) > 1 else "") + bars)
    return "<h3>Coefficients</h3>" + "".join(parts)


def mask(run: str, step: int, frame: pd.DataFrame) -> dict[str, Any]:
    """The value of a heatmap: how much of each projection the mask lets through."""
    values = frame[["mean", "above_half"]].to_numpy(dtype=float).T
    return Grid.of([str(path) for path in frame["path"]]).panels(["mean of the mask", "above one half"], values) | {
        "low": 0.0,
        "top": 1.0,
        "rowName": "mask",
        "figure": "Mask density",
        "short": "density",
        "caption": f"{run}, step {step:,}",
        "name": f"{run}-mask-density",
    }


def saved(frame: pd.DataFrame) -> str:
    """What saving the fused model lost, in a sentence; nothing where it is not known yet."""
    errors, ranks = frame["relative_error"].to_numpy(dtype=float), frame["rank"]
    size = "whole matrices" if ranks.isna().all() else f"rank {_span(ranks.dropna())}"
    known = errors[np.isfinite(errors)]
    if not known.size or known.max() <= EXACT:
        return f"<p>Saved exactly, as {size}: the form lost nothing of what was fused.</p>"
    worst = frame["path"].iloc[int(np.nanargmax(errors))]
    return (
        f"<p>Saved as {size}. That lost {known.mean():.2%} of a projection's norm on average, at most "
        f"{known.max():.2%} (<code>{e(worst)}</code>).</p>"
    )


def _span(ranks: pd.Series) -> str:
    low, high = int(ranks.min()), int(ranks.max())
    return f"{low}" if low == high else f"{low} to {high}"


def form_error(run: str, frame: pd.DataFrame) -> dict[str, Any] | None:
    """The value of a heatmap of what the saved form lost; None where it lost nothing."""
    errors = frame["relative_error"].to_numpy(dtype=float)
    top = float(np.nanmax(errors, initial=0.0))
    if top <= EXACT:
        return None
    return Grid.of([str(path) for path in frame["path"]]).panels(["what saving lost"], errors[None]) | {
        "low": 0.0,
        "top": round_up(top),
        "rowName": "",
        "digits": 4,
        "figure": "Relative error of the saved form",
        "short": "relative error",
        "caption": f"{run}; share of a projection's norm",
        "name": f"{run}-form-error",
    }
