"""Users and their API tokens. Names are compared as they are stored: in lower case."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from storage.errors import ConflictError, MissingError
from storage.models import ApiToken, Conversation, Run, User
from storage.types import now


@dataclass(frozen=True)
class UserRow:
    """``password`` is a hash; ``stamp`` changes with everything that ends sessions."""

    id: int
    name: str
    role: str
    password: str
    stamp: str
    created: datetime
    disabled: datetime | None
    seen: datetime | None


@dataclass(frozen=True)
class TokenRow:
    """An API token without its hash; ``user`` is a name."""

    id: int
    user: str
    label: str
    created: datetime
    expires: datetime | None
    used: datetime | None


def any_user(session: Session) -> bool:
    return session.scalar(select(User.id).limit(1)) is not None


def every(session: Session) -> list[UserRow]:
    return [_row(user) for user in session.scalars(select(User).order_by(User.name))]


def find(session: Session, *, name: str) -> UserRow | None:
    user = session.scalar(select(User).where(User.name == name))
    return None if user is None else _row(user)


def add(session: Session, *, name: str, role: str, password: str, stamp: str) -> UserRow:
    if find(session, name=name) is not None:
        raise ConflictError(f"There is a user {name} already.", "Choose another name, or change that user.")
    user = User(name=name, role=role, password=password, stamp=stamp)
    session.add(user)
    session.flush()
    return _row(user)


def update(
    session: Session,
    *,
    name: str,
    role: str | None = None,
    password: str | None = None,
    stamp: str | None = None,
    disabled: bool | None = None,
    seen: datetime | None = None,
) -> UserRow:
    """Change what is given; ``stamp`` belongs with every change that is to end the user's sessions."""
    user = _get(session, name)
    for field, value in (("role", role), ("password", password), ("stamp", stamp), ("seen", seen)):
        if value is not None:
            setattr(user, field, value)
    if disabled is not None:
        user.disabled = (user.disabled or now()) if disabled else None
    session.flush()
    return _row(user)


def remove(session: Session, *, name: str) -> None:
    """Also their tokens and sessions; what they own keeps their name."""
    session.execute(delete(User).where(User.id == _get(session, name).id))


def other_admins(session: Session, *, name: str) -> int:
    """How many can still manage users without this one."""
    query = select(func.count()).select_from(User).where(User.role == "admin", User.disabled.is_(None))
    return session.scalar(query.where(User.name != name)) or 0


def others(session: Session, *, name: str) -> int:
    return session.scalar(select(func.count()).select_from(User).where(User.name != name)) or 0


def owned(session: Session, *, name: str) -> tuple[int, int]:
    """How many runs and conversations bear a name, whether or not somebody has it now."""
    runs = select(func.count()).select_from(Run).where(Run.owner == name)
    conversations = select(func.count()).select_from(Conversation).where(Conversation.owner == name)
    return session.scalar(runs) or 0, session.scalar(conversations) or 0


def remove_conversations(session: Session, *, name: str) -> int:
    """Delete those that bear a name; returns how many there were."""
    return session.execute(delete(Conversation).where(Conversation.owner == name)).rowcount


def add_token(session: Session, *, user: str, label: str, hash: str, expires: datetime | None) -> TokenRow:
    token = ApiToken(user_id=_get(session, user).id, label=label, hash=hash, expires=expires)
    session.add(token)
    session.flush()
    return _token(token, user)


def tokens(session: Session, *, user: str | None = None) -> list[TokenRow]:
    """Those of one user or of all, newest first."""
    query = select(ApiToken, User.name).join(User, User.id == ApiToken.user_id).order_by(ApiToken.id.desc())
    if user is not None:
        query = query.where(User.name == user)
    return [_token(token, name) for token, name in session.execute(query)]


def token(session: Session, *, token: int) -> TokenRow:
    found = next((one for one in tokens(session) if one.id == token), None)
    if found is None:
        raise MissingError(f"There is no token {token}.", "List the tokens to see their numbers.")
    return found


def by_hash(session: Session, *, hash: str) -> tuple[UserRow, TokenRow] | None:
    """Whose token has this SHA-256, whether or not it counts any more."""
    query = select(ApiToken, User).join(User, User.id == ApiToken.user_id).where(ApiToken.hash == hash)
    found = session.execute(query).first()
    return None if found is None else (_row(found[1]), _token(found[0], found[1].name))


def used(session: Session, *, token: int) -> None:
    if (found := session.get(ApiToken, token)) is not None:
        found.used = now()


def revoke(session: Session, *, token: int) -> None:
    session.execute(delete(ApiToken).where(ApiToken.id == token))


def _get(session: Session, name: str) -> User:
    user = session.scalar(select(User).where(User.name == name))
    if user is None:
        raise MissingError(f"There is no user {name}.", "List them with: python app.py users")
    return user


def _row(user: User) -> UserRow:
    return UserRow(**{field: getattr(user, field) for field in UserRow.__dataclass_fields__})


def _token(token: ApiToken, user: str) -> TokenRow:
    return TokenRow(token.id, user, token.label, token.created, token.expires, token.used)
