"""The Methods page: every method with its equation, figure, options and counts, and the way into an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from app.pages import methods_views as views
from app.ui import components as ui
from core.errors import StudioError
from core.schema import MethodSpec
from core.studio import Studio

LEAD = "What each method shares between experts and what it keeps apart, what that costs, and what is known of it."
OWNED = ("method", "base", "tasks")
MOST_TASKS = 32
PARTS = ("list", "head", "figure", "counts", "equation", "use", "options", "effects", "rest", "published", "address")


@dataclass(frozen=True)
class Choice:
    """What the page shows; every field stands in the address."""

    method: str = MethodSpec().name
    base: str = ""
    tasks: int = 8

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Choice:
        """From an address or from inputs; what makes no sense falls back to the plain view."""
        tasks = str(values.get("tasks") or "")
        plain = cls()
        return cls(
            str(values.get("method") or plain.method)[:80],
            str(values.get("base") or "").strip()[:300],
            min(MOST_TASKS, max(1, int(tasks))) if tasks.isdecimal() and len(tasks) < 4 else plain.tasks,
        )

    def query(self) -> str:
        plain = Choice()
        named = {"method": self.method, "base": self.base, "tasks": "" if self.tasks == plain.tasks else self.tasks}
        return urlencode({name: value for name, value in named.items() if value})


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill ``page``."""
    ui.page_head("Methods", LEAD)
    first = view(studio, Choice())
    bases = studio.known_bases()
    c = SimpleNamespace(chosen=gr.State(Choice().method))
    with gr.Row(equal_height=False, elem_id="methods-main"):
        with gr.Column(scale=4, min_width=300):
            c.list = ui.drawn("methods", first["list"], elem_id="methods-list")
        with gr.Column(scale=9, min_width=320):
            c.head = ui.text(first["head"], "panel", "method-head", elem_id="method-head")
            with gr.Row(equal_height=False):
                with gr.Column(scale=6, min_width=320):
                    c.figure = ui.figure(first["figure"], "panel", "diagram", elem_id="method-figure")
                with gr.Column(scale=5, min_width=300):
                    with gr.Row(elem_classes="controls"):
                        c.base = gr.Dropdown(
                            bases, value=bases[0], label="Base", allow_custom_value=True, scale=3, min_width=170,
                            info="one of the list, a folder or a Hub id", elem_id="method-base",
                        )  # fmt: skip
                        c.tasks = gr.Number(
                            Choice().tasks, label="Tasks", info="for gates by task", precision=0, minimum=1,
                            maximum=MOST_TASKS, scale=1, min_width=110, elem_id="method-tasks",
                        )  # fmt: skip
                    c.counts = ui.text(first["counts"], "panel", "method-counts", elem_id="method-counts")
            for name in ("equation", "use"):
                setattr(c, name, gr.Markdown(first[name], elem_classes="method-text", elem_id=f"method-{name}"))
            c.options = ui.text(first["options"], "panel", elem_id="method-options")
            c.effects = gr.Markdown(first["effects"], elem_classes="method-text")
            c.published = ui.text(first["published"], elem_id="method-published")
            c.rest = gr.Markdown(first["rest"], elem_classes="method-text", elem_id="method-rest")
    c.address = ui.address(OWNED)
    _wire(studio, page, c)


def _wire(studio: Studio, page: gr.Blocks, c: SimpleNamespace) -> None:
    outputs = [*(getattr(c, name) for name in PARTS), c.chosen]

    def opened(request: gr.Request) -> list[Any]:
        choice = Choice.of(dict(request.query_params))
        base = choice.base or studio.known_bases()[0]
        return [*_filled(view(studio, choice)), choice.method, gr.update(value=base), choice.tasks]

    # Event data are recognised by annotation among named parameters.
    def picked(base: Any, tasks: Any, event: gr.EventData) -> list[Any]:
        method = str((event._data or {}).get("method") or "")
        choice = Choice.of({"method": method, "base": base, "tasks": tasks})
        return [*_filled(view(studio, choice)), choice.method]

    def changed(method: Any, base: Any, tasks: Any) -> list[Any]:
        choice = Choice.of({"method": method, "base": base, "tasks": tasks})
        return [*_filled(sized(studio, choice)), choice.method]

    page.load(opened, None, [*outputs, c.base, c.tasks], **ui.QUIET)
    c.list.select(picked, [c.base, c.tasks], outputs, **ui.QUIET)
    gr.on([c.base.input, c.tasks.input], changed, [c.chosen, c.base, c.tasks], outputs,
          trigger_mode="always_last", **ui.QUIET)  # fmt: skip


def _filled(values: Mapping[str, Any]) -> list[Any]:
    return [values.get(name, gr.skip()) for name in PARTS]


def view(studio: Studio, choice: Choice) -> dict[str, Any]:
    """Everything that is shown of a method; what is wrong stands in place of what it concerns."""
    methods = studio.methods()
    shown = {"list": views.listed(methods, choice.method)}
    try:
        method = studio.method(choice.method)
        sections = studio.method_page(choice.method).sections
    except StudioError as error:
        empty = dict.fromkeys(("counts", "equation", "use", "options", "effects", "rest", "published"), "")
        return {**shown, **empty, "head": ui.problem(error), "figure": {"html": "", "name": "split"}}
    return {
        **shown,
        **sized(studio, choice),
        "head": views.head(method),
        "equation": views.text(sections, ["Equation"]),
        "use": views.text(sections, views.BEFORE),
        "options": views.options(method),
        "effects": sections.get("Options", ""),
        "published": views.published(studio.published_counts(choice.method)),
        "rest": views.text(sections, views.AFTER),
    }


def sized(studio: Studio, choice: Choice) -> dict[str, Any]:
    """Figure and counts on the chosen base."""
    method, address = studio.method(choice.method), choice.query()
    try:
        found = studio.method_on(choice.method, choice.base or studio.known_bases()[0], choice.tasks)
    except StudioError as error:
        return {"figure": {"html": "", "name": "split"}, "counts": ui.problem(error), "address": address}
    return {
        "figure": views.figure(method, found),
        "counts": views.counts(method, found),
        "address": address,
    }
