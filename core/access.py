"""Who acts, and what they may do: asked where something is changed, so that pages, API and commands have one rule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, get_args

from core.errors import NotAllowedError

Role = Literal["viewer", "researcher", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)  # each may do what those before it may
MEANS: dict[Role, str] = {
    "viewer": "looks at everything but other people's chats, and exports",
    "researcher": "looks, exports, uploads, trains and chats, and changes or deletes what is their own",
    "admin": "does what researchers do, with what others own too, manages users, cleans the disk, stops the dispatcher",
}


@dataclass(frozen=True)
class Actor:
    """A person, by the name of their account; without one, whoever owns the machine's account: they may do all."""

    name: str | None
    role: Role

    def may(self, role: Role) -> bool:
        """Whether this actor has ``role`` or more."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def owns(self, owner: str | None) -> bool:
        """Whether something of ``owner`` is theirs to change; what has no owner belongs to admins."""
        return self.role == "admin" or (self.name is not None and self.name == owner and self.may("researcher"))


LOCAL = Actor(None, "admin")
_acting: ContextVar[Actor] = ContextVar("actor", default=LOCAL)


def acting() -> Actor:
    """Who acts here: in Python and on the command line ``LOCAL``, in a request whoever signed in."""
    return _acting.get()


@contextmanager
def act_as(actor: Actor) -> Iterator[Actor]:
    """While entered, what this thread or task does is done by ``actor``."""
    token = _acting.set(actor)
    try:
        yield actor
    finally:
        _acting.reset(token)


def need(role: Role) -> Actor:
    """The actor, if they have ``role`` or more; NotAllowedError otherwise."""
    actor = acting()
    if not actor.may(role):
        raise NotAllowedError(
            f"{actor.name} has the role {actor.role}, and this needs {'an' if role == 'admin' else 'a'} {role}.",
            "Ask an admin to do it or to change the role.",
        )
    return actor


def need_own(owner: str | None, what: str) -> Actor:
    """The actor, if ``what`` (say ``run-12``), which belongs to ``owner``, is theirs to change."""
    actor = need("researcher")
    if not actor.owns(owner):
        raise NotAllowedError(
            f"{what} belongs to {owner or 'nobody who has an account'}.",
            "Only its owner and admins change it; look at it, clone or export it.",
        )
    return actor
