"""Figures as PNG, SVG or PDF through matplotlib, which needs no browser."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import ConfigurationError
from core.figures.panels import Figure, Panels, Role, caption, routing_panels, scale_ticks
from core.figures.scores import BASE, offsets, score_rows
from core.figures.style import FONTS, LOOKS, SERIES, Look, Theme, diverging, ramp
from core.home import whole

FORMATS = (".png", ".svg", ".pdf")
PAGE = 7.2  # inches: the text width of a two-column page


def routing_heatmap_static(
    snapshot: Any,
    path: str | Path,
    *,
    task: str | None = None,
    figure: Figure = "mean_gate",
    role: Role = "answer",
    projections: Sequence[str] | None = None,
    title: str = "",
    theme: Theme = "light",
    dpi: int = 220,
) -> Path:
    """Draw the routing heatmap of ``snapshot`` into ``path`` (.png, .svg or .pdf) and return the path."""
    grid = routing_panels(snapshot, task=task, figure=figure, role=role, projections=projections)
    with canvas(theme) as plt:
        drawing = _draw(plt, grid, LOOKS[theme], theme, title)
        return save(plt, drawing, path, dpi)


@contextmanager
def canvas(theme: Theme) -> Iterator[Any]:
    """``matplotlib.pyplot`` on a backend without a window, with the studio's fonts and ink."""
    import matplotlib

    look = LOOKS[theme]
    known = _installed_fonts()
    settings = {
        "font.family": [name for name in FONTS if name in known] or ["sans-serif"],
        "svg.fonttype": "path",
        "svg.hashsalt": "tessera",
        "pdf.fonttype": 42,
        "text.color": look.ink,
        "axes.linewidth": 0.6,
    }
    with matplotlib.rc_context(settings):
        matplotlib.use("Agg", force=True)
        import matplotlib.pyplot as plt

        yield plt


def save(plt: Any, drawing: Any, path: str | Path, dpi: int) -> Path:
    """Write and close ``drawing``; the same drawing gives the same bytes."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        plt.close(drawing)
        raise ConfigurationError(f"{path.name} is not a picture format.", f"End the name in {', '.join(FORMATS)}.")
    kind = path.suffix.lower()[1:]
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    try:
        with whole(path) as file:
            drawing.savefig(file, format=kind, dpi=dpi, facecolor=drawing.get_facecolor(), metadata=dated.get(kind))
    finally:
        plt.close(drawing)
    path.chmod(0o644)  # a picture to hand on, as pages are
    return path


class _Place:
    """Where the panels stand, in inches from the lower left corner."""

    gap = 0.09
    right = 0.14

    def __init__(self, grid: Panels, titled: bool) -> None:
        self.rows, columns = len(grid.row_names), len(grid.column_names)
        longest = max((len(text) for name in grid.row_names if name for text in (name, grid.under(name))), default=0)
        self.left = 0.46 + (0.062 * longest + 0.12 if longest else 0.0)
        room = (PAGE - self.left - self.right - self.gap * (columns - 1)) / columns
        self.panel_width = min(1.7, max(0.5, room))
        natural = self.panel_width * len(grid.layers) / max(len(grid.across), 4)
        self.panel_height = min(max(natural, 0.5, 0.045 * len(grid.layers)), 2.8)
        under = any(grid.under(name) for name in grid.column_names)
        self.head = 0.46 if under else 0.28
        self.top = self.head + 0.44 + (0.20 if titled else 0.0)
        self.width = max(self.left + columns * (self.panel_width + self.gap) - self.gap + self.right, 4.6)
        self.caption = "\n".join(textwrap.wrap(caption(grid), int((self.width - 0.55) * 21)))
        self.tilted = grid.across_name == "projection"
        self.bottom = 0.40 + 0.12 * (1 + self.caption.count("\n")) + (0.12 if self.tilted else 0.0)
        self.height = self.top + self.rows * (self.panel_height + self.gap) - self.gap + self.bottom

    def box(self, row: int, column: int) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of a panel as shares of the drawing."""
        x = self.left + column * (self.panel_width + self.gap)
        y = self.bottom + (self.rows - 1 - row) * (self.panel_height + self.gap)
        return (x / self.width, y / self.height, self.panel_width / self.width, self.panel_height / self.height)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Inches to shares of the drawing; negative values count from the right or the top."""
        return (x if x >= 0 else self.width + x) / self.width, (y if y >= 0 else self.height + y) / self.height


def _draw(plt: Any, grid: Panels, look: Look, theme: Theme, title: str) -> Any:
    from matplotlib.colors import ListedColormap

    place = _Place(grid, bool(title))
    drawing = plt.figure(figsize=(place.width, place.height), facecolor=look.paper)
    colours = ListedColormap(diverging(theme, 255) if grid.low < 0 else ramp(theme, 256))
    for panel in grid.panels:
        axes = drawing.add_axes(place.box(panel.row, panel.column))
        tiles = axes.pcolormesh(
            np.ma.masked_invalid(panel.values),
            cmap=colours,
            vmin=grid.low,
            vmax=grid.top,
            edgecolor=look.paper,
            linewidth=0.4,
        )
        for mask, mark in ((~panel.present, "."), (panel.present & ~np.isfinite(panel.values), "x")):
            y, x = np.nonzero(mask)
            axes.plot(x + 0.5, y + 0.5, mark, color=look.dim, markersize=1.6, markeredgewidth=0.35, alpha=0.7)
        _axes(axes, grid, panel.row, panel.column, look, place.tilted)
    _names(drawing, grid, place, look)
    _scale(drawing, tiles, grid, place, look)
    if title:
        drawing.text(*place.at(0.12, -0.12), title, size=10, weight="bold", va="top")
    return drawing


def _axes(axes: Any, grid: Panels, row: int, column: int, look: Look, tilted: bool) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_facecolor(look.paper)
    axes.set(xlim=(0, len(grid.across)), ylim=(0, len(grid.layers)))
    axes.tick_params(length=0, pad=2, labelsize=6, labelcolor=look.dim)
    last, first = row == len(grid.row_names) - 1, column == 0
    for axis, names, shown in ((axes.xaxis, grid.across, last), (axes.yaxis, [str(n) for n in grid.layers], first)):
        every = max(1, -(-len(names) // 8))
        axis.set_ticks([i + 0.5 for i in range(0, len(names), every)], names[::every] if shown else None)
        if not shown:
            axis.set_ticklabels([])
    if tilted:
        axes.tick_params(axis="x", labelrotation=90, labelsize=5.5)
    if first and last:
        axes.set_ylabel("layer", size=6.5, color=look.dim, labelpad=2)
        if not tilted:
            axes.set_xlabel(grid.across_name, size=6.5, color=look.dim, labelpad=2)


def _names(drawing: Any, grid: Panels, place: _Place, look: Look) -> None:
    heads = grid.heads(place.panel_width / 0.067)
    for column, (name, head) in enumerate(zip(grid.column_names, heads, strict=True)):
        x, y, width, height = place.box(0, column)
        under = grid.under(name)
        top = (y + height) * place.height
        drawing.text(
            x + width / 2, (top + (0.20 if under else 0.07)) / place.height, head, size=7.5, weight="bold", ha="center"
        )
        if under:
            drawing.text(x + width / 2, (top + 0.07) / place.height, under, size=6, color=look.dim, ha="center")
    for row, name in enumerate(grid.row_names):
        _, y, _, height = place.box(row, 0)
        edge = (place.left - 0.40) / place.width
        middle = y + height / 2
        if name:
            drawing.text(edge, middle + 0.01 / place.height, name, size=7.5, weight="bold", ha="right", va="bottom")
            drawing.text(
                edge, middle - 0.03 / place.height, grid.under(name), size=6, color=look.dim, ha="right", va="top"
            )


def _scale(drawing: Any, tiles: Any, grid: Panels, place: _Place, look: Look) -> None:
    """The colour bar above the panels, what it measures, and the caption below them."""
    x, y, width, height = place.box(0, len(grid.column_names) - 1)
    right = (x + width) * place.width
    top = (y + height) * place.height + place.head
    length = min(2.2, right - 2.5)
    axes = drawing.add_axes(
        ((right - length) / place.width, (top + 0.19) / place.height, length / place.width, 0.085 / place.height)
    )
    bar = drawing.colorbar(tiles, cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.solids.set_edgecolor("face")
    ticks, labels = scale_ticks(grid)
    bar.set_ticks(ticks, labels=labels)
    axes.tick_params(length=2, width=0.5, pad=1.5, labelsize=6, labelcolor=look.dim, color=look.dim)
    words = f"{grid.title}: {grid.unit_text}"
    beside = ((right - length - 0.1) / place.width, (top + 0.2325) / place.height)
    drawing.text(*beside, words, size=7, ha="right", va="center")
    left = place.left if place.width - place.left > 4.4 else 0.46
    drawing.text(*place.at(left, 0.08), place.caption, size=6.2, color=look.dim, va="bottom", linespacing=1.4)


def _installed_fonts() -> set[str]:
    from matplotlib.font_manager import fontManager

    return {font.name for font in fontManager.ttflist}


def scores_static(scores: Any, path: str | Path, *, title: str = "", theme: Theme = "light", dpi: int = 220) -> Path:
    """The picture of ``scores_figure`` as a file."""
    frame, look = score_rows(scores), LOOKS[theme]
    tasks = list(dict.fromkeys(frame["task"]))
    runs = [run for run in dict.fromkeys(frame["run"]) if run != BASE]
    at = {task: len(tasks) - 1 - i for i, task in enumerate(tasks)}
    with canvas(theme) as plt:
        height = 0.9 + (0.25 if title else 0) + len(tasks) * max(0.34, 0.13 * len(runs))
        drawing, axes = plt.subplots(figsize=(PAGE, height), facecolor=look.paper, layout="constrained")
        axes.set_facecolor(look.paper)
        for i, (run, offset) in enumerate([*zip(runs, offsets(len(runs)), strict=True), (BASE, 0.0)]):
            part = frame[frame["run"] == run]
            colour = look.dim if run == BASE else SERIES[i % len(SERIES)]
            style = {"fmt": "D", "markerfacecolor": "none", "markersize": 4} if run == BASE else {"fmt": "o"}
            rows, errors = [at[task] + offset for task in part["task"]], 2 * part["stderr"].fillna(0)
            style = {"markersize": 4.5, "linewidth": 0, "elinewidth": 1, **style}
            if len(part):
                axes.errorbar(part["value"], rows, xerr=errors, color=colour, label=run, **style)
        chance = frame[frame["chance"] > 0].drop_duplicates("task")
        rows = [at[task] for task in chance["task"]]
        if rows:
            axes.plot(chance["chance"], rows, "|", color=look.dim, markersize=12, markeredgewidth=1, label="chance")
        axes.set_yticks(list(at.values()), list(at), size=7.5, color=look.ink)
        axes.set_xlabel("score; bars are two standard errors", size=7, color=look.dim)
        axes.tick_params(length=0, labelsize=7.5)
        axes.tick_params(axis="x", labelcolor=look.dim, labelsize=7)
        axes.grid(axis="x", color=look.line, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlim(left=0)
        axes.spines[:].set_visible(False)
        drawing.legend(loc="outside lower left", ncols=len(runs) + 2, frameon=False, fontsize=7.5)
        if title:
            drawing.suptitle(title, size=10, weight="bold", x=0.01, ha="left")
        return save(plt, drawing, path, dpi)
