"""Whatever dies while an answer grows: what is kept of it is clear, no device stays held, the next one is answered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from app.pages import chat_views
from core import chat_growing
from core.chat import client
from core.chat.serve import Server
from core.home import PROJECT
from core.jobs.devices import Device
from core.jobs.dispatcher import Dispatcher
from core.jobs.processes import identify
from core.jobs.service import register_web
from core.schema import ModelSpec
from core.studio import Studio
from storage.queries import holds
from tests.support.talkers import spec, talker

LONG = {"max_new_tokens": 400, "temperature": 1.5, "top_p": 1.0}
SHORT = {"max_new_tokens": 4, "temperature": 0}
ASK = """
import sys
from core.studio import Studio
for answer in Studio(sys.argv[1]).chats.ask(["plain"], "Tell.", max_new_tokens=400, temperature=1.5, top_p=1.0):
    print(answer.tokens, flush=True)
"""


@pytest.fixture
def plain(home, base):
    made = Studio(home.root)
    talker(made, spec(base, method={"name": "base"}), name="plain")
    yield made
    made.chats.inference.stop()
    made.close()


def until(check, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"waited {seconds} s"
        time.sleep(0.02)
    return found


def kept(studio: Studio):
    """The newest conversation's last question, and its answer as pages show it."""
    chat = studio.chats.page().rows[0]
    question, (answer,) = studio.chats.turns(chat.id)[-1]
    return answer, chat_views.kept(question.text, answer)


def workers(studio: Studio) -> list[int]:
    return [one["pid"] for one in studio.chats.inference.workers()]


def test_who_asked_dies_with_the_worker_and_the_answer_is_interrupted(plain):
    """As a web server that is killed: nobody is left who could keep the answer."""
    asking = subprocess.Popen([sys.executable, "-c", ASK, plain.home.root], cwd=PROJECT, stdout=subprocess.PIPE)
    asking.stdout.readline()
    answer, shown = kept(plain)
    assert answer.ended is None and shown["state"] == "growing" and "another tab" in shown["note"]
    for pid in (*workers(plain), asking.pid):
        os.kill(pid, signal.SIGKILL)
    asking.wait()
    answer, shown = kept(plain)
    assert (answer.ended, shown["state"]) == ("failed", "failed") and "Ask again" in shown["problem"]
    assert "interrupted" in plain.chats.export(answer.conversation_id)
    again = list(plain.chats.ask(["plain"], "And now?", conversation=answer.conversation_id, **SHORT))[-1]
    assert again.ended in ("end", "length"), again
    assert [one.ended for _, (one,) in plain.chats.turns(answer.conversation_id)] == ["failed", again.ended]


def test_an_answer_that_nobody_hears_any_more_does_not_grow_for_ever(plain):
    asking = plain.chats.ask(["plain"], "Tell.", **LONG)
    assert kept(plain)[0].ended is None
    del asking
    assert kept(plain)[0].ended == "failed" and not chat_growing.asked


def test_a_worker_killed_while_it_starts_is_said(plain, monkeypatch):
    """No word of a worker before it is taken for its own."""
    honest, started = subprocess.Popen, []

    def dying(*given, **wishes):
        child = honest(*given, **wishes)
        started.append(child.pid)
        child.kill()
        return child

    log = plain.chats.inference._folder(ModelSpec(base=plain.run("plain")["base"]), "auto") / "log"
    log.parent.mkdir(parents=True)
    log.write_text("the last word of the worker before\n")
    monkeypatch.setattr("core.inference.subprocess.Popen", dying)
    answer = list(plain.chats.ask(["plain"], "Say red.", **SHORT))[-1]
    assert answer.ended == "failed" and "SIGKILL" in answer.problem and "Ask again" in answer.hint
    assert started and identify(started[0]) is None and log.exists()


@pytest.mark.long
def test_a_worker_that_hangs_is_left_when_stop_is_pressed(plain, monkeypatch):
    monkeypatch.setattr(client, "STOP_SECONDS", 0.5)
    asking = plain.chats.ask(["plain"], "Tell.", **LONG)
    stream = iter(asking)
    next(stream)
    (pid,) = workers(plain)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    asking.stop()
    answer = list(stream)[-1]
    assert answer.ended == "failed" and time.monotonic() - began < 5
    os.kill(pid, signal.SIGKILL)


def held(studio: Studio) -> list[int]:
    with studio.records.read() as session:
        return [hold.pid for hold in holds.every(session)]


def take(studio: Studio, pid: int) -> bool:
    process = identify(pid)
    facts = {"pid": pid, "process_start": process.start, "boot": process.boot}
    with studio.records.write() as session:
        return holds.take(session, holder=f"of {pid}", device="cuda:0", title="chat", **facts)


@pytest.fixture
def other():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_the_device_of_a_killed_worker_is_forgotten(plain, other):
    dispatcher = Dispatcher(plain.home, devices=lambda: [Device("cuda:0", "A", visible="0")])
    with register_web(plain.home):
        assert take(plain, other.pid)
        dispatcher.step()
        assert held(plain) == [other.pid]
        other.kill()
        other.wait()
        dispatcher._beat_at = float("-inf")
        dispatcher.step()
    assert held(plain) == [], "the hold of a dead process stays until somebody wants the device"
    dispatcher.database.close()


def test_a_device_that_was_not_handed_over_is_held_from_the_next_question_on(plain, other, monkeypatch):
    """Its starter died between starting the worker and naming it: else a job would get the device beside it."""
    inference, model, asked = plain.chats.inference, ModelSpec(base="b"), []
    server = Server(inference._folder(model, "auto"), {"device": "cuda", "held": "cuda:0"}, plain.home)
    assert server.open()
    monkeypatch.setattr("core.inference._signal", lambda process, number: asked.append((process.pid, number)))
    monkeypatch.setattr(type(inference), "_start", lambda *_: "another worker")
    try:
        for _ in range(2):
            inference.connect(model).close()
            assert held(plain) == [os.getpid()]
        with plain.records.write() as session:
            holds.release(session, holder=holds.every(session)[0].holder)
        assert take(plain, other.pid), "somebody else has it by now"
        assert inference.connect(model) == "another worker" and asked == [(os.getpid(), signal.SIGTERM)]
    finally:
        server.close()
