"""The inspector of the Routing page: a text, token by token, in the colours of its experts."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from threading import Lock
from typing import Any

import gradio as gr

from app.pages import routing_token_views as views
from app.pages.routing_asked import ANSWERS, NAMES, Asked, asked_of, from_row, kept, number
from app.pages.routing_choice import NUMBER
from app.ui import components as ui
from core.errors import StudioError
from core.studio import Studio

ROWS = 20
KEPT = 32
GENERATED = 48
WAIT = (
    '<p class="waiting-text">Reading the text. The first time, the inference worker loads the base model: '
    "a few seconds.</p>"
)
HINT = "<p>Pick a row or type a text: every token is shown in the colour of the expert that speaks loudest for it.</p>"


class Traces:
    """The newest traces of this process; one that is gone is made again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._lock = Lock()

    def get(self, studio: Studio, run: str, asked: Asked) -> Any:
        key = (str(studio.home.root), run, *(getattr(asked, n) for n in NAMES if n not in ("row", "at", "on", "token")))
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = _trace(studio, run, asked)
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found


TRACES = Traces()


def _trace(studio: Studio, run: str, asked: Asked) -> Any:
    if asked.turn.isdecimal():
        return studio.chats.trace_turn(int(asked.turn), task=asked.acts or None)
    return studio.trace(
        run,
        asked.text,
        answer=asked.said if asked.answer == "true" and asked.said else None,
        generate=GENERATED if asked.answer == "made" else 0,
        task=asked.acts or None,
        system=asked.system,
        raw=bool(asked.raw),
    )


def build() -> dict[str, Any]:
    """The tab; ``wire`` gives it life once the choice of the run is there."""
    parts: dict[str, Any] = {}
    with gr.Row(elem_classes="controls"):
        parts["task"] = gr.Dropdown([], label="Task", scale=2, min_width=160, elem_id="inspect-task")
        parts["row"] = gr.Dropdown([], label="A test row of the task", scale=6, min_width=300, elem_id="inspect-row")
        parts["more"] = gr.Button("Other rows", size="md", scale=0, min_width=110)
    with gr.Row(equal_height=True):
        parts["text"] = gr.Textbox(
            label="Text",
            lines=3,
            max_lines=8,
            scale=6,
            max_length=20_000,
            placeholder="Type a prompt, or pick a row above.",
            elem_id="inspect-text",
        )
        with gr.Column(scale=2, min_width=250):
            answers = [(text, name) for name, text in ANSWERS.items()]
            parts["answer"] = gr.Radio(answers, value="true", label="Followed by", elem_id="inspect-answer")
            parts["go"] = gr.Button("Inspect", variant="primary", size="md", elem_id="inspect")
    parts["told"] = ui.text(HINT, elem_id="inspect-told")
    with gr.Column(visible=False) as parts["found"]:
        with gr.Row(elem_classes="controls"):
            parts["layer"] = gr.Slider(0, 1, value=0, step=1, label="Layer", scale=3, elem_id="inspect-layer")
            parts["projection"] = gr.Dropdown(
                [], label="Projection", scale=2, min_width=200, elem_id="inspect-projection"
            )
        parts["strip"] = ui.token_strip(None, elem_id="inspect-strip")
        ui.text(
            "<h2>The route through the layers</h2><p>Each cell in the colour of its strongest expert. Experts are "
            "numbered from 0 within a layer: expert 3 of one layer has nothing to do with expert 3 of another.</p>"
        )
        parts["ribbon"] = ui.drawn("ribbon", None, elem_id="inspect-ribbon")
        parts["chosen"] = ui.text("<h2>One token</h2>")
        parts["route"] = ui.heatmap(None, elem_id="inspect-route", elem_classes=["small"])
    parts["address"] = ui.address(NAMES)
    parts["asked"] = gr.State("")
    return parts


FILLED = ("told", "found", "layer", "projection", "strip", "ribbon", "chosen", "route", "address", "asked")
CHOICES = ("task", "row", "text", "answer")
SLOW = {**ui.QUIET, "trigger_mode": "once"}


def wire(studio: Studio, page: gr.Blocks, parts: dict[str, Any], run: gr.Dropdown, default: Any) -> None:
    """``default(query)``: the run that the page shows where the address names none."""
    everything = [parts[name] for name in (*CHOICES, *FILLED)]

    def opened(request: gr.Request) -> list[Any]:
        query = dict(request.query_params)
        return _values(start(studio, default(query), Asked.from_query(query)), (*CHOICES, *FILLED))

    def other_run(name: Any) -> list[Any]:
        return _values(start(studio, str(name or ""), Asked()), (*CHOICES, *FILLED))

    page.load(opened, None, everything, **ui.QUIET)
    run.input(other_run, run, everything, **ui.QUIET)
    _wire_rows(studio, parts, run)
    _wire_text(studio, parts, run)
    _wire_picture(studio, parts, run)


def _wire_rows(studio: Studio, parts: dict[str, Any], run: gr.Dropdown) -> None:
    """A task lists its test rows; a row that is picked is shown with its answer."""
    chosen = [run, parts["task"], parts["row"]]

    def rows_of(name: Any, task: Any) -> Any:
        return rows(studio, str(name or ""), str(task or ""), 0)

    def other_rows(name: Any, task: Any, row: Any) -> Any:
        return rows(studio, str(name or ""), str(task or ""), (number(row) // ROWS + 1) * ROWS)

    def shown(name: Any, task: Any, row: Any) -> tuple[Any, Any]:
        found = from_row(studio, str(name), str(task or ""), number(row))
        return (ui.problem(found), gr.skip()) if isinstance(found, StudioError) else (WAIT, found.text)

    def picked(name: Any, task: Any, row: Any) -> list[Any]:
        found = from_row(studio, str(name), str(task or ""), number(row))
        if isinstance(found, StudioError):
            return _values({"told": ui.problem(found)}, (*CHOICES, *FILLED))
        return _values({"answer": "true"} | view(studio, str(name), found), (*CHOICES, *FILLED))

    parts["task"].input(rows_of, [run, parts["task"]], parts["row"], **ui.QUIET)
    parts["more"].click(other_rows, chosen, parts["row"], **ui.QUIET)
    # listeners of one trigger run one after another: the first says what the second waits for
    parts["row"].input(shown, chosen, [parts["told"], parts["text"]], **ui.QUIET)
    parts["row"].input(picked, chosen, [parts[name] for name in (*CHOICES, *FILLED)], **SLOW)


def _wire_text(studio: Studio, parts: dict[str, Any], run: gr.Dropdown) -> None:
    """The text of the form is looked into at the press of the button."""
    typed = [run, parts["task"], parts["row"], parts["text"], parts["answer"], parts["asked"]]

    def inspect(name: Any, task: Any, row: Any, text: Any, answer: Any, before: Any) -> list[Any]:
        asked = asked_of(studio, str(name), str(task or ""), number(row), str(text or ""), str(answer), str(before))
        return _values(view(studio, str(name), asked), FILLED)

    pressed = [parts["go"].click, parts["text"].submit]
    gr.on(pressed, lambda: WAIT, None, parts["told"], **ui.QUIET)
    gr.on(pressed, inspect, typed, [parts[name] for name in FILLED], **SLOW)


def _wire_picture(studio: Studio, parts: dict[str, Any], run: gr.Dropdown) -> None:
    """Another layer, projection or token of the text that is shown."""
    drawn = [run, parts["asked"], parts["layer"], parts["projection"]]
    filled = [parts[name] for name in FILLED]

    def redrawn(name: Any, asked: Any, **changes: str) -> list[Any]:
        return _values(view(studio, str(name), replace(kept(asked), **changes), drawing=True), FILLED)

    def moved(name: Any, asked: Any, layer: Any, projection: Any) -> list[Any]:
        return redrawn(name, asked, at=str(layer), on=str(projection or ""))

    def token(name: Any, asked: Any, layer: Any, projection: Any, event: gr.EventData) -> list[Any]:
        index = (event._data or {}).get("index")
        return redrawn(name, asked, at=str(layer), on=str(projection or ""), token=str(index))

    def place(name: Any, asked: Any, layer: Any, projection: Any, event: gr.EventData) -> list[Any]:
        data = event._data or {}
        return redrawn(name, asked, at=f"#{data.get('layer')}", on=str(projection or ""), token=str(data.get("token")))

    moves = [parts["layer"].input, parts["projection"].input]
    gr.on(moves, moved, drawn, filled, **{**ui.QUIET, "trigger_mode": "always_last"})
    parts["strip"].select(token, drawn, filled, **ui.QUIET)
    parts["ribbon"].select(place, drawn, filled, **ui.QUIET)


def _values(values: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
    return [values.get(name, gr.skip()) for name in names]


def start(studio: Studio, run: str, asked: Asked) -> dict[str, Any]:
    """The tab for a run: its tasks and rows, and what the address asks for."""
    nothing = {"told": HINT, "found": gr.update(visible=False), "asked": "", "address": ""}
    try:
        tasks = task_names(studio, run)
        if asked.turn.isdecimal():
            turn = studio.chats.turn(int(asked.turn))
            asked = replace(asked, text=turn["question"], said=turn["answer"], answer="true")
        task = asked.acts if asked.acts in tasks else (tasks[0] if tasks else "")
        row = number(asked.row)
        found = {
            "task": gr.update(choices=tasks, value=task or None),
            "row": rows(studio, run, task, row - row % ROWS, row if asked.row else None),
        }
        if asked.text:  # what was typed meanwhile stays
            found |= {"text": asked.text, "answer": asked.answer if asked.answer in ANSWERS else "none"}
    except StudioError as error:
        return nothing | {"told": ui.problem(error)}
    return found | (view(studio, run, asked) if asked.text else nothing)


def task_names(studio: Studio, run: str) -> list[str]:
    return list(studio.run(run)["tasks"]) if run else []


def rows(studio: Studio, run: str, task: str, first: int, chosen: int | None = None) -> Any:
    """A page of the task's test rows for the choice; past the last row it begins again."""
    if not (run and task):
        return gr.update(choices=[], value=None)
    try:
        found = studio.prompts(run, task, first, ROWS) or studio.prompts(run, task, 0, ROWS)
    except StudioError:  # the data set is gone or the run came from elsewhere: a text can still be typed
        return gr.update(choices=[], value=None, label="No rows of this task are here")
    listed = [
        (f"{prompt.row + 1}: {_line(prompt.text)} → {_line(prompt.answer, 30)}", str(prompt.row)) for prompt in found
    ]
    known = {value for _, value in listed}
    return gr.update(
        choices=listed, value=str(chosen) if str(chosen) in known else None, label="A test row of the task"
    )


def view(studio: Studio, run: str, asked: Asked, drawing: bool = False) -> dict[str, Any]:
    """The text in the colours of its experts; ``drawing``: only layer, projection or token changed."""
    if not (asked.text.strip() or asked.turn):
        return {"told": HINT, "found": gr.update(visible=False)}
    try:
        trace = TRACES.get(studio, run, asked)
    except StudioError as error:
        return {"told": ui.problem(error), "found": gr.update(visible=False)}
    known, names = views.layers(trace), views.projections(trace)
    if not known:
        text = ui.empty("No gates", f"{run} routes nothing: its method has one expert for everything.")
        return {"told": text, "found": gr.update(visible=False)}
    asked = _placed(studio, run, asked, trace, known, names)
    layer, token = int(asked.at), number(asked.token)
    listed = [(name, name) for name in names]
    listed += [("averaged over projections", views.AVERAGE)] if len(names) > 1 else []
    values = {
        "strip": views.strip(trace, layer, asked.on, token),
        "ribbon": views.ribbon(trace, layer, asked.on, token),
        "chosen": f"<h2>Token {token + 1}, projection by projection</h2>",
        "route": views.route(trace, token),
        "address": asked.query(),
        "asked": asked.state(),
        "layer": gr.update(minimum=known[0], maximum=max(known[-1], known[0] + 1), value=layer),
    }
    if not drawing:
        values |= {"told": views.facts(trace, asked.answer), "found": gr.update(visible=True)}
        values |= {"projection": gr.update(choices=listed, value=asked.on)}
    return values


def _placed(studio: Studio, run: str, asked: Asked, trace: Any, known: list[int], names: list[str]) -> Asked:
    """Layer, projection and token that exist; by default those where the tasks part most, and the last prompt token."""
    at, on = asked.at, asked.on
    if at.startswith("#"):  # a place in the picture
        place = number(at[1:])
        at = str(known[min(place, len(known) - 1)])
    at = at.removesuffix(".0")
    if on not in (*names, views.AVERAGE) or not NUMBER.fullmatch(at):
        best_layer, best_name = _most_specific(studio, run)
        on = on if on in (*names, views.AVERAGE) else (best_name if best_name in names else names[0])
        at = at if NUMBER.fullmatch(at) else str(best_layer if best_layer in known else known[-1])
    layer = min(known, key=lambda one: abs(one - int(at)))
    token = number(asked.token) if asked.token.isdecimal() else max(0, trace.roles.count("prompt") - 1)
    return replace(asked, at=str(layer), on=on, token=str(min(token, len(trace.tokens) - 1)))


def _most_specific(studio: Studio, run: str) -> tuple[int, str]:
    try:
        atlas = studio.routing_atlas(run)
        return atlas.distances(atlas.moments[-1].name).most_specific if atlas.moments else (-1, "")
    except StudioError:
        return -1, ""


def _line(text: str, longest: int = 90) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
