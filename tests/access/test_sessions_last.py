"""A session outlives the process that began it, and ends everywhere; asking for it costs next to nothing."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from app import sign_in
from app.auth import Access
from core import sessions as module
from core.errors import ConfigurationError
from core.home import PROJECT
from core.sessions import IDLE, LONGEST, USED, Sessions
from core.studio import Studio
from storage.models import UserSession
from tests.access.conftest import password
from tests.support.seed import QuietStudio

HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(studio: QuietStudio, clock: Clock) -> Sessions:
    return Sessions(studio.users, studio.records, clock)


@pytest.fixture
def other(studio: QuietStudio, clock: Clock) -> Iterator[Sessions]:
    """The sessions of the same home in what could be another process."""
    second = Studio(studio.home.root)
    yield Sessions(second.users, second.records, clock)
    second.close()


def begun(studio: QuietStudio, sessions: Sessions, name: str = "ben") -> str:
    account = studio.users.check(name, password(name))
    assert account is not None
    return sessions.start(account)


def kept(studio: QuietStudio) -> int:
    with studio.records.read() as session:
        return session.scalar(select(func.count()).select_from(UserSession)) or 0


def name_of(sessions: Sessions, key: str) -> str | None:
    account = sessions.account(key)
    return None if account is None else account.actor.name


def test_another_process_knows_it_and_its_end(studio: QuietStudio, sessions: Sessions, other: Sessions):
    key, second = begun(studio, sessions), begun(studio, sessions)
    assert name_of(other, key) == name_of(other, second) == "ben"
    sessions.end(key)
    assert name_of(sessions, key) is None and name_of(sessions, second) == "ben"
    deadline = time.monotonic() + 10
    while name_of(other, key) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert name_of(other, key) is None and name_of(other, second) == "ben"
    newer = begun(studio, sessions)  # at once, though ben's sessions were read a moment ago
    assert name_of(other, newer) == "ben"


def test_a_session_ends_unused_or_old(studio: QuietStudio, sessions: Sessions, clock: Clock):
    key, unused = begun(studio, sessions), begun(studio, sessions)
    clock.now += IDLE - SECOND
    assert name_of(sessions, key)
    sessions.acted(key)
    clock.now += 2 * SECOND
    assert name_of(sessions, key) and name_of(sessions, unused) is None
    began = clock.now
    while clock.now - began < LONGEST:
        clock.now += IDLE - SECOND
        sessions.acted(key)
    assert name_of(sessions, key) is None


def test_the_last_use_is_stored_now_and_then(
    studio: QuietStudio, sessions: Sessions, other: Sessions, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    key, writes, write = begun(studio, sessions), [], studio.records.write
    assert name_of(other, key), "it is known there from now on"
    monkeypatch.setattr(studio.records, "write", lambda role="researcher": writes.append(role) or write(role))
    for _ in range(40):
        clock.now += USED / 10
        assert name_of(sessions, key)
        sessions.acted(key)
    assert len(writes) == 3
    clock.now += IDLE - USED
    other._users.forget()  # as it does by itself after a second
    assert name_of(other, key), "what the other process stored is the last use here"
    clock.now += USED
    assert name_of(other, key) is None


def test_a_database_that_takes_no_writes_keeps_nobody_out(
    studio: QuietStudio, sessions: Sessions, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    def full(_: object) -> None:
        raise ConfigurationError("The disk is full.", "Make room.")

    key = begun(studio, sessions)
    assert name_of(sessions, key)
    monkeypatch.setattr(studio.records, "write", full)
    for _ in range(30):
        clock.now += HOUR
        sessions.acted(key)
        assert name_of(sessions, key)
    with pytest.raises(ConfigurationError, match="disk is full"):
        sessions.end(key)
    assert name_of(sessions, key), "who was not signed out is not told so"


def test_a_hundred_browsers_that_ask_every_second_are_looked_up_once(
    studio: QuietStudio, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
):
    keys, reads, read = [begun(studio, sessions) for _ in range(100)], [], studio.records.read
    assert all(name_of(sessions, key) for key in keys)
    monkeypatch.setattr(studio.records, "read", lambda: reads.append(1) or read())
    began = time.monotonic()
    assert all(name_of(sessions, key) for _ in range(20) for key in keys)
    assert len(reads) <= 1 + (time.monotonic() - began), "2,000 questions"


def test_keys_cannot_be_made_up_and_are_not_kept(studio: QuietStudio, sessions: Sessions):
    key = begun(studio, sessions)
    for forged in ("", key[:-1], key + "x", key.swapcase(), "\ud800", hashlib.sha256(key.encode()).hexdigest()):
        assert sessions.account(forged) is None
    assert name_of(sessions, key) and key not in repr(vars(sessions))
    studio.close()
    stored = b"".join(path.read_bytes() for path in studio.home.root.glob("tessera.db*"))
    assert hashlib.sha256(key.encode()).hexdigest().encode() in stored and key.encode() not in stored


def test_what_has_ended_is_swept_out(studio: QuietStudio, sessions: Sessions, clock: Clock):
    for name in ("ben", "ben", "cleo", "vera"):
        begun(studio, sessions, name)
    studio.users.remove("vera")
    assert kept(studio) == 3
    studio.users.end_sessions("cleo")
    begun(studio, sessions, "ada")
    assert kept(studio) == 3
    clock.now += IDLE + SECOND
    begun(studio, sessions, "ada")
    assert kept(studio) == 1


def test_beyond_so_many_of_one_user_those_unused_for_longest_end(
    studio: QuietStudio, sessions: Sessions, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "MOST", 3)
    keys, cleo = [], begun(studio, sessions, "cleo")
    for _ in range(4):
        clock.now += HOUR
        keys.append(begun(studio, sessions))
        assert name_of(sessions, keys[0])
        sessions.acted(keys[0])
    assert [name_of(sessions, key) for key in keys] == ["ben", None, "ben", "ben"]
    assert name_of(sessions, cleo) == "cleo"


def test_a_clock_that_was_ahead_makes_no_session_endless(studio: QuietStudio, sessions: Sessions, clock: Clock):
    clock.now += 400 * 24 * HOUR
    ahead = begun(studio, sessions)
    clock.now -= 400 * 24 * HOUR
    assert name_of(sessions, ahead) is None
    key = begun(studio, sessions)
    clock.now -= HOUR  # as when it is set right
    assert name_of(sessions, key) == "ben"


def test_signing_in_and_out_without_a_database_says_so(studio: QuietStudio, monkeypatch: pytest.MonkeyPatch):
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    def gone(*_: object) -> None:
        raise ConfigurationError("The database /secret/tessera.db is gone.", "Restore it.")

    app = FastAPI()
    sign_in.add_routes(app, Access(studio.users))
    monkeypatch.setattr(studio.records, "read", gone)
    client = TestClient(app, cookies={sign_in.COOKIE: "x"})
    for answer in (client.get("/login"), client.post("/login", data={"name": "ada"}), client.post("/logout")):
        assert answer.status_code == 503 and "does not answer" in answer.text and "secret" not in answer.text


class Served:
    """The studio's own command in a process of its own, which ``kill`` ends as a power cut would."""

    def __init__(self, home: Path, log: Path) -> None:
        command = [sys.executable, "app.py", "--home", str(home), "serve", "--port", "0"]
        with log.open("w") as out:
            self._process = subprocess.Popen(
                command, cwd=PROJECT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=out, stderr=out
            )
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://[\d.]+:\d+", log.read_text("utf-8"))):
            assert self._process.poll() is None and time.monotonic() < deadline, log.read_text("utf-8")[-2000:]
            time.sleep(0.05)
        self.address = found[0]

    def status(self, key: str) -> int:
        """Of a page, as the browser with this cookie reloads it: 200, or 303 to the sign-in page."""
        cookies, headers = {sign_in.COOKIE: key}, {"accept": "text/html"}
        return httpx.get(f"{self.address}/account", cookies=cookies, headers=headers, timeout=60).status_code

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=20)


@pytest.mark.long
def test_who_signed_in_stays_so_after_the_server_was_killed_and_who_signed_out_too(studio: QuietStudio, tmp_path: Path):
    first = Served(studio.home.root, tmp_path / "first.log")
    try:
        keys = []
        for name in ("ben", "cleo", "vera"):
            form = {"name": name, "password": password(name)}
            keys.append(httpx.post(f"{first.address}/login", data=form, timeout=60).cookies[sign_in.COOKIE])
        assert [first.status(key) for key in keys] == [200, 200, 200]
        httpx.post(f"{first.address}/logout", cookies={sign_in.COOKIE: keys[1]}, timeout=60)
        assert first.status(keys[1]) == 303
    finally:
        first.kill()
    studio.users.disable("vera")
    second = Served(studio.home.root, tmp_path / "second.log")
    try:
        assert [second.status(key) for key in keys] == [200, 303, 303]
    finally:
        second.kill()
