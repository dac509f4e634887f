"""Messages and alarms of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from storage.models import Job, LogLine
from storage.queries import runs as run_queries

LINES_PER_JOB = 5_000
MESSAGE_LENGTH = 4_000


@dataclass(frozen=True)
class NewLine:
    attempt: int
    at: datetime
    level: str
    message: str
    name: str | None = None
    step: int | None = None


@dataclass(frozen=True)
class LogRow:
    """``name`` is set for alarms only."""

    id: int
    job: str
    attempt: int
    at: datetime
    level: str
    name: str | None
    step: int | None
    message: str


def extend(session: Session, *, run_id: int, job_id: int, lines: Sequence[NewLine]) -> None:
    """Store messages; past ``LINES_PER_JOB`` only alarms are kept, the rest stands in the run's events file."""
    if not lines:
        return
    stored = session.scalar(select(func.count()).select_from(LogLine).where(LogLine.job_id == job_id)) or 0
    for line in lines:
        if stored >= LINES_PER_JOB and line.name is None:
            continue
        stored += 1
        row = LogLine(run_id=run_id, job_id=job_id, attempt=line.attempt, at=line.at, level=line.level[:16])
        row.name, row.step, row.message = line.name, line.step, line.message[:MESSAGE_LENGTH]
        session.add(row)


def of_run(session: Session, *, run: str, level: str | None = None, after: int = 0, limit: int = 500) -> list[LogRow]:
    """Newest lines of a run, oldest of them first; ``after`` is the id of the last line that is already known."""
    owner = run_queries.row(session, run=run)
    query = select(LogLine, Job.name).join(Job, Job.id == LogLine.job_id)
    query = query.where(LogLine.run_id == owner.id, LogLine.id > after)
    if level:
        query = query.where(LogLine.level == level)
    found = session.execute(query.order_by(LogLine.id.desc()).limit(limit)).all()
    return [
        LogRow(line.id, job, line.attempt, line.at, line.level, line.name, line.step, line.message)
        for line, job in reversed(found)
    ]


def alarms(session: Session, *, run: str) -> list[LogRow]:
    """The alarms of a run, oldest first."""
    owner = run_queries.row(session, run=run)
    query = select(LogLine, Job.name).join(Job, Job.id == LogLine.job_id)
    query = query.where(LogLine.run_id == owner.id, LogLine.name.is_not(None)).order_by(LogLine.id)
    return [
        LogRow(line.id, job, line.attempt, line.at, line.level, line.name, line.step, line.message)
        for line, job in session.execute(query)
    ]
