"""Signing in by name and password: attempts take longer the more of them fail. These are counted in memory alone."""

from __future__ import annotations

import ipaddress
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.access import LOCAL, Actor
from core.errors import ConfigurationError, StudioError

if TYPE_CHECKING:
    from core.users import Users

VARIABLE = "TESSERA_PASSWORD"
FORGET_SECONDS = 900
FREE_ATTEMPTS, LONGEST_WAIT = 5, 300.0
FREE_FOR_ALL, LONGEST_FOR_ALL = 40, 10.0  # short, so that strangers cannot lock the owner out
FREE_FOR_NAME, LONGEST_FOR_NAME = 10, 30.0  # the same
KEPT = 20_000  # addresses and names with failures

Clock = Callable[[], float]


def password_from(file: Path | None = None) -> str | None:
    """The password of ``file`` (its first line), else of ``TESSERA_PASSWORD``; None where neither is given.

    The variable is taken out of the environment, so that workers and their logs never see it.
    """
    given = os.environ.pop(VARIABLE, None)
    return given if file is None else first_line(file)


def first_line(file: Path) -> str:
    """What a password file holds."""
    try:
        return file.expanduser().read_text("utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The password file {file} cannot be read: {error}.", "Check path and rights."
        ) from error


@dataclass
class _Failures:
    count: int = 0
    newest: float = 0.0

    def wait(self, now: float, free: int, longest: float) -> float:
        """Seconds until the next attempt counts: 1, 2, 4, ... after the free ones."""
        if now - self.newest > FORGET_SECONDS:
            self.count = 0
        over = self.count - free
        return 0.0 if over < 0 else max(0.0, min(2.0 ** min(over, 30), longest) - (now - self.newest))

    def one_more(self, now: float) -> None:
        self.count, self.newest = self.count + 1, now


class Throttle:
    """Failed attempts of each address, for each name, and of all together."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._all = _Failures()
        self._by: dict[str, _Failures] = {}

    def wait(self, address: str, name: str = "") -> float:
        """Seconds until an attempt from this address for this name counts."""
        now = self._clock()
        waits = [self._all.wait(now, FREE_FOR_ALL, LONGEST_FOR_ALL)]
        for key, free, longest in _keys(address, name):
            if (own := self._by.get(key)) is not None:
                waits.append(own.wait(now, free, longest))
        return max(waits)

    def failed(self, address: str, name: str = "") -> None:
        now = self._clock()
        for key, _, _ in _keys(address, name):
            if key not in self._by and len(self._by) >= KEPT:
                del self._by[min(self._by, key=lambda one: self._by[one].newest)]
            self._by.setdefault(key, _Failures()).one_more(now)
        self._all.one_more(now)

    def succeeded(self, address: str, name: str = "") -> None:
        for key, _, _ in _keys(address, name):
            self._by.pop(key, None)


def _keys(address: str, name: str) -> list[tuple[str, int, float]]:
    """What failures are counted for: key, free attempts, longest wait."""
    keys = [(f"from {network(address)}", FREE_ATTEMPTS, LONGEST_WAIT)]
    return [*keys, (f"as {name.strip().lower()[:100]}", FREE_FOR_NAME, LONGEST_FOR_NAME)] if name.strip() else keys


def network(address: str) -> str:
    """Who is behind an address: a network of 64 bits in IPv6, since one person has all of it."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else address


@dataclass(frozen=True)
class Attempt:
    """``token`` where the password was right, else ``wait``: seconds until the next attempt counts."""

    token: str | None
    wait: float = 0.0


class Access:
    """Who may come into one served studio, and as whom.

    ``alone``: only this machine reaches the studio, so that without users everybody acts as its owner. Attempts to
    sign in are checked one at a time: many at once would outrun the throttle.
    """

    def __init__(self, users: Users, *, alone: bool = True) -> None:
        self._users, self.alone = users, alone
        self._throttle = Throttle()
        self._lock = threading.Lock()
        self.sessions = users.sessions

    @property
    def asks(self) -> bool:
        """Whether people have to say who they are."""
        return not self.alone or self._users.any()

    def strangers(self) -> bool:
        """Whether somebody may reach the studio who has no business there; also told where the database is gone."""
        with suppress(StudioError):
            return self.asks
        return not self.alone

    def sign_in(self, name: str, password: str, address: str) -> Attempt:
        with self._lock:
            wait = self._throttle.wait(address, name)
            if wait > 0:
                return Attempt(None, wait)
            if (account := self._users.check(name, password)) is not None:
                self._throttle.succeeded(address, name)
                return Attempt(self.sessions.start(account))
            self._throttle.failed(address, name)
            return Attempt(None, self._throttle.wait(address, name))

    def actor(self, session: str) -> Actor | None:
        """Who has this session; None where nobody does (any more)."""
        if not self.asks:
            return LOCAL
        account = self.sessions.account(session)
        return None if account is None else account.actor
