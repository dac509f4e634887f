"""How answers grow on the Chat page: one stream for all its panes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import gradio as gr

from app.pages import chat_state as state
from app.pages import chat_views as views
from app.pages.chat_views import PANES
from app.ui import components as ui
from core.errors import StudioError
from core.studio import Studio

FRAME = 0.1  # seconds between pictures: as often as the eye needs
PLACES = tuple(f"pane{place}" for place in range(PANES))
PARTS = ("box", "told", "conversation", "send", "halt", "models", "fresh", *PLACES, "tools", "list")


def shown(**parts: Any) -> list[Any]:
    """The outputs of the stream; what is not named stays as it is."""
    return [parts.get(name, gr.skip()) for name in PARTS]


def controls(answering: bool) -> dict[str, Any]:
    """What may be pressed while answers grow, and when they have ended."""
    parts = {name: gr.update(interactive=not answering) for name in ("send", "models", "fresh")}
    return parts | {"halt": gr.update(interactive=answering), "tools": gr.update(visible=not answering)}


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
    """The stream of the page. While it lasts, what it writes into is not changed by others."""
    try:
        panes = state.filled(studio, models, state.number(conversation), limit)
        wanted = {**settings, "system": settings["system"] or "", "task": settings["task"] or None}
        asking = studio.chats.ask(models or [], prompt or "", conversation=state.number(conversation), **wanted)
    except StudioError as error:
        yield shown(told=ui.problem(error))
        return
    askings[session] = asking
    names, told = list(asking.answers), ""
    try:
        for place in range(len(names)):
            _grow(panes, place, views.growing(prompt, None), again=False)
        yield shown(
            box="",
            told="",
            conversation=str(asking.conversation),
            list=state.listed(studio, 1, asking.conversation),
            **controls(True),
            **dict(zip(PLACES, panes, strict=False)),
        )
        for moved in frames(asking):
            places = [names.index(model) for model in moved]
            for place in places:
                _grow(panes, place, views.growing(prompt, asking.answers[names[place]]))
            yield shown(**{PLACES[place]: panes[place] for place in places})
    except StudioError as error:
        told = ui.problem(error)
    finally:
        with suppress(StudioError):
            asking.close()  # the browser may have gone
        if askings.get(session) is asking:
            del askings[session]
    for place, model in enumerate(names):
        _grow(panes, place, views.growing(prompt, asking.answers[model]))
    yield shown(
        told=told,
        list=state.listed(studio, 1, asking.conversation),
        **controls(False),
        **dict(zip(PLACES, panes, strict=False)),
    )


def _grow(panes: list[dict[str, Any]], place: int, turn: dict[str, Any], *, again: bool = True) -> None:
    """Put the newest turn below those of before; ``again``: in the place of its picture before."""
    before = panes[place]["turns"][:-1] if again else panes[place]["turns"]
    turn = views.placed(turn, panes[place].get("routed", True))
    panes[place] = panes[place] | {"turns": [*before, turn], "growing": turn["state"] == "growing"}


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
