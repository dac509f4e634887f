"""Users of a home: adding them, checking their passwords, and their keys for programs. Imports no torch.

A home without users asks nobody who they are; from the first user on everybody signs in. API tokens are kept as
SHA-256 of 32 random bytes. What somebody does is allowed or refused by ``core.access``: admins manage everybody,
everybody manages themselves.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from core import access
from core.access import LOCAL, ROLES, Actor, Role
from core.errors import ConfigurationError, NotAllowedError, StudioError
from core.passwords import Passwords

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from core.data.store import DatasetStore
    from core.records import Records
    from core.sessions import Sessions
    from storage.queries.sessions import SessionRow
    from storage.queries.users import TokenRow, UserRow

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
LABEL = 100
TOKEN = "tsr_"
KNOWN_SECONDS = 1.0  # how long what the database said of a user is believed; changes made here count at once
USED_SECONDS = 300.0  # how exact a token's last use is


@dataclass(frozen=True)
class Account:
    """What a signed-in person is: their actor, the stamp that new sessions of theirs carry, and those by hash."""

    actor: Actor
    stamp: str
    sessions: Mapping[str, SessionRow] = field(default_factory=dict)


@dataclass(frozen=True)
class Owned:
    """How much bears the name of somebody."""

    runs: int
    datasets: int
    conversations: int

    def __bool__(self) -> bool:
        return bool(self.runs or self.datasets or self.conversations)

    def __str__(self) -> str:
        """As ``3 runs and 1 conversation``; nothing of what there is none of."""
        counts = ((self.runs, "run"), (self.datasets, "data set"), (self.conversations, "conversation"))
        *most, last = [f"{n:,} {what}{'s' * (n != 1)}" for n, what in counts if n] or ["nothing"]
        return f"{', '.join(most)} and {last}" if most else last


class Users:
    """The users of one home; ``Studio.users`` is one."""

    def __init__(self, records: Records, datasets: DatasetStore) -> None:
        self._records, self._datasets, self.passwords = records, datasets, Passwords()
        self._known: dict[str, tuple[float, Account | None]] = {}
        self._forgotten = 0  # times that all was forgotten: what was read before that is not kept after it
        self._asked: tuple[float, bool] | None = None
        self._lock = threading.Lock()

    @cached_property
    def sessions(self) -> Sessions:
        """Where they are signed in."""
        from core.sessions import Sessions

        return Sessions(self, self._records)

    # Who comes in

    def any(self) -> bool:
        """Whether this home has users, so that everybody must sign in."""
        from storage.queries import users

        now = time.monotonic()
        if (asked := self._asked) is not None and now - asked[0] < KNOWN_SECONDS:
            return asked[1]
        with self._records.read() as session:
            found = users.any_user(session)
        self._asked = (now, found)
        return found

    def check(self, name: str, password: str) -> Account | None:
        """Who signs in with this password. Takes equally long whether or not there is such a user."""
        from storage.queries import users

        with self._records.read() as session:
            row = users.find(session, name=_plain(name))
        right = self.passwords.match(self.passwords.nobodys if row is None else row.password, password)
        if row is None or not right or row.disabled is not None:
            return None
        fresh = self.passwords.anew(row.password, password)
        with access.act_as(_actor(row)), self._changing("viewer") as session:
            from storage.types import now

            users.update(session, name=row.name, password=fresh, seen=now())
        return _account(row)  # with the stamp of the password that was checked: it may have been changed since

    def account(self, name: str) -> Account | None:
        """A user who may sign in, by name; None where there is none (any more), or they are disabled."""
        from storage.queries import sessions, users

        now = time.monotonic()
        with self._lock:
            if (known := self._known.get(name)) is not None and now - known[0] < KNOWN_SECONDS:
                return known[1]
            forgotten = self._forgotten
        with self._records.read() as session:
            row = users.find(session, name=name)
            known_sessions = sessions.of_user(session, user=name)
        found = None if row is None or row.disabled is not None else _account(row, known_sessions)
        with self._lock:
            if len(self._known) > 1000:
                self._known.clear()
            if forgotten == self._forgotten:
                self._known[name] = (now, found)
        return found

    def by_token(self, token: str) -> Actor | None:
        """Whose API token this is; None where it is unknown, revoked or expired, or its user is disabled."""
        from storage.queries import users
        from storage.types import now

        if not token.startswith(TOKEN) or len(token) > 200:
            return None
        with self._records.read() as session:
            found = users.by_hash(session, hash=_digest(token))
        if found is None:
            return None
        user, key = found
        if user.disabled is not None or (key.expires is not None and key.expires <= now()):
            return None
        if key.used is None or (now() - key.used).total_seconds() > USED_SECONDS:
            with suppress(StudioError), access.act_as(LOCAL), self._records.write() as session:  # the disk may be full
                users.used(session, token=key.id)
        return _actor(user)

    # Managing

    def list(self) -> list[UserRow]:
        """Everybody; for admins."""
        from storage.queries import users

        access.need("admin")
        with self._records.read() as session:
            return users.every(session)

    def add(self, name: str, role: Role, password: str, *, inherit: bool = False) -> UserRow:
        """The first one has to be an admin, and takes over the conversations from before there were users.

        A name that somebody had who was removed is given again only to ``inherit`` what bears it.
        """
        from storage.queries import chats, users

        name, role = _plain(name), _role(role)
        if not NAME.fullmatch(name):
            raise ConfigurationError(
                f"{name!r} is not a name for a user.",
                "Up to 40 letters a to z, digits, dots, dashes and underscores, a letter or digit first.",
            )
        hashed = self.passwords.hash(name, password)
        with self._changing("admin") as session:
            if users.find(session, name=name) is None and not inherit and (left := self._owned(session, name)):
                raise ConfigurationError(
                    f"Somebody was called {name} before and left {left}: a new user of this name would have that.",
                    "Choose another name, or add them with inherit if they are to have it (--inherit).",
                )
            if not users.any_user(session):
                if role != "admin":
                    raise ConfigurationError("The first user has to be an admin.", "Add an admin first, then others.")
                chats.adopt(session, owner=name)
            return users.add(session, name=name, role=role, password=hashed, stamp=_stamp())

    def set_role(self, name: str, role: Role) -> UserRow:
        """Their sessions end."""
        from storage.queries import users

        name, role = _plain(name), _role(role)
        with self._changing("admin") as session:
            if role != "admin":
                _keep_an_admin(session, name)
            return users.update(session, name=name, role=role, stamp=_stamp())

    def set_password(self, name: str, password: str, current: str | None = None) -> UserRow:
        """Their sessions end. Whoever changes their own has to know the ``current`` one; admins change anybody's."""
        from storage.queries import users

        name, actor = _plain(name), access.acting()
        if actor.name == name:
            with self._records.read() as session:
                row = users.find(session, name=name)
            if row is None or not self.passwords.match(row.password, current or ""):
                raise ConfigurationError("That is not your present password.", "Type it again.")
        else:
            access.need("admin")
        hashed = self.passwords.hash(name, password)
        with self._changing("viewer") as session:
            return users.update(session, name=name, password=hashed, stamp=_stamp())

    def disable(self, name: str, disabled: bool = True) -> UserRow:
        """Shut somebody out, or let them in again. Their sessions end, their tokens do not count meanwhile."""
        from storage.queries import users

        name = _plain(name)
        with self._changing("admin") as session:
            if disabled:
                _keep_an_admin(session, name)
            return users.update(session, name=name, disabled=disabled, stamp=_stamp())

    def remove(self, name: str, *, conversations: bool = False) -> Owned:
        """Forget a user, their sessions and tokens; returns what keeps their name.

        Runs and data sets are the admins' to change. Nobody reads their conversations; with ``conversations`` these
        are deleted unread, also of somebody who was removed before. The last user can be removed on the command line
        alone: the home then asks nobody any more.
        """
        from storage.queries import users

        name = _plain(name)
        with self._changing("admin") as session:
            deleted = users.remove_conversations(session, name=name) if conversations else 0
            if users.find(session, name=name) is not None or not deleted:
                if users.others(session, name=name) or access.acting() is not LOCAL:
                    _keep_an_admin(session, name)
                users.remove(session, name=name)
            return self._owned(session, name)

    def owned(self, name: str) -> Owned:
        """What bears the name of somebody, who may be gone; for admins."""
        access.need("admin")
        with self._records.read() as session:
            return self._owned(session, _plain(name))

    def end_sessions(self, name: str) -> None:
        """Sign somebody out everywhere: oneself, or anybody as an admin."""
        from storage.queries import users

        name = _plain(name)
        self._own_or_admin(name)
        with self._changing("viewer") as session:
            users.update(session, name=name, stamp=_stamp())

    # API tokens

    def tokens(self, name: str) -> list[TokenRow]:
        """One's own tokens, or anybody's as an admin; newest first. The keys themselves are not kept."""
        from storage.queries import users

        name = _plain(name)
        self._own_or_admin(name)
        with self._records.read() as session:
            return users.tokens(session, user=name)

    def add_token(self, name: str, label: str, days: int | None = 90) -> tuple[str, TokenRow]:
        """A new key, told this once, and what is kept of it. One's own, or anybody's on the command line.

        ``days`` until it expires, 1 to 3650; None for a key without an end.
        """
        from storage.queries import users
        from storage.types import now

        name, label = _plain(name), " ".join(label.split())[:LABEL]
        if access.acting() is not LOCAL and access.acting().name != name:
            raise NotAllowedError("Tokens are made by those who use them.", "Let its user make it on the page Account.")
        if not label:
            raise ConfigurationError("The token has no label.", "Say what it is for, for example: laptop.")
        if days is not None and not 1 <= days <= 3650:
            raise ConfigurationError(f"A token cannot last {days} days.", "Give 1 to 3650 days.")
        key = TOKEN + secrets.token_urlsafe(32)
        expires = None if days is None else now() + timedelta(days=days)
        with self._changing("viewer") as session:
            return key, users.add_token(session, user=name, label=label, hash=_digest(key), expires=expires)

    def revoke_token(self, token: int) -> TokenRow:
        """One's own, or anybody's as an admin."""
        from storage.queries import users

        with self._changing("viewer") as session:
            found = users.token(session, token=token)
            self._own_or_admin(found.user)
            users.revoke(session, token=token)
        return found

    # Within

    @contextmanager
    def _changing(self, role: Role) -> Iterator[Session]:
        """A writing session, after which everybody is looked up anew."""
        try:
            with self._records.write(role) as session:
                yield session
        finally:
            self.forget()

    def forget(self) -> None:
        """Ask the database again about everybody."""
        with self._lock:
            self._known.clear()
            self._asked = None
            self._forgotten += 1

    def _owned(self, session: Session, name: str) -> Owned:
        from storage.queries import users

        runs, conversations = users.owned(session, name=name)
        return Owned(runs, sum(info.owner == name for info in self._datasets.list()), conversations)

    def _own_or_admin(self, name: str) -> None:
        if access.acting().name != name:
            access.need("admin")


def _keep_an_admin(session: Session, name: str) -> None:
    from storage.queries import users

    row = users.find(session, name=name)
    if row is not None and row.role == "admin" and not users.other_admins(session, name=name):
        raise ConfigurationError(f"{name} is the only admin.", "Make somebody else an admin first.")


def _plain(name: str) -> str:
    return name.strip().lower()


def _role(role: str) -> Role:
    if role not in ROLES:
        raise ConfigurationError(f"There is no role {role!r}.", f"Choose one of {', '.join(ROLES)}.")
    return role


def _actor(row: UserRow) -> Actor:
    return Actor(row.name, row.role if row.role in ROLES else "viewer")


def _account(row: UserRow, sessions: Mapping[str, SessionRow] | None = None) -> Account:
    return Account(_actor(row), row.stamp, sessions or {})


def _stamp() -> str:
    return secrets.token_hex(16)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
