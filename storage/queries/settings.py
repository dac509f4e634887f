"""Small facts of the studio as a whole, by key."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from storage.models import Setting


def get(session: Session, *, key: str, default: Any = None) -> Any:
    found = session.get(Setting, key)
    return default if found is None else found.value.get("value", default)


def put(session: Session, *, key: str, value: Any) -> None:
    """Any JSON value."""
    session.merge(Setting(key=key, value={"value": value}))
    session.flush()
