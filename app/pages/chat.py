"""The Chat page: one question to several models on one base, each answering at its own speed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import gradio as gr

from app.handouts import PRESS, handout
from app.pages import chat_views as views
from app.pages.chat_views import BASE, LISTED, PANES, TURNS
from app.ui import components as ui
from core.errors import StudioError
from core.studio import Studio

LEAD = "One question to several models on one base, with the same seed and settings."
FRAME = 0.1  # seconds between pictures: as often as the eye needs
RUNS = 500
ADDRESS = """(models, conversation) => {
  const query = new URLSearchParams();
  if (models?.length) query.set('runs', models.join(','));
  if (conversation) query.set('conversation', conversation);
  history.replaceState(null, '', location.pathname + (query.size ? '?' + query : ''));
}"""
SETTINGS = ("max_new_tokens", "temperature", "top_p", "seed", "task", "system")
STANDARD = {"max_new_tokens": 128, "temperature": 0.7, "top_p": 0.9, "seed": 0, "task": None, "system": ""}


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill ``page``; answers stream through one generator, which dies with the browser and stops them."""
    ui.page_head("Chat", LEAD)
    c = SimpleNamespace(told=ui.text("", "chat-told"))
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=520):
            _talk(c)
        with gr.Column(scale=1, min_width=230, elem_classes="chat-side"):
            _side(c)
    _wire(studio, page, c)


def _talk(c: SimpleNamespace) -> None:
    c.models = gr.Dropdown(
        [],
        value=[],
        multiselect=True,
        max_choices=PANES,
        label="Models (one to four, on one base)",
        elem_id="chat-models",
    )
    with gr.Row(elem_classes="chat-panes", equal_height=True):
        c.columns, c.panes = [], []
        for number in range(PANES):
            with gr.Column(min_width=300, visible=number == 0) as column:
                c.columns.append(column)
                c.panes.append(ui.drawn("chat", views.pane(BASE, None, []), elem_id=f"chat-pane-{number + 1}"))
    c.earlier = gr.Button("Show earlier turns", size="md", visible=False)
    with gr.Row(elem_classes="chat-prompt"):
        c.box = gr.Textbox(
            placeholder="Ask all of them; Enter sends, Shift+Enter breaks the line",
            show_label=False,
            container=False,
            lines=1,
            max_lines=8,
            scale=6,
            elem_id="chat-box",
        )
        c.send = gr.Button("Ask", variant="primary", scale=0, min_width=96, elem_id="chat-send")
        c.halt = gr.Button("Stop all", scale=0, min_width=96, interactive=False, elem_id="chat-stop")
    with gr.Accordion("Sampling and system message", open=False):
        c.system = gr.Textbox(label="System message", lines=2, max_length=20_000)
        with gr.Row(elem_classes="controls"):
            c.temperature = gr.Slider(0, 2, 0.7, step=0.05, label="Temperature", min_width=160)
            c.top_p = gr.Slider(0.05, 1, 0.9, step=0.05, label="Top-p", min_width=140)
            c.max_new_tokens = gr.Number(128, label="Longest answer, tokens", precision=0, minimum=1, min_width=130)
            c.seed = gr.Number(0, label="Seed, the same for all", precision=0, minimum=0, min_width=130)
            c.task = gr.Dropdown([], label="Act as task (gates by task)", visible=False, min_width=150)
    c.where = ui.text("", "chat-where")


def _side(c: SimpleNamespace) -> None:
    c.new = gr.Button("New conversation", size="md")
    ui.text("<h2>Conversations</h2>")
    c.list = ui.drawn("chats", {"rows": [], "pages": 1, "empty": "None yet."}, elem_id="chat-history")
    with gr.Column(visible=False) as c.tools:
        c.markdown = gr.Button("Export as Markdown", size="sm")
        c.lines = gr.Button("Export as JSON lines", size="sm")
        c.delete = gr.Button("Delete…", size="sm")
        with gr.Row(visible=False, elem_classes="ask") as c.sure:
            ui.text("Delete this conversation for ever?")
            c.yes = gr.Button("Yes, delete", variant="stop", size="md", min_width=100)
            c.no = gr.Button("Keep it", size="md", min_width=80)
    c.file = gr.DownloadButton("Save the file", elem_classes="unseen", elem_id="chat-file")
    c.conversation = gr.Textbox("", elem_classes="unseen", elem_id="chat-conversation")
    c.limit, c.page, c.seen = gr.State(TURNS), gr.State(1), gr.State("")


def _wire(studio: Studio, page: gr.Blocks, c: SimpleNamespace) -> None:
    view = [*c.columns, *c.panes, c.earlier, c.tools, c.list]
    chosen = [c.models, c.conversation, c.limit, c.page]
    settings = [getattr(c, name) for name in SETTINGS]
    askings: dict[str, Any] = {}  # by browser session: what its tab is being told now

    def opened(request: gr.Request) -> list[Any]:
        return start(studio, dict(request.query_params))

    def changed(models: list[str], *rest: Any) -> list[Any]:
        return [*drawn(studio, models, *rest), *offered(studio, models)]

    def ask(
        prompt, models, conversation, limit, _, tokens, temperature, top_p, seed, task, system, request: gr.Request
    ):
        wanted = dict(zip(SETTINGS, (tokens, temperature, top_p, seed, task, system), strict=True))
        yield from answer(studio, askings, request.session_hash, prompt, models, conversation, limit, wanted)

    def halt(request: gr.Request) -> None:
        if asking := askings.get(request.session_hash):
            asking.stop()

    def halt_one(place: int) -> Any:
        def stop(models: list[str], request: gr.Request) -> None:
            asking = askings.get(request.session_hash)
            if asking is not None and place < len(models or []):
                asking.stop(models[place])

        return stop

    talk = [c.box, c.told, c.conversation, c.send, c.halt, *c.panes, c.tools, c.list]
    page.load(opened, None, [c.told, c.models, c.conversation, *settings, *view], **ui.QUIET)
    c.models.input(changed, chosen, [*view, c.models, c.task, c.told], trigger_mode="always_last", **ui.QUIET)
    gr.on([c.models.change, c.conversation.change], None, [c.models, c.conversation], None, js=ADDRESS, **ui.QUIET)
    gr.on([c.box.submit, c.send.click], ask, [c.box, *chosen, *settings], talk, trigger_mode="once", **ui.QUIET)
    c.halt.click(halt, None, None, queue=False, **ui.QUIET)
    for place, pane in enumerate(c.panes):
        pane.select(halt_one(place), c.models, None, queue=False, **ui.QUIET)
    c.box.focus(lambda models: warm(studio, models), c.models, None, trigger_mode="once", **ui.QUIET)
    gr.Timer(2.0).tick(lambda seen: where(studio, seen), c.seen, [c.where, c.seen], trigger_mode="once", **ui.QUIET)
    _wire_side(studio, c, view, chosen)


def _wire_side(studio: Studio, c: SimpleNamespace, view: list[Any], chosen: list[Any]) -> None:
    def turn_page(conversation: str, event: gr.EventData) -> tuple[Any, int]:
        number = getattr(event, "page", 1)
        number = number if isinstance(number, int) and 0 < number < 10**6 else 1
        return listed(studio, number, _number(conversation)), number

    def earlier(models: list[str], conversation: str, limit: int, number: int) -> list[Any]:
        return [*drawn(studio, models, conversation, limit + TURNS, number), limit + TURNS]

    def fresh(models: list[str], number: int) -> list[Any]:
        return [*drawn(studio, models, "", TURNS, number), "", TURNS, ""]

    def forget(models: list[str], conversation: str, number: int) -> list[Any]:
        told = ""
        try:
            studio.chats.delete(_number(conversation) or 0)
        except StudioError as error:
            told = ui.problem(error)
        return [*drawn(studio, models, "", TURNS, number), "", told, gr.update(visible=False)]

    c.list.select(turn_page, c.conversation, [c.list, c.page], **ui.QUIET)
    c.earlier.click(earlier, chosen, [*view, c.limit], **ui.QUIET)
    c.new.click(fresh, [c.models, c.page], [*view, c.conversation, c.limit, c.told], **ui.QUIET)
    c.delete.click(lambda: gr.update(visible=True), None, c.sure, **ui.QUIET)
    c.no.click(lambda: gr.update(visible=False), None, c.sure, **ui.QUIET)
    c.yes.click(forget, [c.models, c.conversation, c.page], [*view, c.conversation, c.told, c.sure], **ui.QUIET)
    for button, kind in ((c.markdown, "md"), (c.lines, "jsonl")):
        button.click(_exporter(studio, kind), c.conversation, [c.file, c.told], **ui.QUIET).success(
            None, None, None, js=PRESS % "chat-file"
        )


def _exporter(studio: Studio, kind: str) -> Any:
    def export(conversation: str) -> tuple[Any, str]:
        try:
            text = studio.chats.export(_number(conversation) or 0, kind)
        except StudioError as error:
            return gr.skip(), ui.problem(error)
        path = handout(f"conversation-{_number(conversation)}.{kind}")
        path.write_text(text, "utf-8")
        return str(path), ""

    return export


def start(studio: Studio, query: dict[str, str]) -> list[Any]:
    """Everything, as an address says it."""
    told, values, conversation = "", dict(STANDARD), _number(query.get("conversation"))
    runs = finished(studio)
    models = [part for part in query.get("runs", "").split(",") if part][:PANES]
    try:
        if conversation is not None:
            row = studio.chats.conversation(conversation)
            models = models or row.models
            values |= {name: row.settings[name] for name in SETTINGS if name in row.settings} | {"system": row.system}
    except StudioError as error:
        told, conversation = ui.problem(error), None
    known = {run["id"] for run in runs}
    unknown = [model for model in models if model != BASE and model not in known]
    models = [model for model in dict.fromkeys(models) if model not in unknown] or views.first_choice(runs)
    if unknown:
        told = ui.problem(StudioError(f"{', '.join(unknown)} is no finished run.", "Choose among those that are."))
    if not runs and not told:
        told = ui.empty(
            "No finished runs yet",
            "Train one to talk to it. Until then the base answers alone.",
            "/experiment",
            "Set up a run",
        )
    listed_models, task, problem = offered(studio, models)
    number = "" if conversation is None else str(conversation)
    values["task"] = gr.update(**{**_task(studio, models), "value": values["task"] or ""})
    view = drawn(studio, models, number, TURNS, 1, runs)
    return [told or problem, listed_models, number, *(values[name] for name in SETTINGS), *view]


def drawn(
    studio: Studio, models: Sequence[str], conversation: str, limit: int, number: int, runs: Any = None
) -> list[Any]:
    """Columns, panes, the button for earlier turns, the tools of a conversation, the list."""
    current = _number(conversation)
    panes, more = filled(studio, models, current, limit, runs)
    columns = [gr.update(visible=place < len(models)) for place in range(PANES)]
    shown = [panes[place] if place < len(panes) else gr.skip() for place in range(PANES)]
    tools = gr.update(visible=current is not None)
    return [*columns, *shown, gr.update(visible=more), tools, listed(studio, number, current)]


def filled(
    studio: Studio, models: Sequence[str], conversation: int | None, limit: int, runs: Any = None
) -> tuple[list[dict[str, Any]], bool]:
    """The panes of a conversation, and whether there are turns before those shown."""
    by_id = {run["id"]: run for run in (finished(studio) if runs is None else runs)}
    try:
        turns = [] if conversation is None else studio.chats.turns(conversation, limit=int(limit) + 1)
    except StudioError:
        turns = []
    more, turns = len(turns) > limit, turns[-int(limit) :]
    return [views.pane(model, by_id.get(model), turns, earlier=more) for model in models or []], more


def offered(studio: Studio, models: Sequence[str]) -> tuple[Any, Any, str]:
    """The choices of models and of tasks, and what is wrong with the present ones."""
    runs, told = finished(studio), ""
    try:
        if models:
            studio.chats.check(models)
    except StudioError as error:
        told = ui.problem(error)
    return (
        gr.update(choices=views.choices(runs, models or []), value=list(models or [])),
        gr.update(**_task(studio, models)),
        told,
    )


def _task(studio: Studio, models: Sequence[str]) -> dict[str, Any]:
    try:
        tasks = studio.chats.tasks([model for model in models or [] if model != BASE])
    except StudioError:
        tasks = []
    return {"choices": [("its first one", ""), *((task, task) for task in tasks)], "visible": len(tasks) > 1}


def finished(studio: Studio) -> list[dict[str, Any]]:
    """Runs that have an adapter, newest first."""
    return [run for run in studio.runs(state="done", limit=RUNS) if run["method"] != BASE]


def listed(studio: Studio, number: int, current: int | None) -> dict[str, Any]:
    return views.history(studio.chats.page(limit=LISTED, offset=LISTED * (max(int(number), 1) - 1)), current)


def where(studio: Studio, seen: str) -> tuple[Any, Any]:
    try:
        text = views.where(studio.chats.inference.workers(), studio.dispatcher()["devices"])
    except StudioError as error:
        text = ui.problem(error)
    return (gr.skip(), gr.skip()) if text == seen else (text, text)


def warm(studio: Studio, models: Sequence[str]) -> None:
    """Have the models loaded while the question is being typed; what is wrong is said when it is asked."""
    try:
        studio.chats.warm(models or [])
    except StudioError:
        return


def answer(
    studio: Studio,
    askings: dict[str, Any],
    session: str,
    prompt: str,
    models: Sequence[str],
    conversation: str,
    limit: int,
    settings: dict[str, Any],
) -> Iterator[list[Any]]:
    """The stream of the page: whole lists of outputs, with ``gr.skip()`` for what did not move."""
    skips = [gr.skip()] * (PANES + 2)
    try:
        panes, _ = filled(studio, models, _number(conversation), limit)
        wanted = {**settings, "system": settings["system"] or "", "task": settings["task"] or None}
        asking = studio.chats.ask(models or [], prompt or "", conversation=_number(conversation), **wanted)
    except StudioError as error:
        yield [gr.skip(), ui.problem(error), gr.skip(), gr.skip(), gr.skip(), *skips]
        return
    askings[session] = asking
    names = list(asking.answers)
    for place in range(len(names)):
        panes[place]["turns"].append(views.growing(prompt, None))
        panes[place]["growing"] = True
    busy, idle = gr.update(interactive=False), gr.update(interactive=True)
    rest = [gr.skip()] * (PANES - len(panes))
    history = [gr.update(visible=True), listed(studio, 1, asking.conversation)]
    try:
        yield ["", "", str(asking.conversation), busy, idle, *panes, *rest, *history]
        for moved in frames(asking):
            shown = [gr.skip()] * PANES
            for model in moved:
                place, now = names.index(model), asking.answers[model]
                turns = [*panes[place]["turns"][:-1], views.growing(prompt, now)]
                shown[place] = panes[place] = panes[place] | {"turns": turns, "growing": now.ended is None}
            yield [*[gr.skip()] * 5, *shown, gr.skip(), gr.skip()]
    finally:
        asking.close()  # the browser may have gone
        if askings.get(session) is asking:
            del askings[session]
    yield [
        gr.skip(),
        gr.skip(),
        gr.skip(),
        idle,
        busy,
        *panes,
        *rest,
        gr.skip(),
        listed(studio, 1, asking.conversation),
    ]


def frames(asking: Any, clock: Any = time.monotonic) -> Iterator[set[str]]:
    """Which answers moved since the picture before: one each ``FRAME`` seconds, first tokens and ends at once."""
    moved: set[str] = set()
    last = 0.0
    for now in asking:
        moved.add(now.model)
        if now.ended is not None or now.tokens == 1 or clock() - last >= FRAME:
            yield moved
            moved, last = set(), clock()
    if moved:
        yield moved


def _number(text: Any) -> int | None:
    return int(text) if isinstance(text, str) and text.isdigit() and len(text) < 12 else None
