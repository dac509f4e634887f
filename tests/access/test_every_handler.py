"""Every handler of every page, called past its page: a viewer changes nothing, and nobody reads another's chats.

The handlers are read off the application and called with what would do something, in an order drawn by a seed, in one
tab, so that what one of them remembers is there for the next. The same calls of an admin are the control: they do.
"""

from __future__ import annotations

import hashlib
import random
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from fastapi import FastAPI
from sqlalchemy import update
from starlette.testclient import TestClient

from app import server
from app.auth import Access
from core.access import Actor, act_as
from core.errors import ConfigurationError
from storage import models
from storage.queries import chats
from tests.access.conftest import client_of, peopled
from tests.support import seed
from tests.support.seed import QuietStudio

TABS = count()
OWN = re.compile(r"""INSERT INTO "(users"|user_sessions"|api_tokens"|sqlite_sequence" VALUES\('api_tokens)""")
SECRET = "what Ben alone asked"
BEN, CLEO = Actor("ben", "researcher"), Actor("cleo", "researcher")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("handlers") / "home"


@pytest.fixture(scope="module")
def studio(home: Path) -> Iterator[QuietStudio]:
    """Runs of every state, a data set and a conversation, all of Ben."""
    with act_as(BEN):
        seed.few(home)
    made = peopled(home)
    with act_as(BEN), made.records.write() as session:
        session.execute(update(models.Run).values(owner="ben"))
        talk = chats.start(session, title=SECRET, models=["base"], owner="ben")
        asked = chats.ask(session, conversation=talk.id, text=SECRET, models=["base"], system="", settings={})
        chats.answer(session, question=asked.id, model="base", text=SECRET, tokens=3, seconds=1.0, ended="stop")
    made.chats.inference.connect = no_worker
    yield made
    made.close()


def no_worker(*_: object) -> None:
    raise ConfigurationError("No model is loaded in these tests.")


@pytest.fixture(scope="module")
def access(studio: QuietStudio) -> Access:
    return Access(studio.users)


@pytest.fixture(scope="module")
def app(studio: QuietStudio, access: Access) -> FastAPI:
    return server.build(studio, access=access)


@pytest.fixture(scope="module")
def config(app: FastAPI, access: Access) -> dict[str, Any]:
    """What Gradio tells of all pages."""
    return client_of(app, access, "ada").get("/config").json()


def called(enter: Callable[[], TestClient], config: dict[str, Any], text: str, *pages: str) -> str:
    """All that the handlers (of some pages) answer to one person, whose every field says ``text``; some sign out."""
    client, tab = enter(), f"tab-{next(TABS)}"
    parts = {one["id"]: {**one, "props": dict(one["props"])} for one in config["components"]}
    of_pages = {number for page in pages for number in config["page"][page]["dependencies"]}
    handlers = [one for one in config["dependencies"] if one["backend_fn"] and (not pages or one["id"] in of_pages)]
    random.Random(7).shuffle(handlers)
    handlers.sort(key=lambda one: one["targets"][0][1] != "load")  # pages are opened before anything is pressed
    answers = []
    for one in handlers:
        body = {"data": [filled(parts[number], text) for number in one["inputs"]], "fn_index": one["id"]}
        event = {"run": text, "page": 1, "conversation": text, "name": text, "index": 0}
        sent = {**body, "session_hash": tab, "event_data": event}
        address = f"/gradio_api/run/x?run={text}&conversation={text}&turn=2&dataset=reviews&c={text}"
        answer = client.post(address, json=sent)
        if answer.status_code == 401:
            client = enter()
            answer = client.post(address, json=sent)
        for number, told in zip(one["outputs"], answer.json().get("data") or [], strict=False):
            parts[number]["props"] |= told if isinstance(told, dict) and "__type__" in told else {}
        answers.append(answer.text)
    return "\n".join(answers)


def filled(part: dict[str, Any], text: str) -> Any:
    """What somebody could enter into a component."""
    props = part["props"]
    choices = [one if isinstance(one, str) else one[1] for one in props.get("choices") or []]
    match part["type"]:
        case "textbox":
            return text
        case "dropdown" | "radio":
            chosen = choices[0] if choices else text if props.get("allow_custom_value") else None
            return chosen if not props.get("multiselect") else [chosen] if chosen else []
        case "checkboxgroup":
            return choices
        case "checkbox":
            return True
        case "number" | "slider":
            return props.get("value") or 1
        case "state" | "file":
            return None
        case _:
            return props.get("value")


def dump(home: Path) -> list[str]:
    """Every row of the database and every file of the home.

    Without what everybody may change: their own session, password and tokens; and caches, which nobody misses.
    """
    with closing(sqlite3.connect(home / "tessera.db")) as connection:
        rows = [line for line in connection.iterdump() if not OWN.match(line)]
        rows += map(str, connection.execute("SELECT name, role, disabled FROM users ORDER BY name").fetchall())
    files = [
        (str(path.relative_to(home)), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.relative_to(home).parts[0] not in ("cache", "dispatcher")
        if not path.name.startswith("tessera.db")
    ]
    return [*rows, *map(str, files)]


@pytest.fixture(scope="module")
def pages(app: FastAPI) -> gr.Blocks:
    return next(found for route in app.routes if (found := getattr(getattr(route, "app", None), "blocks", None)))


def test_all_handlers_are_asked_and_wrapped(config: dict[str, Any], pages: gr.Blocks):
    own = [fn for fn in pages.fns.values() if fn.fn is not None]
    assert len(own) == len([one for one in config["dependencies"] if one["backend_fn"]]) > 100
    for fn in own:
        assert getattr(fn.fn, "__wrapped__", None) is not None, fn.name
    strays = [type(part).__name__ for part in pages.blocks.values() if getattr(part, "server_fns", None)]
    assert strays == []  # functions that pages call past the events would have to be wrapped too


def test_a_handler_without_a_session_is_refused(pages: gr.Blocks):
    for fn in pages.fns.values():
        if fn.fn is not None:
            with pytest.raises(gr.Error, match="Sign in again"):
                found = fn.fn(*[None] * len(fn.inputs))
                next(found)


def test_a_viewer_changes_nothing_whatever_they_call_and_an_admin_does(
    app: FastAPI, access: Access, config: dict[str, Any], home: Path
):
    viewer, admin = (partial(client_of, app, access, name) for name in ("vera", "ada"))
    before = dump(home)
    called(viewer, config, "run-1")
    called(viewer, config, "1", "chat")
    assert dump(home) == before
    called(admin, config, "run-1", "runs")
    assert dump(home) != before


def test_conversations_are_told_to_their_owner_alone(app: FastAPI, access: Access, config: dict[str, Any]):
    for name in ("cleo", "ada"):
        assert SECRET not in called(partial(client_of, app, access, name), config, "1", "chat"), name
    assert SECRET in called(partial(client_of, app, access, "ben"), config, "1", "chat")
