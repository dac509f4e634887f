"""Signing in: passwords, and attempts that take longer the more of them fail."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from app.auth import (
    FORGET_SECONDS,
    FREE_ATTEMPTS,
    FREE_FOR_ALL,
    FREE_FOR_NAME,
    LONGEST_FOR_ALL,
    LONGEST_FOR_NAME,
    LONGEST_WAIT,
    VARIABLE,
    Access,
    Throttle,
    network,
    password_from,
)
from core.access import Actor
from core.errors import ConfigurationError
from core.users import Account


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_the_variable_is_taken_out_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "correct horse")
    assert password_from() == "correct horse"
    assert password_from() is None


def test_the_first_line_of_a_file_wins_over_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "from the variable")
    file = tmp_path / "password"
    file.write_text("from the file\r\nnot this\n")
    assert password_from(file) == "from the file"


def test_a_file_that_is_not_there_is_explained(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        password_from(tmp_path / "nothing")


def test_failures_of_one_address_make_it_wait_longer_and_longer():
    clock = Clock()
    throttle = Throttle(clock)
    waits = []
    for _ in range(20):
        waits.append(throttle.wait("10.0.0.1"))
        clock.now += waits[-1]
        throttle.failed("10.0.0.1")
    assert waits[:FREE_ATTEMPTS] == [0] * FREE_ATTEMPTS
    assert waits[FREE_ATTEMPTS : FREE_ATTEMPTS + 4] == [1, 2, 4, 8] and max(waits) == LONGEST_WAIT
    assert throttle.wait("10.0.0.2") == 0
    clock.now += FORGET_SECONDS + 1
    assert throttle.wait("10.0.0.1") == 0


def test_many_addresses_together_slow_everybody_down_a_little():
    throttle = Throttle(Clock())
    for number in range(FREE_FOR_ALL + 30):
        throttle.failed(f"10.0.{number}.1")
    assert throttle.wait("10.9.9.9") == LONGEST_FOR_ALL


def test_addresses_that_one_person_has_count_as_one():
    assert network("2001:db8::1") == network("2001:db8::ffff:1") != network("2001:db8:0:1::1")
    assert network("10.0.0.1") != network("10.0.0.2") and network("unix") == "unix"


def test_guesses_at_one_name_from_many_addresses_are_slowed_down():
    clock = Clock()
    throttle = Throttle(clock)
    for number in range(FREE_FOR_NAME + 10):
        throttle.failed(f"10.0.{number}.1", "Ada")
    assert throttle.wait("10.9.9.9", "ada ") == LONGEST_FOR_NAME
    assert throttle.wait("10.9.9.9", "ben") == 0
    clock.now += FORGET_SECONDS + 1
    assert throttle.wait("10.9.9.9", "ada") == 0


class OneUser:
    """Stands in for ``core.users.Users``."""

    sessions = SimpleNamespace(start=lambda account: f"a key of {account.actor.name}")

    def check(self, name: str, password: str) -> Account | None:
        return Account(Actor(name, "researcher"), "1") if password == "correct horse" else None


def test_a_right_password_does_not_count_while_an_address_waits():
    access = Access(OneUser())
    for _ in range(FREE_ATTEMPTS):
        assert access.sign_in("ada", "wrong", "10.0.0.1").token is None
    refused = access.sign_in("ada", "correct horse", "10.0.0.1")
    assert refused.token is None and 0 < refused.wait <= 1
    assert access.sign_in("ada", "correct horse", "10.0.0.2").token == "a key of ada"
