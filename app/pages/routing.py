"""The Routing page: which expert speaks for which task, in which layer; and the router token by token."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import gradio as gr

from app.pages import routing_cell, routing_export, routing_tokens, routing_views
from app.pages.routing_choice import ALL, OWNED, ROLES, Cell, Choice, settle
from app.ui import components as ui
from core.errors import StudioError
from core.figures import DEFINITIONS
from core.studio import Studio

LISTED = 300
# What a view fills, in the order of the outputs; a run without routing fills ``told`` and hides the rest.
PARTS = ("told", "body", "run", "beside", "moment", "projection", "figure", "role", "left", "right", "right_column",
         "cell", "findings", "matrix", "over", "places", "address", "chosen")  # fmt: skip

# The first tab is selected when the page is mounted too, before its address was read: only a person's choice counts.
TAB = """() => { if (document.activeElement?.getAttribute('role') !== 'tab') return;
  const query = new URLSearchParams(location.search);
  query.delete('tab');
  if ('%s' !== 'tasks') query.set('tab', 'tokens');
  history.replaceState(null, '', `${location.pathname}?${query}`); }"""


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill ``page``."""
    ui.page_head("Routing", "Which expert speaks, for which task, in which layer.")
    parts: dict[str, Any] = {}
    parts["run"] = gr.Dropdown([], label="Run", elem_id="routing-run")
    with gr.Tabs(elem_id="routing-tabs") as tabs:
        with gr.Tab("Task by task", id="tasks") as tasks:
            parts["told"] = ui.text("", elem_id="routing-told")
            with gr.Column(visible=False, elem_id="routing-body") as body:
                _tasks(parts)
                exports = routing_export.build()
        with gr.Tab("Token by token", id="tokens") as tokens:
            inspector = routing_tokens.build()
    parts |= {"body": body, "address": ui.address(OWNED), "chosen": gr.State("")}
    _wire(studio, page, parts, tabs)
    for tab in (tasks, tokens):
        tab.select(None, None, None, js=TAB % tab.id)
    tokens.select(lambda run: warm(studio, run), parts["run"], None, **ui.QUIET)
    routing_export.wire(studio, exports, _controls(parts), choice_of)
    routing_tokens.wire(studio, page, inspector, parts["run"], lambda query: shown_run(studio, query.get("run", "")))


def _controls(parts: dict[str, Any]) -> list[Any]:
    return [parts[name] for name in ("run", "moment", "figure", "role", "projection", "beside", "chosen")]


def _tasks(parts: dict[str, Any]) -> None:
    """The tab of heatmaps."""
    with gr.Row(elem_classes="controls"):
        figures = [(figure.title, figure.name) for figure in DEFINITIONS.figures]
        parts["figure"] = gr.Radio(figures, value=figures[0][1], label="Figure", scale=7, elem_id="routing-figure")
        parts["beside"] = gr.Dropdown([], label="Compare with", scale=3, min_width=230, elem_id="routing-beside")
    with gr.Row(elem_classes="controls", equal_height=True):
        with gr.Column(scale=5, min_width=340):
            parts["moment"] = ui.moments(None, elem_id="routing-moment")
        roles = [(name, role) for role, name in ROLES.items()]
        parts["role"] = gr.Radio(
            roles, value="answer", label="Tokens of", scale=3, min_width=250, elem_id="routing-role"
        )
        parts["projection"] = gr.Dropdown([], label="Projection", scale=2, min_width=170, elem_id="routing-projection")
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=420):
            parts["left"] = ui.heatmap(None, elem_id="routing-heat")
            parts["findings"] = ui.text("", "panel", "findings", elem_id="routing-findings")
        with gr.Column(scale=6, min_width=420, visible=False) as parts["right_column"]:
            parts["right"] = ui.heatmap(None, elem_id="routing-heat-beside")
        with gr.Column(scale=2, min_width=250):
            parts["cell"] = ui.text(routing_cell.NO_CELL, "panel", "cellview", elem_id="routing-cell")
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            ui.text("<h2>How far apart tasks are routed</h2>")
            parts["matrix"] = ui.matrix(None, elem_id="routing-matrix")
            parts["over"] = ui.text("")
        with gr.Column(scale=4, min_width=300):
            ui.text("<h2>Where tasks part</h2>")
            parts["places"] = ui.heatmap(None, elem_id="routing-places", elem_classes=["small"])
    with gr.Accordion("What the figures are", open=False):
        ui.text(routing_cell.definitions(DEFINITIONS), "definitions")


def _wire(studio: Studio, page: gr.Blocks, parts: dict[str, Any], tabs: gr.Tabs) -> None:
    outputs = [parts[name] for name in PARTS]
    controls = _controls(parts)

    def changed(*given: Any) -> list[Any]:
        return _filled(view(studio, choice_of(*given)))

    def other_run(run: str, *given: Any) -> list[Any]:
        """The figure stays, the moment and the cell are the new run's own."""
        _, figure, role, projection, beside, _ = given
        keep = beside if beside and beside.startswith("run:") else ""
        return _filled(view(studio, Choice(str(run or ""), "", figure, role, projection, keep)))

    def cell_event(run: Any, moment: Any, figure: Any, role: Any, projection: Any, beside: Any, chosen: Any,
                   event: gr.EventData) -> list[Any]:  # fmt: skip
        choice = choice_of(run, moment, figure, role, projection, beside, chosen)
        picked = cell_clicked(studio, choice, event._data or {})
        return _filled(view(studio, replace(choice, cell=picked)) if picked else {})

    def place_event(run: Any, moment: Any, figure: Any, role: Any, projection: Any, beside: Any, chosen: Any,
                    event: gr.EventData) -> list[Any]:  # fmt: skip
        choice = choice_of(run, moment, figure, role, projection, beside, chosen)
        return _filled(view(studio, replace(choice, projection=place_clicked(studio, choice, event._data or {}))))

    def opened(request: gr.Request) -> list[Any]:
        query = dict(request.query_params)
        tab = query.get("tab") or ("tokens" if {"text", "turn"} & set(query) else "tasks")
        return [*_filled(view(studio, Choice.from_query(query))), gr.Tabs(selected=tab if tab == "tokens" else "tasks")]

    page.load(opened, None, [*outputs, tabs], **ui.QUIET)
    parts["run"].input(other_run, controls, outputs, **ui.QUIET)
    listened = [parts[name].input for name in ("moment", "figure", "role", "projection", "beside")]
    gr.on(listened, changed, controls, outputs, trigger_mode="always_last", **ui.QUIET)
    parts["left"].select(cell_event, controls, outputs, **ui.QUIET)
    parts["places"].select(place_event, controls, outputs, **ui.QUIET)
    gr.Timer(3.0).tick(
        lambda run, moment: _filled(newer(studio, run, moment)),
        [parts["run"], parts["moment"]],
        outputs,
        trigger_mode="once",
        **ui.QUIET,
    )


def _filled(values: dict[str, Any]) -> list[Any]:
    """The outputs in order; what a view does not name stays."""
    return [values.get(name, gr.skip()) for name in PARTS]


def choice_of(run: Any, moment: Any, figure: Any, role: Any, projection: Any, beside: Any, chosen: Any) -> Choice:
    """What the controls say; ``moment`` is the slider's value, which knows the names of its stops."""
    name = _name(_stops(moment), moment.get("at") if isinstance(moment, dict) else None)
    texts = [str(value or "") for value in (run, name, figure, role, projection, beside)]
    return Choice(*texts, cell=Cell.parse(str(chosen or "")))


def view(studio: Studio, asked: Choice) -> dict[str, Any]:
    """Everything that the first tab shows for a choice; what does not exist gives way to what does."""
    runs = studio.watch.menu(limit=LISTED)
    if not runs:
        text = ui.empty("No runs yet", "Train a mixture of experts, then see here who speaks for which task.",
                        "/experiment", "Set up a run")  # fmt: skip
        return {"told": text, "body": gr.update(visible=False), "address": ""}
    routed = studio.routed([run["id"] for run in runs])
    name = asked.run or _first(runs, routed)
    listed = _runs(runs, routed)
    try:
        run = studio.run(name)
        if run["id"] not in {value for _, value in listed}:
            listed.append((_run_text(run, bool(studio.moments(run["id"]))), run["id"]))
        chosen = {"run": gr.update(choices=listed, value=run["id"])}
        if not studio.moments(run["id"]):
            return _hidden(chosen, no_routing(run), Choice(run["id"]))
        return chosen | _shown(studio, settle(studio, replace(asked, run=run["id"])), runs, routed)
    except StudioError as error:
        return _hidden({"run": gr.update(choices=listed)}, ui.problem(error), Choice(name))


def shown_run(studio: Studio, asked: str) -> str:
    """The run of the page: the one asked for, else the newest with routing."""
    runs = [] if asked else studio.watch.menu(limit=LISTED)
    return asked or (_first(runs, studio.routed([run["id"] for run in runs])) if runs else "")


def _first(runs: list[dict[str, Any]], routed: set[str]) -> str:
    return next((run["id"] for run in runs if run["id"] in routed), runs[0]["id"])


def _hidden(values: dict[str, Any], text: str, choice: Choice) -> dict[str, Any]:
    nothing = {"moment": None, "beside": gr.update(choices=[("nothing", "")], value="")}
    return values | nothing | {"told": text, "body": gr.update(visible=False), "address": choice.query()}


def _shown(studio: Studio, choice: Choice, runs: list[dict[str, Any]], routed: set[str]) -> dict[str, Any]:
    atlas = studio.routing_atlas(choice.run)
    figure = DEFINITIONS.of(choice.figure)
    kind, _, name = choice.beside.partition(":")
    other = studio.routing_atlas(name) if kind == "run" else None
    beside = [("nothing", "")]
    beside += [
        (f"less {routing_views.moment_text(m)}", f"moment:{m.name}") for m in atlas.moments if m.name != choice.moment
    ]
    beside += [(f"less task {task}", f"task:{task}") for task in atlas.tasks if len(atlas.tasks) > 1]
    beside += [
        (f"beside {_run_text(r)}", f"run:{r['id']}") for r in runs if r["id"] in routed and r["id"] != choice.run
    ]
    if choice.beside not in {value for _, value in beside}:  # an older run, or this moment itself
        beside.append((name, choice.beside))
    if kind in ("moment", "task"):
        left = routing_views.difference(atlas, choice, figure)
    else:
        left = routing_views.heat(atlas, choice, figure, other=other)
    return {
        "told": "",
        "body": gr.update(visible=True),
        "beside": gr.update(choices=beside, value=choice.beside),
        "moment": routing_views.stops(atlas, choice.moment),
        "projection": gr.update(choices=routing_views.listed(atlas), value=choice.projection,
                                interactive=figure.per_expert),
        "figure": choice.figure,
        "role": choice.role,
        "left": left,
        "right_column": gr.update(visible=other is not None),
        "right": routing_views.beside(atlas, other, choice, figure) if other is not None else None,
        "cell": routing_cell.cell_view(atlas, choice, figure),
        "findings": routing_cell.findings(atlas, choice),
        "matrix": routing_views.similarity(atlas, choice),
        "over": routing_cell.over(atlas, choice),
        "places": routing_views.places(atlas, choice),
        "address": choice.query(),
        "chosen": str(choice.cell or ""),
    }  # fmt: skip


def warm(studio: Studio, run: Any) -> None:
    """Who opens the inspector will ask soon: the worker loads the run meanwhile."""
    with suppress(StudioError):  # the question that follows says it
        if run and studio.run(str(run))["state"] == "done":
            studio.chats.warm([str(run)])


def _stops(moment: Any) -> list[dict[str, Any]]:
    """The stops of the slider's value, as far as they are some."""
    stops = moment.get("stops") if isinstance(moment, dict) else None
    return [stop for stop in stops if isinstance(stop, dict)] if isinstance(stops, list) else []


def _name(stops: list[dict[str, Any]], at: Any) -> str:
    return str(stops[at].get("name", "")) if isinstance(at, int) and 0 <= at < len(stops) else ""


def newer(studio: Studio, run: Any, moment: Any) -> dict[str, Any]:
    """A new moment of a run that works: the slider gets it, and follows where it stood at the newest."""
    stops = _stops(moment)
    try:
        known = moments(studio, str(run)) if run else []
    except StudioError:
        return {}
    if len({one["moment"] for one in known}) == len(stops):
        return {}
    if not stops or moment.get("at") == len(stops) - 1:
        return view(studio, Choice(str(run)))
    atlas = studio.routing_atlas(str(run))
    return {"moment": routing_views.stops(atlas, _name(stops, moment.get("at")))}


def moments(studio: Studio, run: str) -> list[dict[str, Any]]:
    """Those of a run, read once for all tabs until something is written."""
    return studio.watch.shared.of(("moments", run), studio.watch.changes.recent(), lambda: studio.moments(run))


def cell_clicked(studio: Studio, choice: Choice, place: dict[str, Any]) -> Cell | None:
    """The name of the cell that was clicked; None for one that does not exist."""
    try:
        choice = settle(studio, choice)
        figure = DEFINITIONS.of(choice.figure)
        grid = routing_views.grid_of(studio.routing_atlas(choice.run), choice, figure)
    except StudioError:
        return None
    return routing_views.cell_at(grid, figure, place)


def place_clicked(studio: Studio, choice: Choice, place: dict[str, Any]) -> str:
    """A click on where tasks part chooses that projection, a second one all of them again."""
    try:
        found = studio.routing_atlas(choice.run).projections[int(place["expert"])]
    except (StudioError, KeyError, TypeError, ValueError, IndexError):
        return choice.projection
    return ALL if found == choice.projection else found


def no_routing(run: dict[str, Any]) -> str:
    """Why a run has no routing, and what to look at instead."""
    name = ui.escape(run["id"])
    if run["unrouted"]:
        why = f"{run['unrouted']} Look at its scores instead, or talk to it beside a mixture."
        link = f'<a class="button" href="/compare?runs={name}">Compare scores</a> '
        link += f'<a href="/chat?runs={name}">Talk to it</a>'
    elif run["state"] == "done":
        why = "None was recorded while it trained. If it has gates, the inspector shows them token by token."
        link = f'<a class="button" href="/routing?run={name}&amp;tab=tokens">Open the inspector</a>'
    elif run["state"] in ("queued", "starting", "running", "cancelling"):
        why = (
            "Routing is recorded before the first step and at a few moments of the training. It appears here by itself."
        )
        link = f'<a class="button" href="/runs?run={name}">Watch the run</a>'
    else:
        why = "It ended before its routing was recorded."
        link = f'<a class="button" href="/runs?run={name}">See why</a>'
    title = f"{name} ({ui.escape(run['method'])}) has no routing"
    return f'<div class="empty"><h3>{title}</h3><p>{ui.escape(why)}</p><p>{link}</p></div>'


def _runs(runs: list[dict[str, Any]], routed: set[str]) -> list[tuple[str, str]]:
    """Those with routing first, each group newest first."""
    ordered = sorted(runs, key=lambda run: run["id"] not in routed)
    return [(_run_text(run, run["id"] in routed), run["id"]) for run in ordered]


def _run_text(run: dict[str, Any], routed: bool = True) -> str:
    state = "" if run["state"] == "done" else f" · {run['state']}"
    return f"{run['id']} · {run['name'] or run['method']}{state}{'' if routed else ' · no routing'}"
