"""Column types, time and hashes."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime
from sqlalchemy.types import TypeDecorator

# Fields of a run's spec that do not change what is learnt: runs that differ only here are seeds of one setting.
NOT_THE_SETTING = frozenset({"seed", "name", "tags", "notes"})
NOT_OF_TRAINING = frozenset({"on_alarm"})  # the same of spec["train"]; others were always part of the hash


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC; SQLite drops the zone on its way, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a stored time needs a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    return datetime.now(UTC)


def setting_hash(spec: dict[str, Any]) -> str:
    """16 hex digits of the spec without seed, name, tags and notes."""
    kept = {key: value for key, value in spec.items() if key not in NOT_THE_SETTING}
    if isinstance(train := kept.get("train"), dict):
        kept["train"] = {key: value for key, value in train.items() if key not in NOT_OF_TRAINING}
    text = json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
