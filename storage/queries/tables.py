"""Small tables that jobs said, by run, name and step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from storage.models import RunTable
from storage.queries import runs as run_queries


@dataclass(frozen=True)
class Table:
    step: int
    columns: list[str]
    rows: list[list[Any]]


def put(
    session: Session,
    *,
    run_id: int,
    job_id: int,
    name: str,
    step: int,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
) -> None:
    """Store a table; one of the same job, name and step takes the place of the earlier one."""
    same = (RunTable.job_id == job_id, RunTable.name == name, RunTable.step == step)
    session.execute(delete(RunTable).where(*same))
    data = {"columns": list(columns), "rows": [list(row) for row in rows]}
    session.add(RunTable(run_id=run_id, job_id=job_id, name=name, step=step, **data))
    session.flush()


def void_after(session: Session, *, job_id: int, step: int) -> None:
    """Drop a job's tables past ``step``: an attempt resumed there."""
    session.execute(delete(RunTable).where(RunTable.job_id == job_id, RunTable.step > step))


def read(session: Session, *, run: str, name: str) -> list[Table]:
    """A run's tables of a name, in the order in which they were said."""
    run_id = run_queries.row(session, run=run).id
    query = select(RunTable).where(RunTable.run_id == run_id, RunTable.name == name)
    found = session.scalars(query.order_by(RunTable.step, RunTable.id))
    return [Table(one.step, one.columns, one.rows) for one in found]
