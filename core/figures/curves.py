"""Training curves as Plotly figures."""

from __future__ import annotations

from typing import Any

import pandas as pd

from core.errors import NotFoundError
from core.figures.style import SERIES, Theme, layout


def loss_curves(points: Any, *, theme: Theme = "light", smooth: int = 1, title: str = "") -> Any:
    """Loss against step, one panel for the mixture and one for each task, one colour for each run.

    ``points``: a long frame (or list of dicts) with columns ``run``, ``metric``, ``step`` and ``value``; metrics named
    ``loss`` and ``loss/<task>`` are drawn solid, ``validation`` and ``validation/<task>`` with dots. ``smooth`` is the
    width of a centred running mean over the points of the training loss.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    frame = pd.DataFrame(points)
    names = frame["metric"].str.partition("/") if len(frame) else pd.DataFrame({0: [], 2: []})
    frame = frame.assign(family=names[0], task=names[2]) if len(frame) else frame
    frame = frame[frame["family"].isin(["loss", "validation"])] if len(frame) else frame
    if not len(frame):
        raise NotFoundError("There are no loss curves yet.", "Wait until the run has logged its first steps.")
    panels = ["", *sorted(task for task in frame["task"].unique() if task)]
    panels = [task for task in panels if (frame["task"] == task).any()]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    drawing = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[f"<b>{task or 'all tasks'}</b>" for task in panels],
        shared_xaxes=True,
        horizontal_spacing=0.06,
        vertical_spacing=0.12 if rows < 3 else 0.08,
    )
    for order, run in enumerate(frame["run"].unique()):
        colour = SERIES[order % len(SERIES)]
        for index, task in enumerate(panels):
            for family in ("loss", "validation"):
                chosen = (frame["run"] == run) & (frame["task"] == task) & (frame["family"] == family)
                line = frame[chosen].sort_values("step")
                if len(line):
                    trace = _line(go, line, run, family, colour, smooth)
                    trace.showlegend = index == 0 and family == "loss"
                    drawing.add_trace(trace, row=index // columns + 1, col=index % columns + 1)
    drawing.update_yaxes(title_text="loss (nats per answer token)", col=1)
    drawing.update_xaxes(title_text="step", row=rows, showgrid=False)
    drawing.update_annotations(font={"size": 13})
    legend = {"orientation": "h", "x": 0, "y": -0.12, "yanchor": "top"}
    margin = {"l": 70, "r": 24, "t": 72 if title else 44, "b": 60}
    drawing.update_layout(**layout(theme, title), height=90 + 250 * rows, margin=margin, legend=legend)
    return drawing


def _line(go: Any, line: pd.DataFrame, run: str, family: str, colour: str, smooth: int) -> Any:
    values = line["value"]
    if family == "loss" and smooth > 1:
        values = values.rolling(smooth, center=True, min_periods=1).mean()
    solid = family == "loss"
    return go.Scatter(
        x=line["step"],
        y=values,
        name=str(run),
        legendgroup=str(run),
        mode="lines" if solid else "lines+markers",
        line={"color": colour, "width": 1.8 if solid else 1, "dash": "solid" if solid else "dot"},
        marker={"size": 5},
        hovertemplate=f"step %{{x}}<br>{'loss' if solid else 'validation'} %{{y:.4f}}<extra>{run}</extra>",
    )
