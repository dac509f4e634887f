"""The half of the Fusion page that watches one fused run: its components, and what they do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr

from app.handouts import PRESS, handed
from app.pages import fusion_result, runs
from app.pages.fusion_choice import Choice
from app.pages.fusion_look import PARTS, look
from app.ui import components as ui
from core.errors import StudioError
from core.figures import fusion as figures
from core.figures import write_html
from core.home import write_text
from core.studio import Studio

SECONDS = 1.5
COPY = """() => { const text = document.querySelector('#fusion-copied')?.textContent;
  if (text) navigator.clipboard?.writeText(text).then(() => {
    const button = document.querySelector('#fusion-copy'), before = button.textContent;
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = before; }, 1500); }); }"""


def build(c: SimpleNamespace) -> None:
    """The components; each is named in ``PARTS`` or acts on them."""
    c.head = ui.text("", "panel", "run-head", elem_id="fusion-head")
    c.links = ui.text("")
    c.about = ui.text("", elem_id="fusion-about")
    with gr.Row(elem_classes="actions"):
        c.cancel = gr.Button("Cancel…", size="md", visible=False, min_width=90)
        c.resume = gr.Button("Resume", size="md", visible=False, min_width=90)
    with gr.Row(visible=False, elem_classes="ask") as c.ask:
        c.question = ui.text("")
        c.yes = gr.Button("Yes", variant="stop", size="md", scale=0, min_width=150)
        c.no = gr.Button("No, keep it", size="md", scale=0, min_width=110)
    c.failure = ui.text("", elem_id="fusion-failure")
    with gr.Row(visible=False, equal_height=False, elem_id="fusion-curves") as c.curves:
        for name, more in (("learnt", "Learns"), ("combined", "Combines")):
            with gr.Column(min_width=400):
                kind = gr.Radio([], label=more, show_label=False, container=False, elem_classes="curve-choice")
                setattr(c, f"{name}_kind", kind)
                setattr(c, name, ui.live_curve(elem_id=f"fusion-{name}"))
    _results(c)
    with gr.Accordion("Log", open=False):
        c.log = ui.text("", "log", "said")
    c.asking = gr.State("")


def _results(c: SimpleNamespace) -> None:
    c.said = ui.text("", elem_id="fusion-said")
    c.table = ui.text("", "panel", "lost-table", elem_id="fusion-table")
    with gr.Row(visible=False, elem_classes="actions", elem_id="fusion-files") as c.files:
        c.copy = gr.Button("Copy the table", size="md", min_width=130, elem_id="fusion-copy")
        c.csv = gr.Button("CSV", size="md", min_width=90)
        c.page_file = gr.Button("Figures as a page", size="md", min_width=160)
        c.file = gr.DownloadButton("Save the file", elem_classes="unseen", elem_id="fusion-file")
    with gr.Column(visible=False, elem_id="fusion-sweep") as c.sweep:
        ui.text(f'<h2>Over a noisy channel <span class="badge">{figures.INSPIRED}</span></h2>')
        c.attack = gr.Radio([], label="Attack", elem_classes="attack-choice")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=400):
                c.score = ui.figure(None, "sweep", elem_id="fusion-score")
            with gr.Column(min_width=400):
                c.error = ui.figure(None, "sweep", elem_id="fusion-error")
    with gr.Column(visible=False, elem_id="fusion-tables") as c.tables:
        ui.text("<h2>How they are combined</h2>")
        c.lossy = ui.text("", elem_id="fusion-lossy")
        c.few = ui.text("", "panel", "cellview", visible=False, elem_id="fusion-few")
        c.coefficients = ui.heatmap(None, elem_id="fusion-coefficients", elem_classes=["small"])
        c.mask = ui.heatmap(None, elem_id="fusion-mask", elem_classes=["small"])
        c.form_error = ui.heatmap(None, elem_id="fusion-form-error", elem_classes=["small"])


def components(c: SimpleNamespace) -> list[Any]:
    """In the order of ``PARTS``."""
    return [c.form_error if name == "form" else getattr(c, name) for name in PARTS]


def filled(fresh: dict[str, Any]) -> list[Any]:
    return [fresh.get(name, gr.skip()) for name in PARTS]


def wire(studio: Studio, c: SimpleNamespace) -> None:
    """``c`` has ``run`` (the shown run's id), ``seen`` and ``address`` beside the components."""
    asked = [c.run, c.learnt_kind, c.combined_kind, c.attack, c.seen]
    drawn = [*components(c), c.seen]

    def draw(run: str, curve: str, combined: str, attack: str, seen: dict[str, str]) -> list[Any]:
        fresh, now = look(studio, watched(run, curve, attack), str(combined or ""), seen or {})
        return [*filled(fresh), now if fresh else gr.skip()]

    def tick(run: str, *rest: Any) -> list[Any]:
        return draw(run, *rest) if run else [gr.skip() for _ in drawn]

    def turned(run: str, curve: str, combined: str, attack: str, seen: dict[str, str]) -> list[Any]:
        return [*draw(run, curve, combined, attack, seen), watched(run, curve, attack).query()]

    gr.Timer(SECONDS).tick(tick, asked, drawn, trigger_mode="once", **ui.QUIET)
    changed = [c.learnt_kind.input, c.combined_kind.input, c.attack.input]
    gr.on(changed, turned, asked, [*drawn, c.address], trigger_mode="always_last", **ui.QUIET)
    hidden, question = [c.ask, c.asking], [c.ask, c.asking, c.question, c.yes]
    c.cancel.click(lambda run: runs.question(studio, "cancel", run), c.run, question, **ui.QUIET)
    c.no.click(lambda: [gr.update(visible=False), ""], None, hidden, **ui.QUIET)

    def yes(asking: str, run: str, *rest: Any) -> list[Any]:
        runs.confirmed(studio, asking, run)
        return [*draw(run, *rest), gr.update(visible=False), ""]

    c.yes.click(yes, [c.asking, *asked], [*drawn, *hidden], **ui.QUIET)

    def resume(run: str, *rest: Any) -> list[Any]:
        runs.acted(lambda: studio.resume(run), f"{run} is queued again, from its last checkpoint.")
        return draw(run, *rest)

    c.resume.click(resume, asked, drawn, **ui.QUIET)
    _wire_files(studio, c)


def watched(run: Any, curve: Any, attack: Any) -> Choice:
    return Choice.of({"run": run, "curve": curve, "attack": attack})


def _wire_files(studio: Studio, c: SimpleNamespace) -> None:
    c.copy.click(None, None, None, js=COPY, **ui.QUIET)
    for button, make in ((c.csv, table_file), (c.page_file, figures_file)):
        made = button.click(lambda run, make=make: make(studio, run), c.run, c.file, **ui.QUIET)
        made.success(None, None, None, js=PRESS % "fusion-file", **ui.QUIET)


def table_file(studio: Studio, run: str) -> str:
    """The table as CSV, numbers unrounded."""
    try:
        found = studio.fusion(run)
        text = fusion_result.plain(found.table)
        return handed(f"{found.run['id']}-fusion.csv", lambda path: write_text(path, text))
    except StudioError as error:
        raise gr.Error(ui.escape(error), print_exception=False) from error


def figures_file(studio: Studio, run: str) -> str:
    """Curves, coefficients and sweep of a fused run, and the conflicts of its sources, as one page."""
    try:
        found = studio.fusion(run)
        names = [source["name"] for source in found.sources if source["run"]]
        drawn = [figures.conflict_heatmap(studio.conflicts(names), title="Cosine between task vectors")]
    except StudioError as error:  # a source is gone, with its adapter
        raise gr.Error(ui.escape(error), print_exception=False) from error
    identity = found.run["id"]
    curves = studio.curves(identity)
    if len(curves) and curves["name"].str.match("entropy/|coefficient/").any():
        drawn.append(figures.fusion_curves(curves, title="What was learnt"))
    if tables := studio.tables(identity, "coefficients"):
        drawn.append(figures.coefficient_heatmap(tables[-1][1], title="Coefficients"))
    if tables := studio.tables(identity, "sweep"):
        every = figures.attacks(tables[-1][1])
        drawn += [figures.sweep_figure(tables[-1][1], attack, title=f"Attack: {attack}") for attack in every]
    title = f"{identity} {found.run['name']}"
    try:
        return handed(f"{identity}-fusion.html", lambda path: write_html(drawn, path, title=title))
    except StudioError as error:
        raise gr.Error(ui.escape(error), print_exception=False) from error
