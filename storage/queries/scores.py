"""Scores: one row for each task, model and metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from storage.models import Job, Run, Score
from storage.queries import runs as run_queries

_IDENTITY = ("task", "dataset", "split", "model", "metric")


@dataclass(frozen=True)
class ScoreRow:
    """``predictions`` is a file name below the run's ``predictions/``; scores of equal ``key`` can be paired."""

    id: int
    run: str
    job: str
    task: str
    dataset: str
    split: str
    model: str
    metric: str
    value: float | None
    stderr: float | None
    rows: int
    primary: bool
    chance: float | None
    key: str
    predictions: str | None
    extras: dict[str, Any]
    created: datetime


def put(session: Session, *, run_id: int, job_id: int, **fields: Any) -> None:
    """Store a score; the same job's score of the same thing takes the place of the earlier one."""
    same = [getattr(Score, name) == fields[name] for name in _IDENTITY]
    score = session.scalar(select(Score).where(Score.job_id == job_id, *same))
    if score is None:
        session.add(Score(run_id=run_id, job_id=job_id, **fields))
    else:
        for name, value in fields.items():
            setattr(score, name, value)
    session.flush()


def of_runs(
    session: Session,
    *,
    runs: Sequence[str],
    task: str | None = None,
    split: str | None = None,
    model: str | None = None,
    primary_only: bool = False,
    every: bool = False,
) -> list[ScoreRow]:
    """Scores of several runs by run, task, model and metric.

    Of the same thing scored by several jobs only the newest counts, unless ``every`` is asked for.
    """
    query = (
        select(Score, Run.slug, Job.name)
        .join(Run, Run.id == Score.run_id)
        .join(Job, Job.id == Score.job_id)
        .where(Run.slug.in_(list(runs)))
        .order_by(Score.job_id, Score.id)
    )
    for column, value in ((Score.task, task), (Score.split, split), (Score.model, model)):
        if value:
            query = query.where(column == value)
    if primary_only:
        query = query.where(Score.primary)
    fields = [field for field in ScoreRow.__dataclass_fields__ if field not in ("run", "job")]
    newest: dict[tuple[Any, ...], ScoreRow] = {}
    for score, run, job in session.execute(query):
        same = (run, *(getattr(score, name) for name in _IDENTITY), *([score.id] if every else []))
        newest[same] = ScoreRow(**{field: getattr(score, field) for field in fields}, run=run, job=job)
    place = {run: index for index, run in enumerate(runs)}
    return sorted(
        newest.values(),
        key=lambda s: (place[s.run], s.task, s.dataset, s.split, s.model, not s.primary, s.metric, s.id),
    )


def of_run(session: Session, *, run: str, **filters: Any) -> list[ScoreRow]:
    """Scores of one run; filters as for ``of_runs``."""
    return of_runs(session, runs=[run_queries.row(session, run=run).slug], **filters)
