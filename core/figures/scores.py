"""Scores per task: runs against the untouched base and chance, and against what they cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from core.errors import NotFoundError
from core.figures.style import LOOKS, SERIES, Theme, layout

BASE = "untouched base"


def score_rows(scores: Any) -> pd.DataFrame:
    """Primary scores as a frame with run, task, metric, value, stderr, chance; the base's rows are named ``BASE``.

    ``scores``: a frame or a list of dicts with ``run``, ``task``, ``model`` (adapter or base), ``metric``, ``value``
    and, where known, ``stderr``, ``chance`` and ``primary``. The base is kept once for each task.
    """
    frame = pd.DataFrame(scores)
    if not len(frame):
        raise NotFoundError("There are no scores yet.", "Wait until a run has finished, or start a score job.")
    for name in ("stderr", "chance"):
        frame[name] = pd.to_numeric(frame[name], errors="coerce") if name in frame else np.nan
    if "primary" in frame:
        frame = frame[frame["primary"].astype(bool)]
    model = frame["model"] if "model" in frame else pd.Series("adapter", index=frame.index)
    frame = frame.assign(run=frame["run"].astype(str).where(model != "base", BASE))
    return frame.drop_duplicates(["run", "task"], keep="last").reset_index(drop=True)


def scores_figure(scores: Any, *, theme: Theme = "light", title: str = "") -> Any:
    """Per task, each run's primary score with two standard errors; the untouched base and chance are marked."""
    import plotly.graph_objects as go

    frame, look = score_rows(scores), LOOKS[theme]
    tasks = list(dict.fromkeys(frame["task"]))
    runs = [run for run in dict.fromkeys(frame["run"]) if run != BASE]
    drawing = go.Figure()
    at = {task: len(tasks) - 1 - i for i, task in enumerate(tasks)}
    spread = offsets(len(runs))
    for run, offset, colour in zip(runs, spread, _cycle(len(runs)), strict=True):
        part = frame[frame["run"] == run]
        drawing.add_trace(_dots(go, part, run, [at[t] + offset for t in part["task"]], colour))
    base = frame[frame["run"] == BASE]
    if len(base):
        dots = _dots(go, base, BASE, [at[t] for t in base["task"]], look.dim)
        dots.marker.symbol = "diamond-open"
        drawing.add_trace(dots)
    chance = frame.dropna(subset="chance").drop_duplicates("task")
    chance = chance[chance["chance"] > 0]
    if len(chance):
        marker = {"symbol": "line-ns", "size": 20, "line": {"width": 1.5, "color": look.dim}}
        hover = "chance %{x:.3f}<extra></extra>"
        rows = [at[t] for t in chance["task"]]
        drawing.add_trace(
            go.Scatter(x=chance["chance"], y=rows, mode="markers", name="chance", marker=marker, hovertemplate=hover)
        )
    labels = [f"{task}<br>{frame.loc[frame['task'] == task, 'metric'].iloc[0].replace('_', ' ')}" for task in tasks]
    drawing.update_yaxes(tickvals=list(at.values()), ticktext=labels, range=[-0.6, len(tasks) - 0.4], showgrid=False)
    drawing.update_xaxes(title_text="score; bars are two standard errors", rangemode="tozero")
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    margin = {"l": 150, "r": 24, "t": 100 if title else 60, "b": 50}
    height = 130 + len(tasks) * max(46, 15 * len(runs))
    drawing.update_layout(**layout(theme, title), height=height, margin=margin, legend=legend)
    return drawing


def score_against_parameters(scores: Any, *, theme: Theme = "light", title: str = "") -> Any:
    """Mean primary score over the tasks against trainable parameters (column ``trainable``), one point for each run.

    Bars are two standard errors of the mean over tasks, from the tasks' own standard errors.
    """
    import plotly.graph_objects as go

    frame = score_rows(scores)
    drawing = go.Figure()
    runs = [run for run in dict.fromkeys(frame["run"]) if run != BASE]
    for run, colour in zip(runs, _cycle(len(runs)), strict=True):
        part = frame[frame["run"] == run]
        error = 2 * float(np.sqrt(np.square(part["stderr"].fillna(0)).sum())) / len(part)
        drawing.add_trace(
            go.Scatter(
                x=[int(part["trainable"].iloc[0])],
                y=[float(part["value"].mean())],
                error_y={"type": "data", "array": [error], "thickness": 1.2, "width": 4},
                mode="markers+text",
                text=[run],
                textposition="top right",
                marker={"size": 10, "color": colour},
                name=run,
                hovertemplate="%{x:,} parameters<br>mean score %{y:.3f}<extra>" + run + "</extra>",
            )
        )
    base = frame[frame["run"] == BASE]
    if len(base):
        note = {"text": BASE, "font": {"color": LOOKS[theme].dim, "size": 11}}
        drawing.add_hline(
            y=float(base["value"].mean()), line={"color": LOOKS[theme].dim, "dash": "dot", "width": 1}, annotation=note
        )
    drawing.update_xaxes(type="log", title_text="trainable parameters")
    drawing.update_yaxes(title_text="mean score over the tasks")
    margin = {"l": 70, "r": 40, "t": 70 if title else 30, "b": 56}
    drawing.update_layout(**layout(theme, title), height=420, margin=margin, showlegend=False)
    return drawing


def offsets(count: int, reach: float = 0.26) -> list[float]:
    """Where ``count`` dots of one task stand around its line, first on top."""
    return [0.0] if count == 1 else [float(v) for v in np.linspace(reach, -reach, count)]


def _cycle(count: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(count)]


def _dots(go: Any, part: pd.DataFrame, run: str, y: list[float], colour: str) -> Any:
    return go.Scatter(
        x=part["value"],
        y=y,
        error_x={"type": "data", "array": 2 * part["stderr"].fillna(0), "thickness": 1.2, "width": 3, "color": colour},
        mode="markers",
        name=run,
        marker={"size": 8, "color": colour, "line": {"width": 1.6 if run == BASE else 0, "color": colour}},
        customdata=part[["task", "metric", "stderr"]],
        hovertemplate="%{customdata[0]}: %{customdata[1]} %{x:.3f} ± %{customdata[2]:.3f}<extra>" + run + "</extra>",
    )
