"""A dispatcher that was killed while jobs need it is replaced by the web process; one that was stopped is not."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from core.home import Home, write_json
from core.jobs import service
from core.jobs.processes import identify
from core.jobs.service import dispatcher_status, ensure_dispatcher, stop_dispatcher, watch_over


@pytest.fixture
def home(tmp_path: Path):
    made = Home.open(tmp_path / "home")
    yield made
    stop_dispatcher(made)


def until(check: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def test_a_killed_dispatcher_is_replaced_and_a_stopped_one_is_not(home: Home) -> None:
    needed = threading.Event()
    with watch_over(home, needed.is_set, seconds=0.1):
        ensure_dispatcher(home)
        first = until(lambda: dispatcher_status(home).pid)
        os.kill(first, signal.SIGKILL)
        until(lambda: not dispatcher_status(home).alive)
        time.sleep(0.5)
        assert not dispatcher_status(home).alive, "started though nothing waits"
        needed.set()
        second = until(lambda: dispatcher_status(home).pid)
        assert second != first
        assert stop_dispatcher(home)
        time.sleep(1.0)
        assert not dispatcher_status(home).alive, "a stop that somebody asked for was undone"
        ensure_dispatcher(home)
        os.kill(until(lambda: dispatcher_status(home).pid), signal.SIGKILL)
        assert until(lambda: dispatcher_status(home).pid)


@pytest.fixture
def stand_in(home: Home, monkeypatch: pytest.MonkeyPatch):
    """Dispatchers that do nothing and say after 0.4 s that they are at work."""
    started: list[subprocess.Popen[bytes]] = []

    def ensure(home: Home) -> None:
        started.append(subprocess.Popen(["sleep", "60"]))
        facts = asdict(identify(started[-1].pid))
        write_json(home.dispatcher / "starting", facts)
        threading.Timer(0.4, write_json, (home.dispatcher / "pid", facts)).start()

    monkeypatch.setattr(service, "ensure_dispatcher", ensure)
    home.dispatcher.mkdir(parents=True, exist_ok=True)
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_one_that_dies_again_and_again_at_work_is_replaced_as_soon_each_time(home: Home, stand_in) -> None:
    with watch_over(home, lambda: True, seconds=0.05):
        for number in range(1, 7):
            until(lambda number=number: len(stand_in) == number, seconds=1.0)
            until(lambda: dispatcher_status(home).alive)
            time.sleep(0.2)
            stand_in[-1].kill()


def test_one_that_never_gets_to_work_is_started_more_and_more_seldom(home: Home, monkeypatch) -> None:
    started = []
    monkeypatch.setattr(service, "ensure_dispatcher", lambda home: started.append(time.monotonic()))
    with watch_over(home, lambda: True, seconds=0.05):
        time.sleep(1.5)
    assert 2 <= len(started) <= 6
    assert started[-1] - started[-2] > 2 * (started[1] - started[0])


def test_a_dispatcher_that_is_starting_is_not_started_again(home: Home) -> None:
    several = {ensure_dispatcher(home).pid for _ in range(4)}
    assert len(several) == 1
    assert until(lambda: dispatcher_status(home).pid) == several.pop()


def test_a_dispatcher_that_is_starting_can_be_stopped(home: Home) -> None:
    pid = ensure_dispatcher(home).pid
    assert stop_dispatcher(home) and identify(pid or 0) is None
    assert not dispatcher_status(home).alive and not stop_dispatcher(home)


def test_a_dispatcher_knows_no_password(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_PASSWORD", "correct horse battery")
    pid = ensure_dispatcher(home).pid
    assert b"correct horse" not in Path(f"/proc/{pid}/environ").read_bytes()
