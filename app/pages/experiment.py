"""The Experiment page: base, tasks, method and split, training; size live; YAML both ways; one run for each seed."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.pages import experiment_budget as budget
from app.pages import experiment_state as state
from app.pages import experiment_views as views
from app.ui import components as ui
from core.studio import Studio

STORED = "tessera-experiment"
HINT = (
    "<p><b>Start from a method, change a cell.</b> Choose words and click a cell, or drag over several: the method "
    "becomes your own split with its cells.</p>"
)


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill ``page``. Every handler takes all values, so that what is shown always belongs to one run."""
    desk = state.Desk(studio)
    ui.page_head(
        "Experiment", "Choose what the experts share, projection by projection, layer by layer; then train it."
    )
    stored = gr.BrowserState(None, storage_key=STORED, secret=STORED)
    address, token = gr.State(""), gr.State("")
    with gr.Column(elem_id="experiment-main"):
        parts, shown, demo = _parts(desk)
        budget.build(desk, list(parts.values()), address, token)
        view, acts = _view(**shown)
    inputs = [*parts.values(), address]
    outputs = [*parts.values(), *view.values(), stored, address]

    def opened(draft: Any, request: gr.Request) -> list[Any]:
        return [*desk.open(draft, dict(request.query_params)), state.new_token()]

    page.load(opened, stored, [*outputs, token], **ui.QUIET)
    live = [*view.values(), stored]

    latest = {"trigger_mode": "always_last", **ui.QUIET}
    gr.on([parts["training"].input, parts["task_form"].input], desk.show, inputs, live, **latest)
    handlers = {
        "base": desk.base_changed, "tasks": desk.tasks_changed, "method": desk.method_changed,
        "options": desk.options_changed, "grid": desk.painted,
    }  # fmt: skip
    for name, handler in handlers.items():
        parts[name].input(handler, inputs, [*parts.values(), *live], **latest)
    parts["grid"].select(desk.picked, inputs, [*parts.values(), *live], **latest)
    edits = [parts[name].input for name in ("training", "task_form", *handlers)] + [parts["blocks"].release]
    gr.on(edits, None, None, acts["done"], js="() => ''")
    parts["blocks"].release(desk.blocks_changed, inputs, [*parts.values(), *live], **latest)
    acts["apply"].click(desk.apply, [view["code"], address], outputs, **ui.QUIET)
    busy = {**ui.QUIET, "show_progress": "minimal"}
    acts["start"].click(desk.start, [*inputs, token], acts["done"], **busy)
    demo.click(desk.with_demo, inputs, outputs, trigger_mode="once", **ui.QUIET)

    def over() -> list[Any]:
        return [*desk.open(None, {}), state.new_token(), ""]

    acts["over"].click(over, None, [*outputs, token, acts["done"]], js=CLEAR, **ui.QUIET)


def _parts(desk: state.Desk) -> tuple[dict[str, Any], dict[str, gr.HTML], gr.Button]:
    """What a person fills in, in the order in which handlers take it; figure and marks; the demo's tasks."""
    first = desk.first()
    names = [(views.method_label(one), name) for name, one in desk.methods.items()]
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            base = ui.settings(first["base"], elem_id="base")
        with gr.Column(scale=2, min_width=380):
            tasks = gr.Dropdown([], value=[], multiselect=True, label="Tasks, trained together", elem_id="tasks")
            with gr.Row():
                demo = gr.Button("Use the demo tasks", size="md", scale=0, min_width=170, elem_id="demo-tasks")
            task_form = ui.settings(first["task_form"], elem_id="task-form")
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=300):
            method = gr.Dropdown(names, value=first["method"], label="Method", elem_id="method")
            card = ui.text(first["card"], "method-card", elem_id="method-card")
        with gr.Column(scale=2, min_width=380):
            options = ui.settings(first["options"], elem_id="options")
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=380):
            ui.text(HINT, elem_id="grid-hint")
            grid = ui.split_grid(first["grid"], elem_id="grid")
            marks = ui.cell_marks({}, grid="grid", elem_id="marks")
            count, most = first["blocks"]["value"], first["blocks"]["maximum"]
            blocks = gr.Slider(1, most, count, step=1, label="Equal blocks of layers", elem_id="blocks")
        with gr.Column(scale=1, min_width=380):
            figure = ui.figure(first["figure"], "panel", "diagram", elem_id="figure")
    training = ui.settings(first["training"], elem_id="training")
    parts = {
        "base": base, "tasks": tasks, "task_form": task_form, "method": method, "card": card, "options": options,
        "grid": grid, "blocks": blocks, "training": training,
    }  # fmt: skip
    return parts, {"figure": figure, "marks": marks}, demo


def _view(figure: gr.HTML, marks: gr.HTML) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is shown of the run (figure, whether it can start, YAML), and what acts on it."""
    with gr.Accordion("As YAML", open=False):
        code = gr.Code(
            language="yaml",
            label="Edit or paste a run, then apply",
            interactive=True,
            elem_id="yaml",
            lines=8,
            max_lines=28,
        )
        apply = gr.Button("Apply the YAML", size="md", scale=0, elem_id="apply")
    with gr.Row(elem_id="start-bar"):  # stays in sight at the foot of the window
        with gr.Column(scale=1, min_width=380):
            told = ui.text("", elem_id="told")
            done = ui.text("", elem_id="started")
        start = gr.Button("Start", variant="primary", size="md", scale=0, min_width=150, elem_id="start")
        over = gr.Button("Start over", size="md", scale=0, min_width=120, elem_id="over")
    view = {"figure": figure, "told": told, "code": code, "marks": marks}
    return view, {"start": start, "over": over, "done": done, "apply": apply}


CLEAR = "(...given) => { history.replaceState(null, '', location.pathname); return given; }"
