"""The custom components: a ``gr.HTML`` with data as its value and one script that draws it.

The template is constant and the scripts write names and tokens as text, so data never becomes markup.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import gradio as gr

from app.ui.theme import asset

MOUNT = '<div class="mount"></div>'

# Listeners that redraw: no spinner, no queue of their own, not offered as an API.
QUIET: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}


def drawn(script: str, value: Any = None, **kwargs: Any) -> gr.HTML:
    """A component drawn by ``assets/ui/<script>.js``; further keywords become props that the script reads."""
    classes = ["tessera", script, *kwargs.pop("elem_classes", [])]
    return gr.HTML(
        value,
        html_template=MOUNT,
        js_on_load=asset(f"{script}.js"),
        apply_default_css=False,
        elem_classes=classes,
        **kwargs,
    )


def heatmap(value: dict[str, Any] | None = None, **kwargs: Any) -> gr.HTML:
    """Routing of layer x expert in panels, clickable and walkable with the arrow keys, with its numbers as a table.

    ``value``: ``rows`` and ``cols`` (panel names; one column: the rows flow), ``layers`` (numbers, bottom first),
    ``experts`` (count) or ``across`` and ``acrossName`` (names of the cells of a line and what they are),
    ``values[row][col][layer][expert]`` (None: the expert does not exist there; False: nothing was counted),
    ``counts[row][col]`` (decisions), ``low`` and ``top`` (ends of the scale) or ``mid`` and ``top`` (middle of a scale
    with two ends, and how far they are; ``log``: as a factor), ``even`` (a value to mark), ``figure``, ``short`` (its
    name in hovers),
    ``unit``, ``caption``, ``picked`` ("row,col,layer,expert") and ``compact`` (no titles, no legend, small cells).
    ``select`` carries ``row, col, layer, expert, value`` as indices.
    """
    return drawn("heatmap", value, **kwargs)


def moments(value: dict[str, Any] | None = None, **kwargs: Any) -> gr.HTML:
    """A slider over named stops that can be played: ``stops: [{short, text}]``, ``at`` (index).

    ``input`` carries ``at``.
    """
    return drawn("moments", value, **kwargs)


def matrix(value: dict[str, Any] | None = None, **kwargs: Any) -> gr.HTML:
    """A small square of numbers: ``names``, ``values[i][j]``, ``low``, ``top``, ``figure``."""
    return drawn("matrix", value, **kwargs)


def token_strip(value: dict[str, Any] | None = None, **kwargs: Any) -> gr.HTML:
    """Tokens tinted by their strongest expert: ``tokens: [{t, g: [gate per expert], role}]``, ``note``.

    ``select`` carries ``index``.
    """
    return drawn("tokens", value, **kwargs)


def split_grid(value: dict[str, Any] | None = None, **kwargs: Any) -> gr.HTML:
    """The words of every projection (rows) in every block of layers (cols), painted with mouse or keys.

    ``value``: ``rows``, ``cols``, ``words: {down: [...], up: [...]}``, ``about`` (summaries of words by part and name),
    ``cells: {"row|col": {down, up, own} | {frozen} | None}`` (None: not adapted; ``own``: settings of this cell alone)
    and ``picked`` (the cell whose settings are shown). ``input`` fires after each edit with the whole new value,
    ``select`` when a cell was picked.
    """
    return drawn("split", value, **kwargs)


def cell_marks(value: dict[str, Any] | None = None, *, grid: str, **kwargs: Any) -> gr.HTML:
    """What is wrong with cells of the ``split_grid`` with the id ``grid``: marked there, and said here.

    ``value``: ``cells`` (sentence by "row|col") and ``said: [{message, hint}]``; empty: nothing is wrong.
    """
    return drawn("marks", value, grid=grid, **kwargs)


def live_curve(value: dict[str, Any] | None = None, **kwargs: Any) -> gr.HTML:
    """Curves that grow: ``series: [{name, points: [[x, y], ...]}]``, ``xmax``, ``x`` and ``y`` (axis names with units).

    A series may name its ``colour`` (0 to 7); else they take turns.

    A tick moves paths; the frame is drawn again only when the axes change.
    """
    return drawn("curve", value, **kwargs)


def settings(value: dict[str, Any] | None = None, **kwargs: Any) -> gr.HTML:
    """A form from descriptions of settings; ``app.forms`` makes its value and reads it back.

    ``value``: ``groups: [{title, note, fold, open, fields: [{name, label, type, help, choices, optional, ...}]}]``,
    ``values`` by name, ``base`` (values that changes are marked against) and ``problems`` (sentences by name).
    ``input`` fires after each edit with the whole new value.
    """
    return drawn("settings", value, **kwargs)


def address(owns: Sequence[str]) -> gr.HTML:
    """Nothing to see: a query string as the value is put into the address bar. ``owns``: the names that it may drop."""
    return drawn("address", None, owns=" ".join(owns))


def figure(value: dict[str, Any] | None = None, *classes: str, **kwargs: Any) -> gr.HTML:
    """HTML with one SVG that Python made (``html``; escaped there) and buttons that save it as ``name``."""
    return drawn("figure", value, elem_classes=list(classes), **kwargs)


def page_head(title: str, lead: str) -> gr.HTML:
    """The heading of a page, with the switch between light and dark."""
    return gr.HTML(
        f"<header><div><h1>{escape(title)}</h1><p>{escape(lead)}</p></div>"
        '<button class="mode" title="Light or dark" aria-label="Switch between light and dark">◐</button></header>',
        apply_default_css=False,
        elem_classes=["tessera", "page-head"],
        js_on_load="""element.querySelector('.mode').addEventListener('click', () => {
            const dark = document.body.classList.toggle('dark');
            localStorage.setItem('tessera-mode', dark ? 'dark' : 'light'); });""",
    )


def text(value: str = "", *classes: str, **kwargs: Any) -> gr.HTML:
    """HTML that Python made; whatever comes from data was escaped."""
    return gr.HTML(value, apply_default_css=False, elem_classes=["tessera", *classes], **kwargs)


def escape(value: Any) -> str:
    return html.escape(str(value), quote=True)


def badge(name: str | None) -> str:
    """What stands beside a method whose paper had to be interpreted; nothing beside others."""
    return f' <span class="badge">{escape(name)}</span>' if name else ""


def empty(title: str, next_step: str, link: str = "", label: str = "") -> str:
    """What a page shows while it has nothing to show: why, and what to do next."""
    button = f'<p><a class="button" href="{escape(link)}">{escape(label)}</a></p>' if link else ""
    return f'<div class="empty"><h3>{escape(title)}</h3><p>{escape(next_step)}</p>{button}</div>'


def problem(error: Exception) -> str:
    """A ``StudioError`` on a page: what is wrong, and what to do."""
    message, hint = getattr(error, "message", str(error)), getattr(error, "hint", "")
    return f'<div class="problem" role="alert"><b>{escape(message)}</b> <span>{escape(hint)}</span></div>'


def number(value: float | int | None, digits: int = 3) -> str:
    """A number as tables show it; a dash where there is none."""
    if value is None or value != value:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def short(count: float | None) -> str:
    """13,893,632 as 13.9 M."""
    if count is None:
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            return f"{count / size:.1f} {letter}"
    return f"{count:.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as 42 s, 3:05 min or 2:10 h."""
    if seconds is None or seconds != seconds or seconds < 0:
        return "–"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d} h"
