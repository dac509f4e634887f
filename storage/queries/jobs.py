"""Jobs: the queue, and what a job may become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Exists, Select, and_, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from storage.errors import ConflictError, MissingError
from storage.models import ACTIVE, Attempt, Job, JobNeed, Lease, Run
from storage.queries import runs as run_queries
from storage.types import now

DEPENDENCY = "dependency"


@dataclass(frozen=True)
class JobRow:
    """``failure`` is one of data, memory, configuration, internal, dependency; ``attempt`` the newest attempt's number;
    ``leased`` the device that it holds a ``share`` of; ``ahead`` how many queued jobs come first, if it is queued."""

    id: int
    run: str
    name: str
    kind: str
    state: str
    priority: int
    position: int
    arguments: dict[str, Any]
    device: str
    submitted: datetime
    started: datetime | None
    finished: datetime | None
    cancel_requested: datetime | None
    resume: bool
    lost_attempts: int
    failure: str | None
    message: str | None
    hint: str | None
    tail: str | None
    step: int | None
    total: int | None
    phase: str | None
    seconds_left: float | None
    attempt: int
    leased: str | None
    share: float | None
    ahead: int | None


def add(
    session: Session,
    *,
    run: str,
    kind: str,
    arguments: dict[str, Any] | None = None,
    device: str = "auto",
    priority: int = 0,
    needs: Sequence[int] = (),
    request_id: str | None = None,
) -> JobRow:
    """Queue one step of a run behind everything of its priority; ``needs`` are jobs that must be done first."""
    if request_id is not None:
        known = session.scalar(select(Job.id).where(Job.request_id == request_id))
        if known is not None:
            return get(session, job=known)
    owner = run_queries.row(session, run=run)
    job = Job(
        run_id=owner.id,
        name=free_name(session, run_id=owner.id, kind=kind),
        kind=kind,
        arguments=arguments or {},
        device=device,
        priority=priority,
        position=_last_position(session) + 1,
        request_id=request_id,
    )
    session.add(job)
    session.flush()
    session.add_all(JobNeed(job_id=job.id, needs_id=row(session, job=need).id) for need in dict.fromkeys(needs))
    run_queries.refresh_state(session, run_id=owner.id)
    return get(session, job=job.id)


def row(session: Session, *, job: int) -> Job:
    """The stored object itself."""
    found = session.get(Job, job)
    if found is None:
        raise MissingError(f"There is no job {job}.", "List the jobs of a run to see their numbers.")
    return found


def get(session: Session, *, job: int) -> JobRow:
    return _rows(session, [row(session, job=job)])[0]


def of_run(session: Session, *, run: str) -> list[JobRow]:
    """All jobs of a run, oldest first."""
    owner = run_queries.row(session, run=run)
    return _rows(session, session.scalars(select(Job).where(Job.run_id == owner.id).order_by(Job.id)).all())


def queue(session: Session, *, limit: int = 200) -> list[JobRow]:
    """Jobs at work, then those that wait, in the order in which they will start."""
    active = session.scalars(select(Job).where(Job.state.in_(ACTIVE)).order_by(Job.id)).all()
    waiting = select(Job).where(Job.state == "queued").order_by(*_order()).limit(limit)
    return _rows(session, [*active, *session.scalars(waiting).all()])


def cancel(session: Session, *, job: int) -> JobRow:
    """A waiting job is cancelled at once; a working one becomes ``cancelling`` and the dispatcher ends it."""
    found = row(session, job=job)
    if found.state == "queued":
        end(session, job=job, state="cancelled")
    elif found.state in ("starting", "running"):
        found.state = "cancelling"
        found.cancel_requested = now()
        run_queries.refresh_state(session, run_id=found.run_id)
    return get(session, job=job)


def cancel_run(session: Session, *, run: str) -> list[JobRow]:
    """Cancel every job of a run that waits or works; jobs that have ended stay as they are."""
    owner = run_queries.row(session, run=run)
    owner.alarms = 0  # whoever decides over a run has answered them
    open_states = ("queued", "starting", "running")
    # Newest first, so that what depends on another job is cancelled as asked, not as a consequence.
    ids = select(Job.id).where(Job.run_id == owner.id, Job.state.in_(open_states)).order_by(Job.id.desc())
    return [cancel(session, job=job) for job in session.scalars(ids).all()]


def resume(session: Session, *, job: int) -> JobRow:
    """Queue an ended job again, from its last checkpoint; jobs that were cancelled because of it come back too."""
    found = row(session, job=job)
    if found.state not in ("failed", "cancelled", "lost"):
        raise ConflictError(
            f"Job {found.name} is {found.state}.", "Only a job that failed, was cancelled or was lost can be resumed."
        )
    found.lost_attempts = 0
    requeue(session, job=job, position=_last_position(session) + 1)
    dependants = select(Job.id).join(JobNeed, JobNeed.job_id == Job.id).where(JobNeed.needs_id == job)
    for dependant in session.scalars(dependants.where(Job.state == "cancelled", Job.failure == DEPENDENCY)).all():
        resume(session, job=dependant)
    return get(session, job=job)


def resume_run(session: Session, *, run: str) -> list[JobRow]:
    """Resume the jobs of a run that failed, were cancelled or were lost."""
    owner = run_queries.row(session, run=run)
    owner.alarms = 0
    stopped = ("failed", "cancelled", "lost")
    ids = session.scalars(select(Job.id).where(Job.run_id == owner.id, Job.state.in_(stopped)).order_by(Job.id)).all()
    if not ids:
        raise ConflictError(f"{run} has nothing to resume; it is {owner.state}.", "Clone it to train it again.")
    return [resume(session, job=job) for job in ids if row(session, job=job).state in stopped]


def requeue(session: Session, *, job: int, position: int | None = None) -> None:
    """Put a job back into the queue with its resume flag; without ``position`` it keeps its old place."""
    found = row(session, job=job)
    found.state = "queued"
    found.resume = True
    found.finished = found.cancel_requested = None
    found.failure = found.message = found.hint = found.tail = None
    found.position = found.position if position is None else position
    run_queries.refresh_state(session, run_id=found.run_id)


def move_to_front(session: Session, *, run: str) -> None:
    """Let the jobs of a run that wait start before everything else that waits, in their own order."""
    owner = run_queries.row(session, run=run)
    waiting = session.scalars(select(Job).where(Job.state == "queued").order_by(*_order())).all()
    own = [job for job in waiting if job.run_id == owner.id]
    if not own:
        raise ConflictError(f"{run} waits for nothing; it is {owner.state}.", "Only what is queued can be moved.")
    priority, first = waiting[0].priority, min(job.position for job in waiting)
    for place, job in enumerate(own):
        job.priority, job.position = priority, first - len(own) + place


def next_ready(session: Session, *, requests: Sequence[str], passed_over: Sequence[int] = ()) -> Job | None:
    """The first job that may start and asks for one of these devices, as the stored object."""
    query = _ready(requests).where(Job.id.not_in(list(passed_over)))
    return session.scalars(query.order_by(*_order()).limit(1)).one_or_none()


def claim(session: Session, *, requests: Sequence[str], job: int | None = None) -> int | None:
    """Take the first ready job that asks for one of these devices, or this one: ``queued`` becomes ``starting``.

    One UPDATE with a sub-select, so two claimants never get the same job.
    """
    query = _ready(requests) if job is None else _ready(requests).where(Job.id == job)
    first = query.with_only_columns(Job.id).order_by(*_order()).limit(1).scalar_subquery()
    statement = (
        update(Job).where(Job.id == first, Job.state == "queued").values(state="starting").returning(Job.id, Job.run_id)
    )
    taken = session.execute(statement.execution_options(synchronize_session=False)).one_or_none()
    if taken is None:
        return None
    session.expire_all()
    run_queries.refresh_state(session, run_id=taken.run_id)
    return int(taken.id)


def end(
    session: Session,
    *,
    job: int,
    state: str,
    failure: str | None = None,
    message: str | None = None,
    hint: str | None = None,
    tail: str | None = None,
) -> None:
    """Give a job its final state, free its device, and cancel what can no longer start."""
    found = row(session, job=job)
    found.state = state
    ended = found.finished or now()  # as its worker said: both times come from one clock
    found.finished = max(ended, found.started) if found.started else ended
    found.seconds_left = None
    found.failure, found.message, found.hint, found.tail = failure, message, hint, tail
    lease = session.get(Lease, job)
    if lease is not None:
        session.delete(lease)
    run_queries.refresh_state(session, run_id=found.run_id)
    if state != "done":
        _cancel_dependants(session, found)


def unsatisfiable(session: Session, *, requests: Sequence[str]) -> list[int]:
    """Queued jobs that ask for a device which this machine does not have."""
    query = select(Job.id).where(Job.state == "queued", Job.device.not_in(list(requests)))
    return list(session.scalars(query))


def busy(session: Session) -> int:
    """Number of jobs that wait or work."""
    return (
        session.scalar(select(func.count()).select_from(Job).where(or_(Job.state == "queued", Job.state.in_(ACTIVE))))
        or 0
    )


def waiting(session: Session) -> int:
    """Number of queued jobs."""
    return session.scalar(select(func.count()).select_from(Job).where(Job.state == "queued")) or 0


def wanted(session: Session, *, requests: Sequence[str]) -> bool:
    """Whether a job that may start asks for one of these devices."""
    return session.scalars(_ready(requests).limit(1)).first() is not None


def free_name(session: Session, *, run_id: int, kind: str) -> str:
    """``train``, then ``train-2``: unique among the run's jobs."""
    taken = set(session.scalars(select(Job.name).where(Job.run_id == run_id)))
    number = 2
    name = kind
    while name in taken:
        name = f"{kind}-{number}"
        number += 1
    return name


def _cancel_dependants(session: Session, failed: Job) -> None:
    query = select(Job.id).join(JobNeed, JobNeed.job_id == Job.id)
    for job in session.scalars(query.where(JobNeed.needs_id == failed.id, Job.state == "queued")).all():
        reason = f"It needs job {failed.name}, which is {failed.state}."
        end(
            session, job=job, state="cancelled", failure=DEPENDENCY, message=reason, hint=f"Resume {failed.name} first."
        )


def _ready(requests: Sequence[str]) -> Select[tuple[Job]]:
    return select(Job).where(Job.state == "queued", Job.device.in_(list(requests)), ~_blocked())


def _blocked() -> Exists:
    """Whether a job needs another that is not done."""
    need, unmet = aliased(Job), JobNeed
    query = select(unmet.job_id).join(need, need.id == unmet.needs_id)
    return query.where(unmet.job_id == Job.id, need.state != "done").exists()


def _order() -> tuple[Any, ...]:
    return Job.priority.desc(), Job.position, Job.id


def _last_position(session: Session) -> int:
    return session.scalar(select(func.max(Job.position))) or 0


def _ahead(session: Session, found: Sequence[Job]) -> dict[int, int]:
    """Queued job -> how many others start before it."""
    queued = [job for job in found if job.state == "queued"]
    if len(queued) > 1:
        waiting = session.scalars(select(Job.id).where(Job.state == "queued").order_by(*_order()))
        return {job: place for place, job in enumerate(waiting)}
    earlier = select(func.count()).select_from(Job).where(Job.state == "queued")
    return {
        job.id: session.scalar(
            earlier.where(
                or_(
                    Job.priority > job.priority,
                    and_(Job.priority == job.priority, Job.position < job.position),
                    and_(Job.priority == job.priority, Job.position == job.position, Job.id < job.id),
                )
            )
        )
        or 0
        for job in queued
    }


def _rows(session: Session, found: Sequence[Job]) -> list[JobRow]:
    ids = [job.id for job in found]
    slugs = dict(
        session.execute(select(Run.id, Run.slug).where(Run.id.in_({job.run_id for job in found}))).tuples().all()
    )
    newest = select(Attempt.job_id, func.max(Attempt.number)).where(Attempt.job_id.in_(ids)).group_by(Attempt.job_id)
    attempts = dict(session.execute(newest).tuples().all())
    leases = {lease.job_id: lease for lease in session.scalars(select(Lease).where(Lease.job_id.in_(ids)))}
    ahead = _ahead(session, found)
    made = ("run", "attempt", "leased", "share", "ahead")
    kept = [field for field in JobRow.__dataclass_fields__ if field not in made]
    return [
        JobRow(
            **{field: getattr(job, field) for field in kept},
            run=slugs[job.run_id],
            attempt=attempts.get(job.id, 0),
            leased=leases[job.id].device if job.id in leases else None,
            share=leases[job.id].share if job.id in leases else None,
            ahead=ahead.get(job.id),
        )
        for job in found
    ]
