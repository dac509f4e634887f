"""Routing figures: float32 arrays with the names along their axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from storage.errors import MissingError
from storage.models import Job, RoutingArray, RoutingSnapshot, Run
from storage.queries import runs as run_queries

VALUES = np.dtype("<f4")


@dataclass(frozen=True)
class SnapshotRow:
    id: int
    run: str
    job: str
    moment: str
    step: int
    split: str
    file: str
    created: datetime


def add(
    session: Session,
    *,
    run_id: int,
    job_id: int,
    moment: str,
    step: int,
    split: str,
    file: str,
    axes: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> int:
    """Store a snapshot; one of the same job, moment and split takes the place of the earlier one."""
    same = (RoutingSnapshot.job_id == job_id, RoutingSnapshot.moment == moment, RoutingSnapshot.split == split)
    session.execute(delete(RoutingSnapshot).where(*same))
    snapshot = RoutingSnapshot(
        run_id=run_id, job_id=job_id, moment=moment, step=step, split=split, file=file, axes=axes
    )
    session.add(snapshot)
    session.flush()
    for name, array in arrays.items():
        data = np.ascontiguousarray(array, VALUES)
        session.add(RoutingArray(snapshot_id=snapshot.id, name=name, shape=list(np.shape(array)), data=data.tobytes()))
    session.flush()
    return snapshot.id


def void_after(session: Session, *, job_id: int, step: int) -> None:
    """Drop a job's snapshots past ``step``: an attempt resumed there."""
    session.execute(delete(RoutingSnapshot).where(RoutingSnapshot.job_id == job_id, RoutingSnapshot.step > step))


def moments(session: Session, *, run: str) -> list[SnapshotRow]:
    """The snapshots of a run in the order in which they were taken."""
    return moments_of(session, runs=[run_queries.row(session, run=run).slug])[run]


def moments_of(session: Session, *, runs: Sequence[str]) -> dict[str, list[SnapshotRow]]:
    """Run -> snapshots, for comparisons."""
    query = (
        select(RoutingSnapshot, Run.slug, Job.name)
        .join(Run, Run.id == RoutingSnapshot.run_id)
        .join(Job, Job.id == RoutingSnapshot.job_id)
        .where(Run.slug.in_(list(runs)))
        .order_by(RoutingSnapshot.step, RoutingSnapshot.id)
    )
    found: dict[str, list[SnapshotRow]] = {run: [] for run in runs}
    for one, run, job in session.execute(query):
        found[run].append(SnapshotRow(one.id, run, job, one.moment, one.step, one.split, one.file, one.created))
    return found


def read(
    session: Session, *, snapshot: int, names: Sequence[str] | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The axes and the arrays of one snapshot."""
    found = session.get(RoutingSnapshot, snapshot)
    if found is None:
        raise MissingError(f"There is no routing snapshot {snapshot}.", "List the moments of the run.")
    query = select(RoutingArray).where(RoutingArray.snapshot_id == snapshot)
    if names is not None:
        query = query.where(RoutingArray.name.in_(list(names)))
    arrays = {one.name: np.frombuffer(one.data, VALUES).reshape(one.shape) for one in session.scalars(query)}
    return found.axes, arrays
