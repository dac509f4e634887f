"""The Fusion page: choose finished runs, see where they conflict, fuse them, watch it learn, see what was lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr

from app.pages import fusion_conflicts, fusion_runs, fusion_shown
from app.pages import fusion_making as making
from app.pages.experiment_state import new_token
from app.pages.fusion_choice import ALL, FIGURES, OWNED, Choice, toggled
from app.pages.fusion_grid import Grid
from app.pages.fusion_look import look
from app.ui import components as ui
from core.studio import Studio

LEAD = "One model from several finished runs, without their training data; and what that costs each task."
SECONDS = 4.0
SPIN = '<div class="spin"><i></i>Reading the task vectors of {runs}. Seconds, the first time.</div>'
OPEN = "run => { if (run) window.location.assign('/fusion?run=' + encodeURIComponent(run)); }"
# What a change of the choice fills, in the order of the outputs.
MADE = ("offered", "runs", "methods", "method", "card", "form", "wish", "fuse", "address")
CONFLICTS = ("told", "figures", "projection", "heat", "square", "lengths")


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill ``page``: the choice on one side, a fused run on the other; the address says which is seen."""
    ui.page_head("Fusion", LEAD)
    c = SimpleNamespace(empty=ui.text("", visible=False, elem_id="fusion-empty"))
    with gr.Column(visible=False, elem_id="fusion-making") as c.making:
        _making(c)
    with gr.Column(visible=False, elem_id="fusion-watching") as c.watching:
        fusion_shown.build(c)
    with gr.Column(visible=False) as c.past:
        ui.text("<h2>Fused runs</h2>")
        c.fused = ui.drawn("pick", elem_id="fusion-past", elem_classes=["links-list"])
    c.address = ui.address(OWNED)
    with gr.Row(elem_classes="unseen"):
        c.runs, c.method, c.run = gr.Textbox(""), gr.Textbox(""), gr.Textbox("")
        c.search, c.done = gr.Textbox(""), gr.Textbox("")
        c.page, c.past_page = gr.Number(1, precision=0), gr.Number(1, precision=0)
    c.token, c.seen, c.found, c.past_seen = gr.State(""), gr.State({}), gr.State(None), gr.State(None)
    _wire(studio, page, c)


def _making(c: SimpleNamespace) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            ui.text("<h2>1. Runs</h2>")
            c.offered = ui.drawn("pick", elem_id="fusion-runs")
        with gr.Column(scale=8, min_width=520):
            ui.text("<h2>2. Where they conflict</h2>")
            c.told = ui.text(making.NO_PAIR, "panel", "findings", elem_id="fusion-told")
            with gr.Column(visible=False, elem_id="fusion-conflicts") as c.figures:
                with gr.Row(elem_classes="controls"):
                    kinds = [(title, name) for name, title in FIGURES.items()]
                    c.figure = gr.Radio(kinds, value="cosine", label="Figure", min_width=280)
                    c.projection = gr.Dropdown([("all projections", ALL)], value=ALL, label="Square of", min_width=180)
                with gr.Row(equal_height=False):
                    with gr.Column(scale=5, min_width=320):
                        c.heat = ui.heatmap(None, elem_id="fusion-heat", elem_classes=["small"])
                    with gr.Column(scale=5, min_width=320):
                        c.square = ui.matrix(None, elem_id="fusion-square")
                        c.lengths = ui.text("", "panel", "cellview", visible=False, elem_id="fusion-lengths")
    with gr.Row(equal_height=False, elem_id="fusion-how"):
        with gr.Column(scale=4, min_width=300):
            ui.text("<h2>3. Method</h2>")
            c.methods = ui.drawn("methods", elem_id="fusion-methods")
        with gr.Column(scale=8, min_width=520):
            c.card = ui.text("", "panel", "fusion-card", elem_id="fusion-card")
            c.form = ui.settings(None, elem_id="fusion-form")
    with gr.Row(elem_id="start-bar"):
        with gr.Column(scale=1, min_width=300):
            c.wish = ui.text("", elem_id="fusion-wish")
        c.fuse = gr.Button("Fuse", variant="primary", size="md", scale=0, min_width=150, elem_id="fusion-start")


def _wire(studio: Studio, page: gr.Blocks, c: SimpleNamespace) -> None:
    made = [getattr(c, name) for name in MADE]
    given = [c.runs, c.method, c.figure, c.projection, c.form]
    frame = [c.empty, c.making, c.watching, c.past, c.fused, c.figure, c.projection, c.run, c.token, c.seen]

    def opened(request: gr.Request) -> list[Any]:
        choice = Choice.of(dict(request.query_params))
        fresh, seen = look(studio, choice, "", {}) if choice.run else ({}, {})
        values = {"address": choice.query()} if choice.run else making.view(studio, choice)
        past = fusion_runs.fused(studio, 1, choice.run)
        at = gr.update(choices=fusion_conflicts.projections((), choice.at), value=choice.at)
        shown = [*making.frames(studio, choice), past, choice.figure, at, choice.run, new_token(), seen]
        return [*shown, *fusion_shown.filled(fresh), *_filled(values, MADE)]

    page.load(opened, None, [*frame, *fusion_shown.components(c), *made], **ui.QUIET)
    _wire_choice(studio, c, given, made)
    _wire_conflicts(studio, c, given)
    fusion_shown.wire(studio, c)
    busy = {**ui.QUIET, "show_progress": "minimal"}
    pressed = c.fuse.click(
        lambda *values: making.fused(studio, values[:-1], values[-1]),
        [*given, c.token],
        [c.wish, c.done],
        trigger_mode="once",
        **busy,
    )
    pressed.success(None, c.done, None, js=OPEN, **ui.QUIET)

    def turned(shown: str, event: gr.EventData) -> list[Any]:
        number = int((event._data or {}).get("page") or 1)
        return [fusion_runs.fused(studio, number, shown), number]

    c.fused.select(turned, c.run, [c.fused, c.past_page], **ui.QUIET)

    def past(shown: str, number: float, seen: Any) -> tuple[Any, Any]:
        """The list of fused runs where it is another than this tab shows; read once for all tabs."""
        at = fusion_runs.page_of(number)
        found = studio.watch.shared.of(
            ("fused", at, shown), studio.watch.changes.recent(), lambda: fusion_runs.fused(studio, at, shown)
        )
        return (gr.skip(), gr.skip()) if found == seen else (found, found)

    asked, drawn = [c.run, c.past_page, c.past_seen], [c.fused, c.past_seen]
    gr.Timer(SECONDS).tick(past, asked, drawn, trigger_mode="once", **ui.QUIET)


def _wire_choice(studio: Studio, c: SimpleNamespace, given: list[Any], made: list[Any]) -> None:
    # Event data are recognised by annotation among named parameters, so the inputs are spelt out.
    def picked(runs: Any, method: Any, figure: Any, at: Any, form: Any, search: str, number: float,
               event: gr.EventData) -> list[Any]:  # fmt: skip
        data = event._data or {}
        if "search" in data:
            search, number = str(data["search"])[:200], 1
        number = fusion_runs.page_of(data.get("page") or number)
        choice = making.chosen(studio, runs, method, figure, at, form)
        if data.get("run"):
            choice = replace(choice, runs=toggled(choice.runs, str(data["run"])[:80]))
            return [*_filled(making.view(studio, choice, search, number), MADE), search, number]
        found = {"offered": fusion_runs.offered(studio, choice.runs, search, number)}
        return [*_filled(found, MADE), search, number]

    c.offered.select(picked, [*given, c.search, c.page], [*made, c.search, c.page], **ui.QUIET)

    def method_picked(runs: Any, method: Any, figure: Any, at: Any, form: Any, event: gr.EventData) -> list[Any]:
        wanted = str((event._data or {}).get("method") or method)
        choice = making.chosen(studio, runs, method, figure, at, form)
        return _filled(making.other_method(studio, choice, wanted), MADE)

    c.methods.select(method_picked, given, made, **ui.QUIET)

    def edited(*values: Any) -> list[Any]:
        return _filled(making.settled(studio, *values), MADE)

    again = {"trigger_mode": "always_last", **ui.QUIET}
    gr.on([c.form.input, c.figure.input, c.projection.input], edited, given, made, **again)


def _wire_conflicts(studio: Studio, c: SimpleNamespace, given: list[Any]) -> None:
    outputs = [*(getattr(c, name) for name in CONFLICTS), c.found]
    asked = [c.runs, c.figure, c.projection, c.found]

    def compute(runs: Any, figure: Any, at: Any, found: Any) -> Iterator[list[Any]]:
        choice = Choice.of({"runs": runs, "figure": figure, "at": at})
        if len(choice.runs) > 1:
            spinner = SPIN.format(runs=ui.escape(", ".join(choice.runs)))
            yield [*_filled({"told": spinner}, CONFLICTS), None]
        yield redraw(runs, figure, at, None)

    def redraw(runs: Any, figure: Any, at: Any, found: Any) -> list[Any]:
        """From what was computed for these runs, where this tab has it."""
        shown, found = making.conflicts(studio, Choice.of({"runs": runs, "figure": figure, "at": at}), found)
        return [*_filled(shown, CONFLICTS), found]

    def place(at: Any, found: Any, event: gr.EventData) -> Any:
        """A click on a cell shows its projection in the square, a second one all of them again."""
        path = Grid.of(found.paths).path_at(event._data or {}) if found is not None else None
        return ALL if path is None or path == at else path

    again = {"trigger_mode": "always_last", **ui.QUIET}
    c.runs.change(compute, asked, outputs, **again)
    gr.on([c.figure.input, c.projection.input], redraw, asked, outputs, **again)
    clicked = c.heat.select(place, [c.projection, c.found], c.projection, **ui.QUIET)
    clicked.then(redraw, asked, outputs, **ui.QUIET).then(
        lambda *values: making.settled(studio, *values)["address"], given, c.address, **ui.QUIET
    )


def _filled(values: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
    """The outputs in order; what is not named stays."""
    return [values.get(name, gr.skip()) for name in names]
