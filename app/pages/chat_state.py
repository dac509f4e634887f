"""What the Chat page takes from the studio: an address, the models to choose from, the turns of each pane."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gradio as gr

from app.pages import chat_views as views
from app.pages.chat_views import BASE, LISTED, PANES, TURNS
from app.ui import components as ui
from core.errors import StudioError
from core.studio import Studio

RUNS = 500
WHERE_SECONDS = 1.0
SETTINGS = ("max_new_tokens", "temperature", "top_p", "seed", "task", "system")
STANDARD = {"max_new_tokens": 128, "temperature": 0.7, "top_p": 0.9, "seed": 0, "task": None, "system": ""}


def start(studio: Studio, query: dict[str, str]) -> list[Any]:
    """Everything, as an address says it."""
    told, values, conversation = "", dict(STANDARD), number(query.get("conversation"))
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
    listed_models, task, problem = offered(studio, models)
    kept = "" if conversation is None else str(conversation)
    values["task"] = gr.update(**{**_task(studio, models), "value": values["task"] or ""})
    view = drawn(studio, models, kept, TURNS, 1, runs)
    return [told or problem, listed_models, kept, *(values[name] for name in SETTINGS), *view]


def drawn(
    studio: Studio, models: Sequence[str], conversation: str, limit: int, page: int, runs: Any = None
) -> list[Any]:
    """Columns, panes, the tools of a conversation, the list."""
    current, models = number(conversation), models or []
    panes = filled(studio, models, current, limit, runs)
    columns = [gr.update(visible=place < len(models)) for place in range(PANES)]
    shown = [panes[place] if place < len(panes) else gr.skip() for place in range(PANES)]
    return [*columns, *shown, gr.update(visible=current is not None), listed(studio, page, current)]


def filled(
    studio: Studio, models: Sequence[str], conversation: int | None, limit: int, runs: Any = None
) -> list[dict[str, Any]]:
    """The panes of a conversation; each says whether there are turns before those shown."""
    runs = finished(studio) if runs is None else runs
    by_id = {run["id"]: run for run in runs}
    try:
        turns = [] if conversation is None else studio.chats.turns(conversation, limit=int(limit) + 1)
    except StudioError:
        turns = []
    more, turns = len(turns) > limit, turns[-int(limit) :]
    invite = {} if runs else {"invite": views.INVITE}
    return [views.pane(model, by_id.get(model), turns, earlier=more) | invite for model in models or []]


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
    return {"choices": [("none chosen", ""), *((task, task) for task in tasks)], "visible": len(tasks) > 1}


def finished(studio: Studio) -> list[dict[str, Any]]:
    """Runs that have an adapter, newest first."""
    return [run for run in studio.watch.menu(state="done", limit=RUNS) if run["method"] != BASE]


def listed(studio: Studio, page: int, current: int | None) -> dict[str, Any]:
    return views.history(studio.chats.page(limit=LISTED, offset=LISTED * (max(int(page), 1) - 1)), current)


def where(studio: Studio, seen: str) -> tuple[Any, Any]:
    text = studio.watch.shared.of("where", int(time.monotonic() / WHERE_SECONDS), lambda: _where(studio))
    return (gr.skip(), gr.skip()) if text == seen else (text, text)


def _where(studio: Studio) -> str:
    try:
        return views.where(studio.chats.inference.workers(), studio.dispatcher()["devices"])
    except StudioError as error:
        return ui.problem(error)


def warm(studio: Studio, models: Sequence[str]) -> None:
    """Have the models loaded while the question is being typed; what is wrong is said when it is asked."""
    try:
        studio.chats.warm(models or [])
    except StudioError:
        return


def number(text: Any) -> int | None:
    return int(text) if isinstance(text, str) and text.isdecimal() and len(text) < 12 else None
