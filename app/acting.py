"""Handlers run as whoever sent the event: each is wrapped once, after its page is filled."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import gradio as gr
from gradio.blocks import BlockFunction
from gradio.context import LocalContext

from app.auth import Access
from app.holders import TABS
from app.sign_in import actor_of, token_of
from app.ui import components as ui
from core.access import Actor, act_as
from core.errors import StudioError

log = logging.getLogger("tessera.pages")
UNEXPECTED = "The page sent something that cannot be used, so nothing was changed. Reload the page and try again."
BY_ITSELF = {"tick", "load", "unload"}  # events that say nothing of a person being there


def protect(fns: Iterable[BlockFunction], access: Access) -> None:
    """Wrap the functions of handlers; what runs in the browser alone has none."""
    for fn in fns:
        if fn.fn is not None:
            fn.fn = as_actor(fn.fn, access, person=not {event for _, event in fn.targets} <= BY_ITSELF)


def as_actor(handler: Callable[..., Any], access: Access, *, person: bool) -> Callable[..., Any]:
    """``handler`` run as the actor of its request, asked anew at every step of a generator; refused without one.

    ``person``: the event comes from somebody who is there, so that their session does not end as unused.
    """
    if inspect.iscoroutinefunction(handler) or inspect.isasyncgenfunction(handler):
        raise TypeError(f"{handler} is asynchronous; handlers run in threads.")

    @wraps(handler)
    def call(*args: Any, **named: Any) -> Any:
        with _acting(access, person):
            return handler(*args, **named)

    @wraps(handler)
    def steps(*args: Any, **named: Any) -> Iterator[Any]:
        # Each step may run in another thread with a context of its own, so the actor is set for each alone.
        first = who(access, person)
        growing = handler(*args, **named)
        try:
            while True:
                with _acting(access, person=False):
                    try:
                        value = next(growing)
                    except StopIteration:
                        return
                yield value
        finally:
            with act_as(first):
                growing.close()

    return steps if inspect.isgeneratorfunction(handler) else call


@contextmanager
def _acting(access: Access, person: bool) -> Iterator[None]:
    with act_as(who(access, person)):
        try:
            yield
        except StudioError as error:
            raise gr.Error(ui.escape(error), print_exception=False) from error
        except gr.Error:
            raise
        except Exception as error:  # what no page sends, or a fault of ours: the log has it, the person a sentence
            log.exception("A handler of the pages failed")
            raise gr.Error(UNEXPECTED, print_exception=False) from error


def who(access: Access, person: bool) -> Actor:
    """The actor of the event that runs here."""
    request = LocalContext.request.get(None)
    sent = getattr(request, "request", None)
    scope = {"headers": [], "path": "", "type": "http"} if sent is None else sent.scope
    try:
        actor = actor_of(access, scope)
    except StudioError as error:
        raise gr.Error(ui.escape(error), print_exception=False) from error
    if actor is None or not TABS.theirs(getattr(request, "session_hash", None) or "", actor):
        raise gr.Error("Your session has ended. Sign in again.", print_exception=False)
    if person:
        access.sessions.acted(token_of(scope))
    return actor
