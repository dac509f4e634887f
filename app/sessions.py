"""What Gradio keeps and does for each open tab, kept small: a hundred tabs look at the studio every second.

Gradio copies the description of every component of every page for each session, keeps it for as long as the server
lives, and builds a component anew for each output that a handler leaves as it is. None of that is needed here.
"""

from __future__ import annotations

from copy import copy
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.blocks import BlockFunction
from gradio.state_holder import SessionState, StateHolder

from app import uploads

CLOSED_KEPT = 50  # a tab that comes back, of a computer that slept, finds its state again
MOST = 2_000
FORGOTTEN_AFTER = timedelta(hours=24)
SKIP = gr.skip()


class Pages(gr.Blocks):
    """Blocks that take files from their own folder alone, and in which an output that stays as it is costs nothing."""

    async def preprocess_data(self, block_fn: BlockFunction, inputs: list[Any], *more: Any, **named: Any) -> list[Any]:
        uploads.check_named(inputs)
        return await super().preprocess_data(block_fn, inputs, *more, **named)

    async def postprocess_data(
        self, block_fn: BlockFunction, predictions: list[Any] | dict[Any, Any], state: SessionState | None
    ) -> list[Any]:
        outputs = block_fn.outputs
        if block_fn.batch or not isinstance(predictions, list | tuple) or not 1 < len(outputs) == len(predictions):
            return await super().postprocess_data(block_fn, predictions, state)
        told = [place for place, value in enumerate(predictions) if not _stays(value)]
        found: list[Any] = [None if block.stateful else dict(SKIP) for block in outputs]
        if told:
            part = copy(block_fn)
            part.outputs = [outputs[place] for place in told]
            values = [predictions[place] for place in told]
            data = await super().postprocess_data(part, values if len(values) > 1 else values[0], state)
            for place, value in zip(told, data, strict=True):
                found[place] = value
        return found


def _stays(value: Any) -> bool:
    return isinstance(value, dict) and value == SKIP


class Sessions(StateHolder):
    """The states of open tabs, and of the last few that were closed."""

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self._forget()
            self.session_data[session_id] = State(self.blocks)
        return super().__getitem__(session_id)

    def _forget(self) -> None:
        """Drop what nobody comes back for; the dictionary is in the order of last use."""
        with self.lock:
            long_ago = datetime.now() - FORGOTTEN_AFTER
            closed = [name for name, one in self.session_data.items() if one.is_closed]
            old = [name for name, used in self.time_last_used.items() if used < long_ago]
            for name in {*closed[: max(0, len(closed) - CLOSED_KEPT)], *old}:
                self.session_data.pop(name, None)
                self.time_last_used.pop(name, None)


class State(SessionState):
    """One tab's state; a component is described when the tab first changes it."""

    def __init__(self, blocks: gr.Blocks) -> None:
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks={}))  # type: ignore[arg-type]


def install(app: FastAPI, pages: gr.Blocks) -> None:
    """Have the application that serves ``pages`` keep its sessions here."""
    pages.state_session_capacity = MOST
    pages.has_launched = True  # else Gradio checks of no file, in an event or an answer, where it lies
    for route in app.routes:
        served = getattr(route, "app", None)
        if getattr(served, "blocks", None) is pages:
            served.state_holder = Sessions()
            served.state_holder.set_blocks(pages)
