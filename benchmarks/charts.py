"""Charts of measurements: one description, drawn by Plotly for a page and by matplotlib for the docs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.figures.static import PAGE, canvas, save
from core.figures.style import LOOKS, SERIES, Theme, layout


@dataclass(frozen=True)
class Line:
    """One series; ``colour`` counts in the house colours, so that two kinds of run of one method share theirs."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dotted: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over numbers of which each is twice the one before, or over ``names`` (bars, from above)."""

    title: str
    across: str
    up: str
    lines: list[Line] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def ticks(self) -> list[float]:
        return sorted({x for line in self.lines for x in line.x})


def plotly(chart: Chart, theme: Theme = "light") -> Any:
    import plotly.graph_objects as go

    drawing = go.Figure()
    for line in chart.lines:
        colour = SERIES[line.colour % len(SERIES)]
        if chart.names:
            names = [chart.names[int(x)] for x in line.x]
            marker = {"color": colour, "opacity": 0.45 if line.dotted else 1}
            drawing.add_bar(x=line.y, y=names, name=line.name, orientation="h", marker=marker)
        else:
            style = {"color": colour, "dash": "dot" if line.dotted else "solid"}
            drawing.add_scatter(x=line.x, y=line.y, name=line.name, mode="lines+markers", line=style)
    drawing.update_layout(**layout(theme, chart.title), height=110 + (34 * len(chart.names) or 330))
    if chart.names:
        drawing.update_yaxes(autorange="reversed")
        drawing.update_xaxes(title_text=chart.up)
    else:
        drawing.update_xaxes(title_text=chart.across, type="log", tickvals=chart.ticks)
        drawing.update_yaxes(title_text=chart.up, rangemode="tozero")
    return drawing


def static(charts: Sequence[Chart], path: Path, theme: Theme = "light", dpi: int = 160) -> Path:
    """Charts side by side in one picture."""
    look = LOOKS[theme]
    tall = max(0.3 + 0.24 * len(chart.names) if chart.names else 2.6 for chart in charts)
    with canvas(theme) as plt:
        drawing, all_axes = plt.subplots(
            1, len(charts), figsize=(PAGE, tall + 0.5), facecolor=look.paper, layout="constrained", squeeze=False
        )
        for chart, axes in zip(charts, all_axes[0], strict=True):
            axes.set_facecolor(look.paper)
            (_bars if chart.names else _lines)(axes, chart)
            axes.set_title(chart.title, size=8.5, weight="bold", loc="left")
            axes.tick_params(length=0, labelsize=7, labelcolor=look.dim)
            axes.xaxis.label.set(size=7, color=look.dim)
            axes.yaxis.label.set(size=7, color=look.dim)
            axes.grid(axis="x" if chart.names else "y", color=look.line, linewidth=0.5)
            axes.set_axisbelow(True)
            axes.spines[:].set_visible(False)
            axes.legend(frameon=False, fontsize=6.5, loc="best")
        return save(plt, drawing, path, dpi)


def _lines(axes: Any, chart: Chart) -> None:
    for line in chart.lines:
        style = {"color": SERIES[line.colour % len(SERIES)], "linestyle": ":" if line.dotted else "-"}
        axes.plot(line.x, line.y, marker="o", markersize=3, linewidth=1.3, label=line.name, **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(chart.ticks, [f"{tick:g}" for tick in chart.ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 1.08 * max(y for line in chart.lines for y in line.y))
    axes.set(xlabel=chart.across, ylabel=chart.up)


def _bars(axes: Any, chart: Chart) -> None:
    thick = 0.8 / max(1, len(chart.lines))
    for number, line in enumerate(chart.lines):
        at = [x + (number - (len(chart.lines) - 1) / 2) * thick for x in line.x]
        faded = {"alpha": 0.45} if line.dotted else {}
        axes.barh(at, line.y, height=thick, color=SERIES[line.colour % len(SERIES)], label=line.name, **faded)
    axes.set_yticks(range(len(chart.names)), chart.names)
    axes.invert_yaxis()
    axes.set(xlabel=chart.up)
