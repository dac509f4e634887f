"""Where users are signed in, by the hash of a browser's cookie. A session counts while its stamp is its user's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Select, delete, or_, select
from sqlalchemy.orm import Session

from storage.errors import MissingError
from storage.models import User, UserSession


@dataclass(frozen=True)
class SessionRow:
    """``user`` is a name; ``acted`` the last use, as exactly as it was stored."""

    hash: str
    user: str
    began: datetime
    acted: datetime


def start(session: Session, *, user: str, stamp: str, hash: str, at: datetime, most: int) -> None:
    """Beyond ``most`` sessions of one user, those unused for longest end."""
    number = session.scalar(select(User.id).where(User.name == user))
    if number is None:
        raise MissingError(f"There is no user {user}.", "They were removed a moment ago.")
    session.add(UserSession(hash=hash, user_id=number, stamp=stamp, began=at, acted=at))
    session.flush()
    own = select(UserSession.hash).where(UserSession.user_id == number)
    older = own.order_by(UserSession.acted.desc(), UserSession.began.desc()).offset(most)
    session.execute(delete(UserSession).where(UserSession.hash.in_(older)))


def find(session: Session, *, hash: str) -> SessionRow | None:
    return next((_row(found) for found in session.execute(_living().where(UserSession.hash == hash))), None)


def of_user(session: Session, *, user: str) -> dict[str, SessionRow]:
    """Hash -> session."""
    return {found[0]: _row(found) for found in session.execute(_living().where(User.name == user))}


def used(session: Session, *, hash: str, at: datetime) -> None:
    if (found := session.get(UserSession, hash)) is not None:
        found.acted = at


def end(session: Session, *, hash: str) -> None:
    session.execute(delete(UserSession).where(UserSession.hash == hash))


def sweep(session: Session, *, unused_since: datetime, begun_before: datetime) -> None:
    """Forget what counts no more: unused or begun too long ago, or of another stamp than its user's."""
    stamp = select(User.stamp).where(User.id == UserSession.user_id).scalar_subquery()
    over = or_(UserSession.acted < unused_since, UserSession.began < begun_before, UserSession.stamp != stamp)
    session.execute(delete(UserSession).where(over))


def _living() -> Select[tuple[str, str, datetime, datetime]]:
    query = select(UserSession.hash, User.name, UserSession.began, UserSession.acted)
    return query.join(User, User.id == UserSession.user_id).where(UserSession.stamp == User.stamp)


def _row(found: object) -> SessionRow:
    return SessionRow(*found)  # type: ignore[misc]
