"""Conversations: questions, and the answers of each model to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from storage.errors import MissingError
from storage.models import Conversation, Message
from storage.types import now

TITLE = 80


@dataclass(frozen=True)
class ConversationRow:
    id: int
    title: str
    models: list[str]
    system: str
    settings: dict[str, Any]
    created: datetime
    changed: datetime
    owner: str | None


@dataclass(frozen=True)
class MessageRow:
    """A question has neither ``model`` nor ``question_id``; an answer that grows has not ``ended``."""

    id: int
    conversation_id: int
    question_id: int | None
    model: str | None
    text: str
    tokens: int
    seconds: float
    ended: str | None
    problem: str | None
    settings: dict[str, Any]
    created: datetime


@dataclass(frozen=True)
class ConversationPage:
    rows: list[ConversationRow]
    total: int
    offset: int


def start(
    session: Session,
    *,
    title: str,
    models: Sequence[str],
    system: str = "",
    settings: dict[str, Any] | None = None,
    owner: str | None = None,
) -> ConversationRow:
    words = " ".join(title.split())
    title = words if len(words) <= TITLE else words[: TITLE - 1] + "…"
    found = Conversation(title=title, models=list(models), system=system, settings=settings or {}, owner=owner)
    session.add(found)
    session.flush()
    return _conversation(found)


def get(session: Session, *, conversation: int) -> ConversationRow:
    return _conversation(_find(session, conversation))


def page(session: Session, *, owner: str | None = None, limit: int = 30, offset: int = 0) -> ConversationPage:
    """Somebody's conversations, or all, that were last spoken in first."""
    own = select(Conversation) if owner is None else select(Conversation).where(Conversation.owner == owner)
    query = own.order_by(Conversation.changed.desc(), Conversation.id.desc())
    rows = [_conversation(found) for found in session.scalars(query.limit(limit).offset(offset))]
    return ConversationPage(rows, session.scalar(select(func.count()).select_from(own.subquery())) or 0, offset)


def ask(
    session: Session, *, conversation: int, text: str, models: Sequence[str], system: str, settings: dict[str, Any]
) -> MessageRow:
    """Add a question; the conversation remembers who was asked last, and with which settings."""
    owner = _find(session, conversation)
    owner.models, owner.system, owner.settings, owner.changed = list(models), system, settings, now()
    found = Message(conversation_id=owner.id, text=text, settings=settings)
    session.add(found)
    session.flush()
    return _message(found)


def grow(session: Session, *, question: int, models: Sequence[str], by: dict[str, Any]) -> None:
    """Add an answer of each model that has not ended; until it does, its settings are ``by``: who computes it."""
    asked = session.get_one(Message, question)
    for model in models:
        session.add(Message(conversation_id=asked.conversation_id, question_id=question, model=model, settings=by))


def answer(
    session: Session,
    *,
    question: int,
    model: str,
    text: str,
    tokens: int,
    seconds: float,
    ended: str,
    problem: str | None = None,
) -> MessageRow:
    """Add an answer, or end the one that grows."""
    asked = session.get(Message, question)
    if asked is None:
        raise MissingError("The conversation was deleted.", "Start a new one.")
    growing = select(Message).where(Message.question_id == question, Message.model == model, Message.ended.is_(None))
    found = session.scalars(growing).first()
    if found is None:
        found = Message(conversation_id=asked.conversation_id, question_id=question, model=model)
        session.add(found)
    found.text, found.tokens, found.seconds, found.settings = text, tokens, seconds, asked.settings
    found.ended, found.problem = ended, problem
    session.flush()
    return _message(found)


def message(session: Session, *, message: int) -> MessageRow:
    found = session.get(Message, message)
    if found is None:
        raise MissingError(f"There is no message {message}.", "Its conversation may have been deleted.")
    return _message(found)


def turns(
    session: Session, *, conversation: int, limit: int | None = None, before: int | None = None
) -> list[tuple[MessageRow, list[MessageRow]]]:
    """The newest ``limit`` questions, older than question ``before``, in the order of asking; each with its answers."""
    query = select(Message).where(Message.conversation_id == conversation, Message.question_id.is_(None))
    if before is not None:
        query = query.where(Message.id < before)
    asked = session.scalars(query.order_by(Message.id.desc()).limit(limit)).all()[::-1]
    if not asked:
        return []
    query = select(Message).where(
        Message.conversation_id == conversation, Message.question_id.between(asked[0].id, asked[-1].id)
    )
    answers: dict[int | None, list[MessageRow]] = {}
    for found in session.scalars(query.order_by(Message.id)):
        answers.setdefault(found.question_id, []).append(_message(found))
    return [(_message(question), answers.get(question.id, [])) for question in asked]


def adopt(session: Session, *, owner: str) -> None:
    """Give the conversations that nobody owns to somebody."""
    session.execute(update(Conversation).where(Conversation.owner.is_(None)).values(owner=owner))


def remove(session: Session, *, conversation: int) -> None:
    _find(session, conversation)
    session.execute(delete(Message).where(Message.conversation_id == conversation))
    session.execute(delete(Conversation).where(Conversation.id == conversation))


def _find(session: Session, conversation: int) -> Conversation:
    found = session.get(Conversation, conversation)
    if found is None:
        raise MissingError(f"There is no conversation {conversation}.", "It may have been deleted; start a new one.")
    return found


def _conversation(found: Conversation) -> ConversationRow:
    return ConversationRow(**{field: getattr(found, field) for field in ConversationRow.__dataclass_fields__})


def _message(found: Message) -> MessageRow:
    return MessageRow(**{field: getattr(found, field) for field in MessageRow.__dataclass_fields__})
