"""The first page: what the studio holds, what runs, and what to do next."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from core.errors import StudioError
from core.studio import Studio

RECENT = 12


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill ``page``: drawn when opened, redrawn only when something changed."""
    view = gr.HTML(elem_id="overview", padding=False, elem_classes=["tessera"])
    drawn = gr.State("")
    timer = gr.Timer(2.0)

    def draw(before: str) -> tuple[Any, Any]:
        text = render_safely(studio)
        return (gr.skip(), gr.skip()) if text == before else (text, text)

    quiet = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
    page.load(draw, drawn, [view, drawn], **quiet)
    timer.tick(draw, drawn, [view, drawn], trigger_mode="once", **quiet)


def render_safely(studio: Studio) -> str:
    try:
        return render(studio.overview(recent=RECENT))
    except StudioError as error:
        return f'<section class="overview"><h1>Tessera</h1><p>{_text(error.message)} {_text(error.hint)}</p></section>'


def render(state: Mapping[str, Any]) -> str:
    """The page as HTML; everything that comes from data is escaped."""
    parts = [
        "<h1>Tessera</h1>",
        '<p class="lead">Train mixtures of LoRA experts on several tasks, and see which expert speaks for which.</p>',
        _counts(state["counts"]),
        "<h2>What to do next</h2>",
        _steps(state["next"]),
    ]
    if state["runs"]:
        parts += ["<h2>Recent runs</h2>", _runs(state["runs"])]
    return f'<section class="overview">{"".join(parts)}</section>'


def _counts(counts: Mapping[str, int]) -> str:
    cells = "".join(f"<div><b>{number:,}</b><span>{_text(name)}</span></div>" for name, number in counts.items())
    return f'<div class="counts">{cells}</div>'


def _steps(steps: Sequence[Mapping[str, str]]) -> str:
    items = "".join(f"<li>{_text(step['text'])} <code>{_text(step['command'])}</code></li>" for step in steps)
    return f"<ol>{items}</ol>"


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    heads = "<th>run</th><th>name</th><th>method</th><th>state</th><th>progress</th><th class='number'>parameters</th>"
    return f'<div class="scroll"><table><tr>{heads}</tr>{"".join(map(_run, runs))}</table></div>'


def _run(run: Mapping[str, Any]) -> str:
    trainable = "" if run["trainable"] is None else f"{run['trainable']:,}"
    cells = [_text(run[name]) for name in ("id", "name", "method")]
    state = f'<td class="{_text(run["state"])}">{_text(run["state"])}</td>'
    plain = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr>{plain}{state}<td>{_text(run['progress'])}</td><td class='number'>{trainable}</td></tr>"


def _text(value: Any) -> str:
    return html.escape("" if value is None else str(value))
