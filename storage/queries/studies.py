"""Studies: runs that are meant to be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from storage.errors import ConflictError, MissingError
from storage.models import Run, Study, StudyRun
from storage.queries import runs as run_queries


@dataclass(frozen=True)
class StudyRow:
    name: str
    notes: str
    created: datetime
    runs: list[str]


def create(session: Session, *, name: str, runs: Sequence[str] = (), notes: str = "") -> StudyRow:
    if session.scalar(select(Study.id).where(Study.name == name)) is not None:
        raise ConflictError(f"There is a study {name} already.", "Choose another name, or add runs to it.")
    study = Study(name=name, notes=notes)
    session.add(study)
    session.flush()
    return set_runs(session, name=name, runs=runs)


def set_runs(session: Session, *, name: str, runs: Sequence[str]) -> StudyRow:
    """Make exactly these runs the study's."""
    study = _study(session, name)
    session.execute(delete(StudyRun).where(StudyRun.study_id == study.id))
    ids = [run_queries.row(session, run=run).id for run in dict.fromkeys(runs)]
    session.add_all(StudyRun(study_id=study.id, run_id=run_id) for run_id in ids)
    session.flush()
    return get(session, name=name)


def get(session: Session, *, name: str) -> StudyRow:
    return _rows(session, [_study(session, name)])[0]


def all_of(session: Session) -> list[StudyRow]:
    """Newest first."""
    return _rows(session, session.scalars(select(Study).order_by(Study.id.desc())).all())


def remove(session: Session, *, name: str) -> None:
    """Forget the study; its runs stay."""
    session.execute(delete(Study).where(Study.id == _study(session, name).id))


def _study(session: Session, name: str) -> Study:
    found = session.scalar(select(Study).where(Study.name == name))
    if found is None:
        raise MissingError(f"There is no study {name}.", "List the studies to see their names.")
    return found


def _rows(session: Session, found: Sequence[Study]) -> list[StudyRow]:
    members: dict[int, list[str]] = {study.id: [] for study in found}
    query = (
        select(StudyRun.study_id, Run.slug).join(Run, Run.id == StudyRun.run_id).where(StudyRun.study_id.in_(members))
    )
    for study_id, run in session.execute(query.order_by(Run.id)):
        members[study_id].append(run)
    return [StudyRow(study.name, study.notes, study.created, members[study.id]) for study in found]
