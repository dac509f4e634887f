"""How fast earlier runs trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from storage.models import Attempt, Job, Run, Series

NAME = "tokens_per_second"
NEWEST = 300


@dataclass(frozen=True)
class Trained:
    """A run of this machine that said how fast it went; ``device`` as the dispatcher named it."""

    run: str
    method: str
    train: dict[str, Any]
    device: str


def trained(session: Session, *, base: str) -> list[Trained]:
    """Finished runs on a base that were trained here, newest first. Imported ones ran on another machine."""
    query = (
        select(Run.slug, Run.method, Run.spec, Attempt.device)
        .join(Series, Series.run_id == Run.id)
        .join(Job, Job.id == Series.job_id)
        .join(Attempt, Attempt.job_id == Job.id)
        .where(Series.name == NAME, Series.count > 0)
        .where(Run.base == base, Run.state == "done", Run.imported_from.is_(None))
        .where(Attempt.device.is_not(None), Attempt.outcome == "done")
        .order_by(Run.id.desc())
        .limit(NEWEST)
    )
    return [
        Trained(run, method, spec.get("train") or {}, device) for run, method, spec, device in session.execute(query)
    ]
