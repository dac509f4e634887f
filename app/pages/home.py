"""The Home page: a newcomer's first step, what runs and what it found, the machine and its disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from contextvars import copy_context
from typing import Any

import gradio as gr

from app.pages import home_views as views
from app.pages.routing_choice import Choice, settle
from app.pages.routing_views import heat
from app.ui import components as ui
from core.access import LOCAL, acting, need
from core.errors import StudioError
from core.figures import DEFINITIONS
from core.studio import Studio

RECENT = 8
SECONDS = 2.0
TEASER_TASKS = 6
LEAVE = '<form method="post" action="/logout"><button class="leave">Sign out</button></form>'
# What a view fills, in the order of the outputs.
PARTS = ("body", "told", "start", "demo", "counts", "runs", "teaser_column", "teaser_text", "teaser",
         "machine", "awake", "rest", "disk")  # fmt: skip

SWITCHES = ("body", "start", "awake", "rest")
OPTIONAL = ("told", "demo", "counts", "runs")


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill ``page``: drawn when opened, redrawn part by part where something changed."""
    ui.page_head("Tessera", "Train mixtures of LoRA experts on several tasks, and see which expert speaks for which.")
    parts: dict[str, Any] = {}
    # Shown with all that it holds at once, so that nothing moves while it is filled.
    with gr.Column(visible=False, elem_id="home-body") as parts["body"]:
        run = _work(parts)
        cleaning = _machine(studio, parts)
        leave = ui.text("", visible=False, elem_id="home-leave")
    _wire(studio, page, parts, run, leave)
    cleaning()


def _work(parts: dict[str, Any]) -> gr.Button:
    """The demo, what the studio holds, its newest runs and one picture; returns the button of the demo."""
    parts["told"] = ui.text("", visible=False, elem_id="home-told")
    with gr.Column(visible=False, elem_id="home-start", elem_classes="start") as parts["start"]:
        ui.text(views.welcome())
        run = gr.Button("Run the demo", variant="primary", scale=0, min_width=180, elem_id="run-demo")
        ui.text(views.other_ways())
    parts["demo"] = ui.text("", visible=False, elem_id="home-demo")
    parts["counts"] = ui.text("", visible=False, elem_id="home-counts")
    with gr.Row(equal_height=False):
        with gr.Column(scale=7, min_width=460):
            parts["runs"] = ui.text("", "home-runs", visible=False, elem_id="home-runs")
        with gr.Column(scale=5, min_width=380, visible=False) as parts["teaser_column"]:
            parts["teaser_text"] = ui.text("")
            parts["teaser"] = ui.heatmap(None, elem_id="home-teaser", elem_classes=["teaser"])
    return run


def _machine(studio: Studio, parts: dict[str, Any]) -> Callable[[], None]:
    """The machine, its disk and what they can be told to do; returns what wires the cleaning up."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=380):
            parts["machine"] = ui.text("", "panel", "machine", elem_id="home-machine")
            with gr.Row():
                parts["awake"] = gr.Button("Start the dispatcher", size="md", scale=0, min_width=180, visible=False)
                parts["rest"] = gr.Button("Stop the dispatcher", size="md", scale=0, min_width=180, visible=False)
        with gr.Column(scale=1, min_width=380):
            parts["disk"] = ui.text("", "panel", "disk", elem_id="home-disk")
            cleaning = _cleaning(studio, parts["disk"])
    return cleaning


def _cleaning(studio: Studio, disk: gr.HTML) -> Callable[[], None]:
    """What to delete, and a button that asks first; returns what wires them."""
    with gr.Row(elem_classes="controls"):
        kinds = gr.CheckboxGroup(
            list(views.CLEANABLE.items()), show_label=False, container=False, elem_id="clean-kinds", scale=4
        )
        ask = gr.Button("Clean up…", size="md", scale=0, min_width=120, elem_id="clean")
        sure = gr.Button("Delete it for good", variant="stop", size="md", scale=0, visible=False, elem_id="clean-sure")
        keep = gr.Button("Keep it", size="md", scale=0, min_width=100, visible=False)
    told = ui.text("", elem_id="clean-told")
    asking = [ask, sure, keep]

    def wire() -> None:
        ask.click(lambda chosen: asked(bool(chosen)), kinds, asking, **ui.QUIET)
        keep.click(lambda: asked(False), None, asking, **ui.QUIET)
        sure.click(
            lambda chosen: [*clean(studio, chosen), *asked(False)],
            kinds,
            [told, disk, kinds, *asking],
            trigger_mode="once",
            **ui.QUIET,
        )

    return wire


def asked(yes: bool) -> list[Any]:
    return [gr.update(visible=not yes), gr.update(visible=yes), gr.update(visible=yes)]


def clean(studio: Studio, kinds: Any) -> list[Any]:
    """[message, disk, kinds] after cleaning up, or why it was refused."""
    try:
        freed = studio.machine.clean([str(kind) for kind in kinds or []])
        return [views.freed(freed), views.disk(studio.machine.counted()), []]
    except StudioError as error:
        return [ui.problem(error), gr.skip(), gr.skip()]


def _wire(studio: Studio, page: gr.Blocks, parts: dict[str, Any], run: gr.Button, leave: gr.HTML) -> None:
    outputs = [parts[name] for name in PARTS]
    seen, starting = gr.State({}), Starting(studio)

    def draw(before: dict[str, Any]) -> list[Any]:
        return changed(view(studio, before.get("teaser"), starting), before)

    def tick(before: dict[str, Any]) -> list[Any]:
        moment = int(time.monotonic() / SECONDS)
        return changed(view(studio, before.get("teaser"), starting, moment), before)

    def opened() -> list[Any]:
        signed_in = acting() != LOCAL
        return [
            *changed(view(studio, None, starting), {}),
            gr.update(value=LEAVE if signed_in else "", visible=signed_in),
        ]

    def press(before: dict[str, Any]) -> list[Any]:
        starting.press()
        return draw(before)

    def dispatch(action: str) -> Any:
        def handler(before: dict[str, Any]) -> list[Any]:
            problem = turn(studio, action)
            shown = view(studio, before.get("teaser"), starting)
            return changed(shown | ({"told": problem} if problem else {}), before)

        return handler

    page.load(opened, None, [*outputs, seen, leave], **ui.QUIET)
    gr.Timer(SECONDS).tick(tick, seen, [*outputs, seen], trigger_mode="once", **ui.QUIET)
    run.click(press, seen, [*outputs, seen], trigger_mode="once", **ui.QUIET)
    parts["awake"].click(dispatch("start"), seen, [*outputs, seen], trigger_mode="once", **ui.QUIET)
    parts["rest"].click(dispatch("stop"), seen, [*outputs, seen], trigger_mode="once", **ui.QUIET)


class Starting:
    """Queues the demo in a thread: storing its data and counting parameters take seconds that no page waits for."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.problem = ""

    @property
    def working(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def press(self) -> None:
        """Start once, however often this is called meanwhile; the runs belong to whoever acts here."""
        need("researcher")
        with self._lock:
            if not self.working:
                self.problem = ""
                run = copy_context().run
                self._thread = threading.Thread(target=run, args=(self._queue,), name="start-demo", daemon=True)
                self._thread.start()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _queue(self) -> None:
        try:
            self._studio.demo(follow=False)
        except StudioError as error:
            self.problem = ui.problem(error)


def turn(studio: Studio, action: str) -> str:
    """Start or stop the dispatcher; what went wrong, if something did."""
    try:
        studio.dispatcher("start" if action == "start" else "stop")
    except StudioError as error:
        return ui.problem(error)
    return ""


def view(
    studio: Studio, teaser: str | None, starting: Starting | None = None, moment: Hashable = None
) -> dict[str, Any]:
    """Part -> what it shows. ``teaser`` is the run whose routing is drawn already: its picture is not made again.

    Tabs that ask at the same ``moment`` share what is the same for all; None: as it is now.
    """
    try:
        shared = studio.watch.shared
        found = glance(studio) if moment is None else shared.of("home", moment, lambda: glance(studio))
    except StudioError as error:
        return {"body": True, "told": ui.problem(error)}
    preparing = starting is not None and starting.working
    shown = {
        "body": True,
        "told": starting.problem if starting else "",
        "start": found["start"] and not preparing,
        "demo": views.preparing(found["demo"]) if preparing else views.demo(found["demo"]),
        **{name: found[name] for name in ("counts", "runs", "machine", "awake", "rest", "disk", "teaser")},
    }
    if found["teaser"] != teaser:
        shown |= picture(studio, found["teaser"])
    return shown


def glance(studio: Studio) -> dict[str, Any]:
    """What everybody sees."""
    found, machine = studio.overview(recent=RECENT), studio.machine.state()
    runs, demo, counts = found["runs"], found["demo"], found["counts"]
    missing = not demo or any(run["state"] in views.BROKEN for run in demo)
    return {
        "start": missing and not (runs and not demo and counts["runs"] > RECENT),
        "demo": demo,
        "counts": views.counts(counts) if runs or counts["data sets"] else "",
        "runs": views.recent(runs) if runs else "",
        "machine": views.machine(machine),
        "awake": not machine["dispatcher"]["alive"] and bool(machine["waiting"]),
        "rest": machine["dispatcher"]["alive"],
        "disk": views.disk(studio.machine.counted()),
        "teaser": found["routed"],
    }


def picture(studio: Studio, run: str | None) -> dict[str, Any]:
    """The routing of one projection of a run, small; a run that cannot be read has none."""
    if run is None:
        return {"value": None, "teaser_text": ""}
    try:
        chosen = settle(studio, Choice(run=run))
        atlas = studio.routing_atlas(run)
        chosen = Choice(run=run, moment=chosen.moment, projection=atlas.projections[0])
        value = heat(atlas, chosen, DEFINITIONS.figures[0])
    except StudioError:
        return {"value": None, "teaser_text": ""}
    value |= {"rows": value["rows"][:TEASER_TASKS], "values": value["values"][:TEASER_TASKS]}
    link = ui.escape(views.address("/routing", run=run))
    text = f'<h2><a href="{link}">Routing of {ui.escape(run)}</a></h2>'
    return {"value": value, "teaser_text": f"{text}<p>Which expert speaks, in {ui.escape(chosen.projection)}.</p>"}


def changed(shown: dict[str, Any], before: dict[str, Any]) -> list[Any]:
    """The outputs, with a skip for every part that shows the same as before; and what is shown now."""
    plain = {name: value for name, value in shown.items() if name != "value"}
    outputs = [_output(name, shown, before) for name in PARTS]
    return [*outputs, gr.skip() if plain.items() <= before.items() else before | plain]


def _output(name: str, shown: dict[str, Any], before: dict[str, Any]) -> Any:
    if name == "teaser":
        return shown["value"] if "value" in shown else gr.skip()
    if name == "teaser_column":
        return gr.update(visible=shown["value"] is not None) if "value" in shown else gr.skip()
    if name not in shown or shown[name] == before.get(name):
        return gr.skip()
    if name in SWITCHES:
        return gr.update(visible=shown[name])
    return gr.update(value=shown[name], visible=bool(shown[name])) if name in OPTIONAL else shown[name]
