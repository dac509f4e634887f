"""What must stand in a page before Gradio's scripts have run: its head= and css= arrive by script, later.

While a page is built and asks for what it shows, it keeps out of sight below a thin moving line. It comes into sight
once, filled, in its final place: nothing jumps. A page whose answer is late is shown as it is.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
import gradio.routes
from gradio.events import Dependency
from jinja2 import ChoiceLoader, DictLoader

from app.ui.theme import asset

TEMPLATE = "frontend/index.html"
FIRST = asset("first-paint.html")


def install() -> None:
    """Into the template of every page; once, however many studios a process serves."""
    environment = gradio.routes.templates.env
    loader = environment.loader
    if loader is None:
        return
    source = loader.get_source(environment, TEMPLATE)[0]
    if FIRST not in source:
        own = DictLoader({TEMPLATE: source.replace("<head>", "<head>" + FIRST, 1)})
        environment.loader = ChoiceLoader([own, loader])


def shown_when_filled(demo: gr.Blocks, before: set[int]) -> None:
    """Tell the current page that it is filled when its load handlers have answered: those beyond ``before``.

    These and its timers skip the queue: one request instead of three, and nothing of theirs waits for others.
    """
    own = {number: fn for number, fn in demo.fns.items() if number not in before and fn.fn is not None}
    for fn in own.values():
        if any(event in ("load", "tick") for _, event in fn.targets):
            fn.queue = False
    loads = [fn for fn in own.values() if any(event == "load" for _, event in fn.targets)]
    done: dict[str, Any] = {"js": f"() => window.tesseraFilled?.({len(loads)})", "api_visibility": "private"}
    for fn in loads:
        Dependency(demo, fn.get_config(), fn._id, fn.fn).then(None, None, None, **done)
