"""Signing in: passwords, sessions, and attempts that take longer the more of them fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.auth import (
    FORGET_SECONDS,
    FREE_ATTEMPTS,
    FREE_FOR_ALL,
    LONGEST_FOR_ALL,
    LONGEST_WAIT,
    RENEW_SECONDS,
    SESSION_SECONDS,
    VARIABLE,
    Access,
    Password,
    Sessions,
    Throttle,
    network,
    password_from,
)
from core.errors import ConfigurationError


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


@pytest.mark.parametrize("text", ["", "short", "\nsecond line is long"])
def test_short_passwords_are_refused(tmp_path: Path, text: str):
    file = tmp_path / "password"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match="characters"):
        password_from(file)


def test_a_file_that_is_not_there_is_explained(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        password_from(tmp_path / "nothing")


def test_a_password_matches_itself_alone_and_is_not_kept():
    password = Password("correct horse ✓")
    assert password.matches("correct horse ✓")
    assert not any(map(password.matches, ("", "correct horse", "correct horse ✓ ", "\ud800")))
    assert "correct" not in repr(vars(password))


def test_a_session_ends_twelve_hours_after_it_was_last_renewed():
    clock = Clock()
    sessions = Sessions(clock)
    token = sessions.start()
    assert sessions.renewed(token) is None
    clock.now += RENEW_SECONDS + 1
    later = sessions.renewed(token)
    assert later and sessions.name(later) == sessions.name(token)
    clock.now += SESSION_SECONDS - RENEW_SECONDS
    assert sessions.name(token) is None and sessions.name(later)
    clock.now += SESSION_SECONDS
    assert sessions.name(later) is None and sessions.renewed(later) is None


def test_leaving_ends_every_token_of_a_session_and_no_other():
    clock = Clock()
    sessions = Sessions(clock)
    token, other = sessions.start(), sessions.start()
    clock.now += RENEW_SECONDS + 1
    later = sessions.renewed(token)
    sessions.end(token)
    assert sessions.name(token) is None and sessions.name(later) is None and sessions.name(other)


def test_tokens_cannot_be_made_up_or_changed():
    sessions = Sessions()
    name, began, signature = sessions.start().split(".")
    forged = [
        "",
        ".",
        "..",
        "é.1.ü",
        f"{name}.{began}.",
        f"{name}.{int(began) + 1}.{signature}",
        f"x{name}.{began}.{signature}",
        Sessions().start(),
    ]
    assert [sessions.name(token) for token in forged] == [None] * len(forged)


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


def test_a_right_password_does_not_count_while_an_address_waits():
    access = Access("correct horse")
    for _ in range(FREE_ATTEMPTS):
        assert access.sign_in("wrong", "10.0.0.1").token is None
    refused = access.sign_in("correct horse", "10.0.0.1")
    assert refused.token is None and 0 < refused.wait <= 1
    assert access.sessions.name(access.sign_in("correct horse", "10.0.0.2").token)
