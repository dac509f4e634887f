"""Where users are signed in: sessions that outlive the process. Imports no torch.

A browser holds a random key, the database its SHA-256. What it says of a user and their sessions is believed for a
moment (``Users.account``), so that a hundred pages that ask every second cost no reading of their own.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from core.errors import StudioError

if TYPE_CHECKING:
    from core.records import Records
    from core.users import Account, Users

IDLE = timedelta(hours=12)  # since somebody last opened a page or pressed something
LONGEST = timedelta(days=7)
USED = timedelta(minutes=5)  # how exactly the last use is stored
MOST = 1000  # of one user
KNOWN = 10_000  # in memory


@dataclass
class _Here:
    """What this process knows of a session: whose it is, its last use, and the last use that it tried to store."""

    user: str
    acted: datetime
    stored: datetime


class Sessions:
    """The sessions of one home; ``Users.sessions`` is one."""

    longest = LONGEST

    def __init__(self, users: Users, records: Records, clock: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self._users, self._records, self._clock = users, records, clock
        self._here: dict[str, _Here] = {}
        self._lock = threading.Lock()

    def start(self, account: Account) -> str:
        """The key of a new session of whoever proved to have this account; sweeps out what has ended."""
        from storage.queries import sessions

        key, now = secrets.token_urlsafe(32), self._clock()
        with self._records.write("viewer") as session:
            sessions.sweep(session, unused_since=now - IDLE, begun_before=now - LONGEST)
            user = account.actor.name or ""
            sessions.start(session, user=user, stamp=account.stamp, hash=_hash(key), at=now, most=MOST)
        return key

    def account(self, key: str) -> Account | None:
        """Whose session this is; None where it is forged, ended, unused or begun too long ago."""
        hashed = _hash(key)
        here = self._find(hashed) if key else None
        account = None if here is None else self._users.account(here.user)
        session = None if account is None else account.sessions.get(hashed)
        if here is None or session is None:
            self._here.pop(hashed, None)
            return None
        return account if self._lasts(session.began, max(session.acted, here.acted)) else None

    def acted(self, key: str) -> None:
        """Whoever has this session is there: what pages ask for by themselves does not count."""
        from storage.queries import sessions

        hashed, now = _hash(key), self._clock()
        if (here := self._here.get(hashed)) is None:
            return
        here.acted = now
        if abs(now - here.stored) > USED:
            here.stored = now
            with suppress(StudioError), self._records.write("viewer") as session:  # a full disk keeps nobody out
                sessions.used(session, hash=hashed, at=now)

    def end(self, key: str) -> None:
        """Sign out here, and nowhere else."""
        from storage.queries import sessions

        hashed = _hash(key)
        if self._find(hashed) is not None:
            with self._records.write("viewer") as session:
                sessions.end(session, hash=hashed)
            self._here.pop(hashed, None)

    def _find(self, hashed: str) -> _Here | None:
        """What is seen here for the first time is asked for, and its user anew: their sessions may be known without."""
        from storage.queries import sessions

        if (here := self._here.get(hashed)) is not None:
            return here
        with self._records.read() as session:
            row = sessions.find(session, hash=hashed)
        if row is None:
            return None
        self._users.forget()
        with self._lock:
            if len(self._here) >= KNOWN:
                self._here.clear()
            return self._here.setdefault(hashed, _Here(row.user, row.acted, row.acted))

    def _lasts(self, began: datetime, acted: datetime) -> bool:
        """Also where the clock was set back, which makes nothing last for ever."""
        now = self._clock()
        return abs(now - acted) <= IDLE and abs(now - began) <= LONGEST


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
