"""Data sets: what the database knows of the files in the store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from storage.errors import ConflictError, MissingError
from storage.models import Dataset
from storage.queries import runs as run_queries
from storage.types import now


@dataclass(frozen=True)
class DatasetRow:
    """``tasks``: task name -> summary; ``counts``: split -> rows; ``info``: whatever else the store says."""

    id: str
    name: str
    source: str
    created: datetime
    tasks: dict[str, Any]
    counts: dict[str, Any]
    info: dict[str, Any]


def put(
    session: Session,
    *,
    id: str,
    name: str,
    source: str = "",
    tasks: dict[str, Any] | None = None,
    counts: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
    created: datetime | None = None,
) -> DatasetRow:
    """Store or renew a data set; the id is the hash of its content, so equal content is one data set."""
    holder = session.scalar(select(Dataset.id).where(Dataset.name == name, Dataset.id != id))
    if holder is not None:
        raise ConflictError(f"Another data set is named {name}.", "Choose another name.")
    found = session.get(Dataset, id)
    if found is None:
        found = Dataset(id=id, created=created or now())
        session.add(found)
    found.name, found.source = name, source
    found.tasks, found.counts, found.info = tasks or {}, counts or {}, info or {}
    session.flush()
    return _row(found)


def get(session: Session, *, dataset: str) -> DatasetRow:
    """A data set by id or name."""
    found = session.get(Dataset, dataset) or session.scalar(select(Dataset).where(Dataset.name == dataset))
    if found is None:
        raise MissingError(f"There is no data set {dataset}.", "List the data sets to see their names.")
    return _row(found)


def page(
    session: Session, *, text: str | None = None, limit: int = 50, offset: int = 0
) -> tuple[list[DatasetRow], int]:
    """Newest first, and how many there are in all; ``text`` is looked for in name, id and source."""
    query = select(Dataset)
    if text:
        query = query.where(
            or_(*(c.icontains(text, autoescape=True) for c in (Dataset.name, Dataset.id, Dataset.source)))
        )
    total = session.scalar(select(func.count()).select_from(query.subquery())) or 0
    found = session.scalars(query.order_by(Dataset.created.desc(), Dataset.id).limit(limit).offset(offset))
    return [_row(one) for one in found], total


def remove(session: Session, *, dataset: str) -> str:
    """Forget a data set and return its id; refused while runs name it."""
    found = get(session, dataset=dataset)
    users = run_queries.using_dataset(session, dataset=found.id)
    if users:
        shown = ", ".join(users[:5]) + (f" and {len(users) - 5} more" if len(users) > 5 else "")
        raise ConflictError(f"The data set {found.name} is used by {shown}.", "Delete those runs first.")
    session.execute(delete(Dataset).where(Dataset.id == found.id))
    return found.id


def _row(found: Dataset) -> DatasetRow:
    return DatasetRow(found.id, found.name, found.source, found.created, found.tasks, found.counts, found.info)
