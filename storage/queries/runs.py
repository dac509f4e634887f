"""Runs: what was asked."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, bindparam, delete, func, or_, select, text
from sqlalchemy.orm import Session, defer

from storage.errors import ConflictError, MissingError
from storage.models import ACTIVE, ENDED, Job, Run, RunDataset, RunTag
from storage.types import setting_hash


@dataclass(frozen=True)
class RunRow:
    """A run as people see it. ``job`` is its active job, else its newest one; ``spec`` is left out of lists."""

    id: str
    number: int
    name: str
    state: str
    method: str
    base: str
    tasks: list[str]
    seed: int
    setting: str
    created: datetime
    started: datetime | None
    finished: datetime | None
    tags: list[str]
    notes: str
    parent: str | None
    lineage: str | None
    imported_from: str | None
    trainable_parameters: int | None
    total_parameters: int | None
    memory_estimate: int | None
    memory_peak: int | None
    folder: str
    owner: str | None
    alarms: int
    job: dict[str, Any] | None
    spec: dict[str, Any] | None = None


JOB_SHOWN = (
    "id", "name", "kind", "state", "step", "total", "phase", "seconds_left", "failure", "message", "hint",
)  # fmt: skip


@dataclass(frozen=True)
class Page:
    """Part of a list, and how long the whole list is."""

    rows: list[RunRow]
    total: int
    offset: int


def requested(session: Session, *, request_id: str | None) -> str | None:
    """The id of the run that was stored for a request, if there is one."""
    return session.scalar(select(Run.slug).where(Run.request_id == request_id)) if request_id is not None else None


def add(
    session: Session,
    *,
    spec: dict[str, Any],
    name: str = "",
    datasets: Sequence[str] = (),
    parent: str | None = None,
    lineage: str | None = None,
    imported_from: str | None = None,
    request_id: str | None = None,
    owner: str | None = None,
    above: int = 0,
) -> tuple[RunRow, bool]:
    """Store a run without jobs; returns it and whether it is new.

    A second call with the same ``request_id`` returns the first one's run, so a double click starts one run.
    ``spec`` is a resolved ``RunSpec`` as plain data; ``parent`` the run that it was cloned or forked from; ``owner``
    the name of the user who asked for it, if somebody signed in. The number is past
    ``above``: folders of runs that a restored SQLite file does not know may stand there.
    """
    if (known := requested(session, request_id=request_id)) is not None:
        return get(session, run=known), False
    run = Run(
        slug=uuid.uuid4().hex,
        name=name or spec.get("name") or "",
        spec=spec,
        method=(spec.get("method") or {}).get("name", ""),
        base=(spec.get("model") or {}).get("base", ""),
        tasks=[task.get("task") or task.get("dataset", "") for task in spec.get("tasks", [])],
        seed=int(spec.get("seed", 0)),
        setting_hash=setting_hash(spec),
        state="done" if imported_from is not None else "queued",
        notes=spec.get("notes") or "",
        parent_id=row(session, run=parent).id if parent else None,
        lineage=lineage,
        imported_from=imported_from,
        folder="",
        request_id=request_id,
        owner=owner,
    )
    if above and session.get_bind().dialect.name == "sqlite" and above > _last_number(session):
        run.id = above + 1
    session.add(run)
    session.flush()
    run.slug = run.folder = f"run-{run.id}"
    run.name = run.name or run.slug
    session.add_all(RunTag(run_id=run.id, tag=tag) for tag in dict.fromkeys(spec.get("tags") or []))
    session.add_all(RunDataset(run_id=run.id, dataset_id=dataset) for dataset in dict.fromkeys(datasets))
    session.flush()
    return get(session, run=run.slug), True


def _last_number(session: Session) -> int:
    """The highest number that SQLite ever gave to a run, also to one that was deleted."""
    return session.scalar(text("SELECT seq FROM sqlite_sequence WHERE name = 'runs'")) or 0


def row(session: Session, *, run: str) -> Run:
    """The stored object itself."""
    found = session.scalar(_BY_SLUG, {"run": run})
    if found is None:
        raise MissingError(f"There is no run {run}.", "List the runs to see their ids.")
    return found


def get(session: Session, *, run: str) -> RunRow:
    found = row(session, run=run)
    return _rows(session, [found], with_spec=True)[0]


def page(session: Session, *, limit: int = 50, offset: int = 0, **filters: Any) -> Page:
    """Runs that match every given filter, newest first; see ``matching``."""
    query = matching(**filters)
    total = session.scalar(select(func.count()).select_from(query.subquery())) or 0
    found = session.scalars(query.options(_LIGHT).order_by(Run.id.desc()).limit(limit).offset(offset)).all()
    return Page(_rows(session, found), total, offset)


def page_of_settings(session: Session, *, limit: int = 50, offset: int = 0, **filters: Any) -> Page:
    """As ``page``, counted in settings: all matching seeds of each, the setting with the newest run first."""
    matched = matching(**filters).subquery()
    newest = func.max(matched.c.id)
    hashes = select(matched.c.setting_hash).group_by(matched.c.setting_hash).order_by(newest.desc())
    total = session.scalar(select(func.count(matched.c.setting_hash.distinct()))) or 0
    chosen = session.scalars(hashes.limit(limit).offset(offset)).all()
    place = {setting: index for index, setting in enumerate(chosen)}
    own = matching(**filters).where(Run.setting_hash.in_(chosen))
    found = sorted(
        session.scalars(own.options(_LIGHT)).all(), key=lambda run: (place[run.setting_hash], run.seed, run.id)
    )
    return Page(_rows(session, found), total, offset)


def matching(
    *,
    state: str | Sequence[str] | None = None,
    method: str | Sequence[str] | None = None,
    base: str | None = None,
    tag: str | None = None,
    dataset: str | None = None,
    setting: str | None = None,
    text: str | None = None,
) -> Select[tuple[Run]]:
    """Runs that match every given filter; ``text`` is looked for in id, name, method, base and notes."""
    query = select(Run)
    if state:
        query = query.where(Run.state.in_([state] if isinstance(state, str) else list(state)))
    if method:
        query = query.where(Run.method.in_([method] if isinstance(method, str) else list(method)))
    for column, value in ((Run.base, base), (Run.setting_hash, setting)):
        if value:
            query = query.where(column == value)
    if tag:
        query = query.where(Run.id.in_(select(RunTag.run_id).where(RunTag.tag == tag)))
    if dataset:
        query = query.where(Run.id.in_(select(RunDataset.run_id).where(RunDataset.dataset_id == dataset)))
    return _with_text(query, text) if text else query


def many(session: Session, *, runs: Sequence[str]) -> list[RunRow]:
    """The named runs with their specs, in the given order."""
    found = present(session, runs=runs)
    if missing := [run for run in runs if run not in {row.id for row in found}]:
        raise MissingError(f"There is no run {', '.join(missing)}.", "List the runs to see their ids.")
    return found


def present(session: Session, *, runs: Sequence[str]) -> list[RunRow]:
    """As ``many``, without those that are gone."""
    found = {r.slug: r for r in session.scalars(select(Run).where(Run.slug.in_(list(runs))))}
    return _rows(session, [found[run] for run in runs if run in found], with_spec=True)


def counts(session: Session) -> dict[str, int]:
    """State -> number of runs."""
    return {state: n for state, n in session.execute(select(Run.state, func.count()).group_by(Run.state))}


def states(session: Session) -> dict[str, str]:
    """Run -> state, of all runs."""
    return {run: state for run, state in session.execute(select(Run.slug, Run.state))}


def resting(session: Session, *, run: str) -> tuple[Any, ...] | None:
    """What pages of a run show hangs on this, where all its jobs have ended; None while one waits or works."""
    rows = session.execute(_RESTING, {"run": run}).all()
    return None if not rows or any(row[0] not in ENDED for row in rows) else tuple(map(tuple, rows))


def tags(session: Session) -> dict[str, int]:
    """Tag -> number of runs, most used first."""
    number = func.count()
    return {t: n for t, n in session.execute(select(RunTag.tag, number).group_by(RunTag.tag).order_by(number.desc()))}


def methods(session: Session) -> list[str]:
    """Methods that any run uses."""
    return list(session.scalars(select(Run.method).distinct().order_by(Run.method)))


def update(
    session: Session, *, run: str, name: str | None = None, notes: str | None = None, tags: Sequence[str] | None = None
) -> RunRow:
    """Change what people wrote about a run; what was trained never changes."""
    found = row(session, run=run)
    if name is not None:
        found.name = name or found.slug
    if notes is not None:
        found.notes = notes
    if tags is not None:
        session.execute(delete(RunTag).where(RunTag.run_id == found.id))
        session.add_all(RunTag(run_id=found.id, tag=tag) for tag in dict.fromkeys(tags))
    session.flush()
    return get(session, run=run)


def remove(session: Session, *, run: str) -> str:
    """Delete a run with all that hangs on it; returns its folder's name. Refused while one of its jobs is active."""
    found = row(session, run=run)
    busy = session.scalars(select(Job.name).where(Job.run_id == found.id, Job.state.in_(ACTIVE))).all()
    if busy:
        raise ConflictError(f"{run} is still at work ({', '.join(busy)}).", "Cancel it first.")
    folder = found.folder
    session.execute(delete(Run).where(Run.id == found.id))
    return folder


def using_dataset(session: Session, *, dataset: str) -> list[str]:
    """Ids of the runs that read this data set."""
    query = select(Run.slug).join(RunDataset, RunDataset.run_id == Run.id).where(RunDataset.dataset_id == dataset)
    return list(session.scalars(query.order_by(Run.id)))


def refresh_state(session: Session, *, run_id: int) -> None:
    """Derive a run's state and times from its jobs.

    The training job decides; a run without one follows its active, else its newest job. So a failed or waiting
    second scoring does not make a trained run look untrained.
    """
    session.flush()
    jobs = session.scalars(select(Job).where(Job.run_id == run_id).order_by(Job.id)).all()
    run = session.get(Run, run_id)
    if not jobs or run is None:
        return
    training = [job for job in jobs if job.kind == "train"]
    main = training[-1] if training else next((job for job in jobs if job.state in ACTIVE), jobs[-1])
    run.state = main.state
    run.started = min((job.started for job in jobs if job.started), default=None)
    run.finished = main.finished if main.state not in ACTIVE and main.state != "queued" else None


def alarmed(session: Session, *, run_id: int) -> None:
    """One more alarm that somebody should answer."""
    run = session.get(Run, run_id)
    if run is not None:
        run.alarms += 1


def answer_alarms(session: Session, *, run: str) -> int:
    """Somebody has seen a run's alarms and decided; returns how many waited for that."""
    found = row(session, run=run)
    waited, found.alarms = found.alarms, 0
    return waited


def set_memory(session: Session, *, run_id: int, estimate: int | None = None, peak: int | None = None) -> None:
    """Bytes: what was estimated, and a measured peak, of which the highest stays."""
    run = session.get(Run, run_id)
    if run is not None:
        run.memory_estimate = estimate or run.memory_estimate
        run.memory_peak = max(peak or 0, run.memory_peak or 0) or None


def set_parameters(session: Session, *, run_id: int, trainable: int | None, total: int | None) -> None:
    run = session.get(Run, run_id)
    if run is not None:
        run.trainable_parameters = run.trainable_parameters if trainable is None else trainable
        run.total_parameters = run.total_parameters if total is None else total


# Written once: building a query costs more than SQLite takes to answer it.
_LIGHT = defer(Run.spec)  # a spec is most of a run's row, and lists show nothing of it
_IDS = bindparam("ids", expanding=True)
_BY_SLUG = select(Run).where(Run.slug == bindparam("run"))
_SLUGS = select(Run.id, Run.slug).where(Run.id.in_(_IDS))
_TAGS = select(RunTag.run_id, RunTag.tag).where(RunTag.run_id.in_(_IDS)).order_by(RunTag.tag)
# Of each run the job to show beside it comes last: the active one, else the newest.
_CURRENT = (
    select(Job.run_id, *(getattr(Job, name) for name in JOB_SHOWN))
    .where(Job.run_id.in_(_IDS))
    .order_by(Job.state.in_(ACTIVE), Job.id)
)
_RESTING = (
    select(
        Job.state,
        Job.id,
        Job.step,
        Run.state,
        Run.name,
        Run.notes,
        Run.events_offset,
        Run.alarms,
        Run.memory_peak,
        Run.trainable_parameters,
        select(func.aggregate_strings(RunTag.tag, "\n")).where(RunTag.run_id == Run.id).scalar_subquery(),
    )
    .join(Job, Job.run_id == Run.id)
    .where(Run.slug == bindparam("run"))
    .order_by(Job.id)
)


def _with_text(query: Select[tuple[Run]], text: str) -> Select[tuple[Run]]:
    sought = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    fields = (Run.slug, Run.name, Run.method, Run.base, Run.notes)
    return query.where(or_(*(field.ilike(f"%{sought}%", escape="\\") for field in fields)))


def _rows(session: Session, found: Sequence[Run], with_spec: bool = False) -> list[RunRow]:
    ids = [run.id for run in found]
    tags: dict[int, list[str]] = {}
    for run_id, tag in session.execute(_TAGS, {"ids": ids}):
        tags.setdefault(run_id, []).append(tag)
    known = list({run.parent_id for run in found if run.parent_id})
    parents = dict(session.execute(_SLUGS, {"ids": known}).tuples().all()) if known else {}
    current = {one.pop("run_id"): one for one in map(dict, session.execute(_CURRENT, {"ids": ids}).mappings())}
    return [
        RunRow(
            id=run.slug,
            number=run.id,
            name=run.name,
            state=run.state,
            method=run.method,
            base=run.base,
            tasks=run.tasks,
            seed=run.seed,
            setting=run.setting_hash,
            created=run.created,
            started=run.started,
            finished=run.finished,
            tags=tags.get(run.id, []),
            notes=run.notes,
            parent=parents.get(run.parent_id) if run.parent_id else None,
            lineage=run.lineage,
            imported_from=run.imported_from,
            trainable_parameters=run.trainable_parameters,
            total_parameters=run.total_parameters,
            memory_estimate=run.memory_estimate,
            memory_peak=run.memory_peak,
            folder=run.folder,
            owner=run.owner,
            alarms=run.alarms,
            job=current.get(run.id),
            spec=run.spec if with_spec else None,
        )
        for run in found
    ]
