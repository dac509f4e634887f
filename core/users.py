"""Users of a home: adding them, checking their passwords, and their keys for programs. Imports no torch.

A home without users asks nobody who they are; from the first user on everybody signs in. Passwords are kept as
Argon2id hashes, API tokens as SHA-256 of 32 random bytes. What somebody does is allowed or refused by
``core.access``: admins manage everybody, everybody manages themselves.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from core import access
from core.access import LOCAL, ROLES, Actor, Role
from core.errors import ConfigurationError, NotAllowedError

if TYPE_CHECKING:
    from argon2 import PasswordHasher
    from sqlalchemy.orm import Session

    from core.records import Records
    from storage.queries.users import TokenRow, UserRow

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
SHORTEST, LONGEST = 8, 1000
LABEL = 100
TOKEN = "tsr_"
KNOWN_SECONDS = 1.0  # how long what the database said of a user is believed; changes made here count at once
USED_SECONDS = 300.0  # how exact a token's last use is


@dataclass(frozen=True)
class Account:
    """What a signed-in person is: their actor, and the stamp that their sessions must carry."""

    actor: Actor
    stamp: str


class Users:
    """The users of one home; ``Studio.users`` is one."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._known: dict[str, tuple[float, Account | None]] = {}
        self._asked: tuple[float, bool] | None = None
        self._lock = threading.Lock()

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
        nobody = self._nobody
        right = self._matches(nobody if row is None else row.password, password)
        if row is None or not right or row.disabled is not None:
            return None
        fresh = self._hasher.hash(_bytes(password)) if self._hasher.check_needs_rehash(row.password) else None
        with access.act_as(_actor(row)), self._changing("viewer") as session:
            from storage.types import now

            return _account(users.update(session, name=row.name, password=fresh, seen=now()))

    def account(self, name: str) -> Account | None:
        """A user who may sign in, by name; None where there is none (any more), or they are disabled."""
        from storage.queries import users

        now = time.monotonic()
        with self._lock:
            if (known := self._known.get(name)) is not None and now - known[0] < KNOWN_SECONDS:
                return known[1]
        with self._records.read() as session:
            row = users.find(session, name=name)
        found = None if row is None or row.disabled is not None else _account(row)
        with self._lock:
            if len(self._known) > 1000:
                self._known.clear()
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
            with access.act_as(LOCAL), self._records.write() as session:
                users.used(session, token=key.id)
        return _actor(user)

    # Managing

    def list(self) -> list[UserRow]:
        """Everybody; for admins."""
        from storage.queries import users

        access.need("admin")
        with self._records.read() as session:
            return users.every(session)

    def add(self, name: str, role: Role, password: str) -> UserRow:
        """The first one has to be an admin, and takes over the conversations from before there were users."""
        from storage.queries import chats, users

        name, role = _plain(name), _role(role)
        if not NAME.fullmatch(name):
            raise ConfigurationError(
                f"{name!r} is not a name for a user.",
                "Up to 40 letters a to z, digits, dots, dashes and underscores, a letter or digit first.",
            )
        hashed = self._hash(name, password)
        with self._changing("admin") as session:
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
            if row is None or not self._matches(row.password, current or ""):
                raise ConfigurationError("That is not your present password.", "Type it again.")
        else:
            access.need("admin")
        hashed = self._hash(name, password)
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

    def remove(self, name: str) -> None:
        """Forget a user and their tokens; what they own keeps their name and is from now on the admins' to change.

        The last user can be removed on the command line alone: the home then asks nobody any more.
        """
        from storage.queries import users

        name = _plain(name)
        with self._changing("admin") as session:
            if users.others(session, name=name) or access.acting() is not LOCAL:
                _keep_an_admin(session, name)
            users.remove(session, name=name)

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

    def _own_or_admin(self, name: str) -> None:
        if access.acting().name != name:
            access.need("admin")

    @cached_property
    def _hasher(self) -> PasswordHasher:
        from argon2 import PasswordHasher

        return PasswordHasher()

    @cached_property
    def _nobody(self) -> str:
        """A hash for names that nobody has, so that they take as long as others."""
        return self._hasher.hash(secrets.token_hex(16))

    def _hash(self, name: str, password: str) -> str:
        if not SHORTEST <= len(password) <= LONGEST:
            raise ConfigurationError(
                f"The password has {len(password)} characters.", f"Choose {SHORTEST} to {LONGEST}."
            )
        if password.strip().lower() == name:
            raise ConfigurationError("The password is the name.", "Choose one that nobody guesses.")
        return self._hasher.hash(_bytes(password))

    def _matches(self, hashed: str, password: str) -> bool:
        from argon2.exceptions import InvalidHashError, VerificationError

        try:
            return self._hasher.verify(hashed, _bytes(password[:LONGEST]))
        except (VerificationError, InvalidHashError):
            return False


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


def _account(row: UserRow) -> Account:
    return Account(_actor(row), row.stamp)


def _stamp() -> str:
    return secrets.token_hex(16)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _bytes(password: str) -> bytes:
    return password.encode("utf-8", "replace")
