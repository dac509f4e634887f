"""Signing in: one password, signed sessions, and attempts that take longer the more of them fail."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigurationError

VARIABLE = "TESSERA_PASSWORD"
SHORTEST = 8
SESSION_SECONDS = 12 * 3600
RENEW_SECONDS = 600  # a session older than this gets a new end with the next answer
FORGET_SECONDS = 900
FREE_ATTEMPTS, LONGEST_WAIT = 5, 300.0
FREE_FOR_ALL, LONGEST_FOR_ALL = 40, 10.0  # short, so that strangers cannot lock the owner out
ADDRESSES_KEPT = 10_000

Clock = Callable[[], float]


def password_from(file: Path | None = None) -> str | None:
    """The password of ``file`` (its first line), else of ``TESSERA_PASSWORD``; None where neither is given.

    The variable is taken out of the environment, so that workers and their logs never see it.
    """
    given = os.environ.pop(VARIABLE, None)
    if file is not None:
        try:
            given = file.expanduser().read_text("utf-8").partition("\n")[0].rstrip("\r")
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"The password file {file} cannot be read: {error}.", "Check path and rights."
            ) from error
    if given is None:
        return None
    if len(given) < SHORTEST:
        raise ConfigurationError(
            f"The password has {len(given)} characters.",
            f"Choose at least {SHORTEST}: who signs in can train, read and delete everything.",
        )
    return given


class Password:
    """What is needed to check a password, without the password: its scrypt hash."""

    def __init__(self, password: str) -> None:
        self._salt = secrets.token_bytes(16)
        self._hash = self._digest(password)

    def matches(self, given: str) -> bool:
        return hmac.compare_digest(self._digest(given), self._hash)

    def _digest(self, password: str) -> bytes:
        return hashlib.scrypt(password.encode("utf-8", "replace"), salt=self._salt, n=2**14, r=8, p=1)


class Sessions:
    """Signed tokens that end by themselves; the key lives as long as the process."""

    def __init__(self, clock: Clock = time.time) -> None:
        self._key = secrets.token_bytes(32)
        self._clock = clock
        self._ended: dict[str, float] = {}
        self._lock = threading.Lock()

    def start(self, name: str | None = None) -> str:
        """A token for a session; ``name`` carries one on."""
        body = f"{name or secrets.token_urlsafe(18)}.{int(self._clock())}"
        return f"{body}.{self._sign(body)}"

    def name(self, token: str) -> str | None:
        """The session of a token, or None: forged, ended or too old."""
        body, _, signature = token.rpartition(".")
        if not body or not hmac.compare_digest(self._sign(body).encode(), signature.encode("utf-8", "replace")):
            return None
        name, _, began = body.rpartition(".")
        return None if self._clock() - int(began) > SESSION_SECONDS or name in self._ended else name

    def renewed(self, token: str) -> str | None:
        """A token with a later end, where it is time for one."""
        name = self.name(token)
        began = int(token.split(".")[1]) if name else 0
        return self.start(name) if name and self._clock() - began > RENEW_SECONDS else None

    def end(self, token: str) -> None:
        """No token of this session counts any more."""
        if (name := self.name(token)) is None:
            return
        with self._lock:
            now = self._clock()
            self._ended = {one: at for one, at in self._ended.items() if now - at < 2 * SESSION_SECONDS} | {name: now}

    def _sign(self, body: str) -> str:
        digest = hmac.new(self._key, body.encode("utf-8", "replace"), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


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


class Throttle:
    """Failed attempts of each address, and of all together."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._all = _Failures()
        self._by: dict[str, _Failures] = {}

    def wait(self, address: str) -> float:
        now = self._clock()
        own = self._by.get(network(address))
        mine = own.wait(now, FREE_ATTEMPTS, LONGEST_WAIT) if own else 0.0
        return max(mine, self._all.wait(now, FREE_FOR_ALL, LONGEST_FOR_ALL))

    def failed(self, address: str) -> None:
        now = self._clock()
        if len(self._by) >= ADDRESSES_KEPT:
            del self._by[min(self._by, key=lambda name: self._by[name].newest)]
        for one in (self._by.setdefault(network(address), _Failures()), self._all):
            one.count, one.newest = one.count + 1, now

    def succeeded(self, address: str) -> None:
        self._by.pop(network(address), None)


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
    """Sign-in of one served studio. Attempts are checked one at a time: many at once would outrun the throttle."""

    def __init__(self, password: str) -> None:
        self._password = Password(password)
        self._throttle = Throttle()
        self._lock = threading.Lock()
        self.sessions = Sessions()

    def sign_in(self, given: str, address: str) -> Attempt:
        with self._lock:
            wait = self._throttle.wait(address)
            if wait > 0:
                return Attempt(None, wait)
            if self._password.matches(given):
                self._throttle.succeeded(address)
                return Attempt(self.sessions.start())
            self._throttle.failed(address)
            return Attempt(None, self._throttle.wait(address))
