"""Routing: layer x expert heatmaps with Plotly, and how alike tasks are routed."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.errors import NotFoundError
from core.figures.panels import Figure, Panel, Panels, Role, caption, over_roles, routing_panels, scale_ticks
from core.figures.style import LOOKS, Look, Theme, layout, plotly_scale
from core.routing.statistics import distances_of

GAP = 14  # pixels between rows of panels
HEAD = 40  # pixels above the panels for the names of columns
BAR = 300  # length of the colour bar in pixels


def routing_heatmap(
    snapshot: Any,
    *,
    task: str | None = None,
    figure: Figure = "mean_gate",
    role: Role = "answer",
    projections: Sequence[str] | None = None,
    title: str = "",
    theme: Theme = "light",
) -> Any:
    """Layer x expert for each task and projection as a ``plotly.graph_objects.Figure``.

    ``snapshot`` is a ``RoutingSnapshot``; ``task`` None draws every task. Cells of experts that a layer does not have
    stay empty with a dot, cells where nothing was counted carry a cross.
    """
    from plotly.subplots import make_subplots

    grid = routing_panels(snapshot, task=task, figure=figure, role=role, projections=projections)
    look = LOOKS[theme]
    rows, columns = len(grid.row_names), len(grid.column_names)
    height = _panel_height(grid)
    inside = rows * height + GAP * (rows - 1)
    drawing = make_subplots(
        rows=rows,
        cols=columns,
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=min(0.014, 0.5 / columns),
        vertical_spacing=GAP / inside if rows > 1 else 0,
    )
    for panel in grid.panels:
        place = {"row": panel.row + 1, "col": panel.column + 1}
        drawing.add_trace(_tiles(grid, panel), **place)
        for trace in _marks(grid, panel, look):
            drawing.add_trace(trace, **place)
    _axes(drawing, grid)
    named = any(grid.row_names)
    drawing.update_layout(
        **layout(theme, title),
        coloraxis=_scale(grid, theme, 1 + (HEAD + 20) / inside),
        height=inside + 186,
        margin={"l": 186 if named else 64, "r": 24, "t": 116, "b": 70},
        showlegend=False,
        hovermode="closest",
    )
    for note in _notes(drawing, grid, look):
        drawing.add_annotation(note)
    return drawing


def similarity(snapshot: Any) -> tuple[list[str], np.ndarray]:
    """Task names and their (task, task) similarity over answers: the mean over sites of one minus the squared distance.

    The distance of two tasks at a site is that of ``core.routing.statistics``: for weights that are shares, this is
    one minus the Jensen-Shannon divergence in bits. 1 means routed alike.
    """
    chosen = [i for i, site in enumerate(snapshot.sites) if site.experts > 1]
    if not chosen:
        raise NotFoundError("This run routes nothing: every site has one expert.", "Choose a mixture, such as mosld.")
    distances = distances_of(over_roles(snapshot, "mean_gate", "answer")[0], snapshot.sites)[chosen]
    return list(snapshot.tasks), 1 - np.nanmean(distances**2, axis=0)


def _panel_height(grid: Panels) -> int:
    cell = np.clip(1000 / len(grid.column_names) / len(grid.across), 10, 26)
    return int(np.clip(cell * len(grid.layers), 84, 520))


def _tiles(grid: Panels, panel: Panel) -> Any:
    import plotly.graph_objects as go

    task, projection = grid.names(panel)
    where = html.escape(f"{task} · {projection}" if projection else task)
    return go.Heatmap(
        z=np.round(panel.values, 5),
        x=list(range(len(grid.across))),
        y=list(range(len(grid.layers))),
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        hoverongaps=False,
        customdata=[[[layer, name] for name in grid.across] for layer in grid.layers],
        hovertemplate=f"{where}<br>layer %{{customdata[0]}}, {grid.across_name} %{{customdata[1]}}<br>"
        f"{grid.title.lower()} %{{z:.3f}}<extra>{grid.under(task)}</extra>",
    )


def _marks(grid: Panels, panel: Panel, look: Look) -> list[Any]:
    import plotly.graph_objects as go

    traces = []
    for mask, symbol, text in (
        (~panel.present, "circle", f"no such {grid.across_name} in this layer"),
        (panel.present & ~np.isfinite(panel.values), "x-thin", "nothing counted"),
    ):
        y, x = np.nonzero(mask)
        if len(x):
            marker = {"symbol": symbol, "size": 3 if symbol == "circle" else 6, "color": look.dim, "opacity": 0.6}
            marker["line"] = {"width": 0 if symbol == "circle" else 1, "color": look.dim}
            template = f"{text}<extra></extra>"
            traces.append(go.Scatter(x=x, y=y, mode="markers", marker=marker, hovertemplate=template))
    return traces


def _axes(drawing: Any, grid: Panels) -> None:
    plain = {"showgrid": False, "zeroline": False, "ticks": "", "fixedrange": True}
    for update, names in ((drawing.update_xaxes, grid.across), (drawing.update_yaxes, [str(n) for n in grid.layers])):
        every = max(1, -(-len(names) // 8))
        at = list(range(0, len(names), every))
        update(tickvals=at, ticktext=[names[i] for i in at], range=[-0.5, len(names) - 0.5], **plain)
    last = len(grid.row_names)
    drawing.update_xaxes(title={"text": grid.across_name, "standoff": 4}, row=last, col=1)
    drawing.update_yaxes(title={"text": "layer", "standoff": 4}, row=last, col=1)


def _scale(grid: Panels, theme: Theme, y: float) -> dict[str, Any]:
    ticks, labels = scale_ticks(grid)
    place = {"orientation": "h", "x": 1.0, "xanchor": "right", "xpad": 0, "y": y, "yanchor": "bottom", "ypad": 0}
    size = {"len": BAR, "lenmode": "pixels", "thickness": 9, "outlinewidth": 0}
    marks = {"tickvals": ticks, "ticktext": labels, "ticks": "outside", "ticklen": 3, "tickfont": {"size": 11}}
    colours = plotly_scale(theme, signed=grid.low < 0)
    return {"colorscale": colours, "cmin": grid.low, "cmax": grid.top, "colorbar": {**place, **size, **marks}}


def _notes(drawing: Any, grid: Panels, look: Look) -> list[dict[str, Any]]:
    """Names of rows and columns with their counts, what the scale measures, the caption."""
    free = {"showarrow": False, "xref": "paper", "yref": "paper"}
    small = {"size": 12, "color": look.dim}
    notes = []
    heads = grid.heads(1000 / len(grid.column_names) / 7.5)
    for column, (name, head) in enumerate(zip(grid.column_names, heads, strict=True)):
        low, high = drawing.get_subplot(1, column + 1).xaxis.domain
        place = {"x": (low + high) / 2, "xanchor": "center", "y": 1, "yanchor": "bottom", "yshift": 2}
        notes.append({**free, **place, "text": _label(head, grid.under(name), look)})
    for row, name in enumerate(grid.row_names):
        low, high = drawing.get_subplot(row + 1, 1).yaxis.domain
        place = {"x": 0, "xanchor": "right", "xshift": -50, "y": (low + high) / 2, "yanchor": "middle"}
        notes.append({**free, **place, "align": "right", "text": _label(name, grid.under(name), look)})
    place = {"x": 1, "xanchor": "right", "xshift": -BAR - 12, "y": 1, "yanchor": "middle", "yshift": HEAD + 34}
    notes.append({**free, **place, "text": f"{grid.title}: {grid.unit_text}"})
    place = {"x": 0, "xanchor": "left", "y": 0, "yanchor": "top", "yshift": -44}
    notes.append({**free, **place, "text": caption(grid), "font": small})
    return notes


def _label(name: str, under: str, look: Look) -> str:
    count = f"<br><span style='font-size:11px;color:{look.dim}'>{under}</span>" if under else ""
    return f"<b>{html.escape(name)}</b>{count}"
