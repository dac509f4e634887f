"""The Chat page: one question to several models on one base, each answering at its own speed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr

from app.handouts import PRESS, handed
from app.pages.chat_answers import PARTS, PLACES, answer
from app.pages.chat_state import SETTINGS, drawn, listed, number, offered, start, warm, where
from app.pages.chat_views import PANES, TURNS
from app.ui import components as ui
from core.errors import StudioError
from core.home import write_text
from core.studio import Studio

LEAD = "One question to several models on one base, with the same seed and settings."
ADDRESS = """(models, conversation) => {
  const query = new URLSearchParams();
  if (models?.length) query.set('runs', models.join(','));
  if (conversation) query.set('conversation', conversation);
  history.replaceState(null, '', location.pathname + (query.size ? '?' + query : ''));
}"""
# A question sent while the page still reads its address waits for the models that the address names; Enter pressed
# again meanwhile takes its place.
OPENED = "() => { window.tesseraChat = true; }"
WHEN_OPENED = """async () => {
  const mine = window.tesseraAsked = {};
  while (!window.tesseraChat) await new Promise(go => setTimeout(go, 40));
  if (mine !== window.tesseraAsked) await new Promise(() => {});
}"""


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill ``page``; answers stream through one generator, which dies with the browser and stops them."""
    ui.page_head("Chat", LEAD)
    c = SimpleNamespace()
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
        for place in range(PANES):
            with gr.Column(min_width=300, visible=False) as column:
                c.columns.append(column)
                c.panes.append(ui.drawn("chat", elem_id=f"chat-pane-{place + 1}"))
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
    c.told = ui.text("", "chat-told")
    with gr.Accordion("Sampling and system message", open=False):
        c.system = gr.Textbox(label="System message", lines=2, max_length=20_000)
        with gr.Row(elem_classes="controls"):
            c.temperature = gr.Slider(0, 2, 0.7, step=0.05, label="Temperature", min_width=200)
            c.top_p = gr.Slider(0.05, 1, 0.9, step=0.05, label="Top-p", min_width=200)
            c.max_new_tokens = gr.Number(128, label="Longest answer, tokens", precision=0, minimum=1, min_width=130)
            c.seed = gr.Number(0, label="Seed, the same for all", precision=0, minimum=0, min_width=130)
            c.task = gr.Dropdown([], label="Act as task (gates by task)", visible=False, min_width=150)
    c.where = ui.text("", "chat-where")


def _side(c: SimpleNamespace) -> None:
    c.fresh = gr.Button("New conversation", size="md")
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
    view = [*c.columns, *c.panes, c.tools, c.list]
    parts = vars(c) | dict(zip(PLACES, c.panes, strict=True))
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
        def stop(request: gr.Request) -> None:
            asking = askings.get(request.session_hash)
            if asking is not None and place < len(asking.answers):
                asking.stop(list(asking.answers)[place])

        return stop

    def earlier(models: list[str], conversation: str, limit: int, listed_page: int) -> list[Any]:
        return [*drawn(studio, models, conversation, limit + TURNS, listed_page), limit + TURNS]

    page.load(opened, None, [c.told, c.models, c.conversation, *settings, *view], **ui.QUIET).then(
        None, None, None, js=OPENED
    )
    c.models.input(changed, chosen, [*view, c.models, c.task, c.told], trigger_mode="always_last", **ui.QUIET)
    gr.on([c.models.change, c.conversation.change], None, [c.models, c.conversation], None, js=ADDRESS, **ui.QUIET)
    gr.on([c.box.submit, c.send.click], None, None, None, js=WHEN_OPENED, **ui.QUIET).then(
        ask, [c.box, *chosen, *settings], [parts[name] for name in PARTS], trigger_mode="once", **ui.QUIET
    )
    c.halt.click(halt, None, None, queue=False, **ui.QUIET)
    for place, pane in enumerate(c.panes):
        pane.select(halt_one(place), None, None, queue=False, **ui.QUIET)
        pane.expand(earlier, chosen, [*view, c.limit], **ui.QUIET)
    c.box.focus(lambda models: warm(studio, models), c.models, None, trigger_mode="once", **ui.QUIET)
    gr.Timer(2.0).tick(lambda seen: where(studio, seen), c.seen, [c.where, c.seen], trigger_mode="once", **ui.QUIET)
    _wire_side(studio, c, view)


def _wire_side(studio: Studio, c: SimpleNamespace, view: list[Any]) -> None:
    def turn_page(conversation: str, event: gr.EventData) -> tuple[Any, int]:
        page = getattr(event, "page", 1)
        page = page if isinstance(page, int) and 0 < page < 10**6 else 1
        return listed(studio, page, number(conversation)), page

    def fresh(models: list[str], page: int) -> list[Any]:
        return [*drawn(studio, models, "", TURNS, page), "", TURNS, ""]

    def forget(models: list[str], conversation: str, page: int) -> list[Any]:
        told = ""
        try:
            studio.chats.delete(number(conversation) or 0)
        except StudioError as error:
            told = ui.problem(error)
        return [*drawn(studio, models, "", TURNS, page), "", told, gr.update(visible=False)]

    c.list.select(turn_page, c.conversation, [c.list, c.page], **ui.QUIET)
    c.fresh.click(fresh, [c.models, c.page], [*view, c.conversation, c.limit, c.told], **ui.QUIET)
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
            text = studio.chats.export(number(conversation) or 0, kind)
            name = f"conversation-{number(conversation)}.{kind}"
            return handed(name, lambda path: write_text(path, text)), ""
        except StudioError as error:
            return gr.skip(), ui.problem(error)

    return export
