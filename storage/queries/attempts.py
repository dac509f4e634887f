"""Attempts and leases: the processes behind jobs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from storage.models import Attempt, DeviceHold, Job, Lease, Run
from storage.types import now


@dataclass(frozen=True)
class AttemptRow:
    id: int
    number: int
    outcome: str | None
    device: str | None
    pid: int | None
    created: datetime
    started: datetime | None
    ended: datetime | None
    exit_code: int | None
    resumed_from: int | None
    checkpoint_step: int | None
    versions: dict[str, Any] | None


@dataclass(frozen=True)
class OpenAttempt:
    """An attempt whose process has not been seen to end, with what is needed to find and judge it."""

    id: int
    number: int
    token: str
    host: str | None
    boot: str | None
    pid: int | None
    process_start: float | None
    said: str | None
    checkpoint_step: int | None
    job_id: int
    job: str
    kind: str
    job_state: str
    cancel_requested: datetime | None
    lost_attempts: int
    run_id: int
    run: str
    folder: str


@dataclass(frozen=True)
class LastWords:
    """What an attempt and its job say when its process is gone; ``outcome`` is None without a last event, ``shared``
    says that it had a part of its device only."""

    outcome: str | None
    cancelling: bool
    checkpoint_step: int | None
    resumed_from: int | None
    lost_attempts: int
    shared: bool
    failure: str | None
    message: str | None
    hint: str | None
    tail: str | None


def of_job(session: Session, *, job: int) -> list[AttemptRow]:
    """Oldest first."""
    fields = AttemptRow.__dataclass_fields__
    found = session.scalars(select(Attempt).where(Attempt.job_id == job).order_by(Attempt.number))
    return [AttemptRow(**{field: getattr(attempt, field) for field in fields}) for attempt in found]


def newest(session: Session, *, run: str) -> str:
    """The newest attempt of a run as ``train-2``, whatever the clock said; empty where there is none."""
    query = select(Job.name, Attempt.number).join(Job, Job.id == Attempt.job_id).join(Run, Run.id == Job.run_id)
    found = session.execute(query.where(Run.slug == run).order_by(Attempt.id.desc()).limit(1)).one_or_none()
    return "" if found is None else f"{found.name}-{found.number}"


def open_ones(session: Session) -> list[OpenAttempt]:
    """Attempts that the dispatcher made and has not settled yet."""
    query = (
        select(Attempt, Job, Run)
        .join(Job, Job.id == Attempt.job_id)
        .join(Run, Run.id == Job.run_id)
        .where(Attempt.ended.is_(None), Attempt.token != "")
        .order_by(Attempt.id)
    )
    return [
        OpenAttempt(
            **{name: getattr(attempt, name) for name in _OF_ATTEMPT},
            job_id=job.id,
            job=job.name,
            kind=job.kind,
            job_state=job.state,
            cancel_requested=job.cancel_requested,
            lost_attempts=job.lost_attempts,
            run_id=run.id,
            run=run.slug,
            folder=run.folder,
        )
        for attempt, job, run in session.execute(query)
    ]


def begin(
    session: Session, *, job: int, token: str, device: str, share: float, host: str, memory_key: str | None = None
) -> Attempt:
    """A new attempt and the lease of its device, before there is a process."""
    last = session.scalar(select(func.max(Attempt.number)).where(Attempt.job_id == job)) or 0
    attempt = Attempt(job_id=job, number=last + 1, token=token, device=device, host=host, memory_key=memory_key)
    session.add_all([attempt, Lease(job_id=job, device=device, share=share)])
    session.flush()
    return attempt


def set_process(session: Session, *, attempt: int, pid: int, process_start: float, boot: str) -> None:
    values = {"pid": pid, "process_start": process_start, "boot": boot, "heartbeat": now()}
    session.execute(update(Attempt).where(Attempt.id == attempt).values(values))


def beat(session: Session, *, attempts: list[int]) -> None:
    """These attempts' processes were seen alive."""
    session.execute(update(Attempt).where(Attempt.id.in_(attempts)).values(heartbeat=now()))


def last_words(session: Session, *, attempt: int) -> LastWords:
    found, job = session.execute(
        select(Attempt, Job).join(Job, Job.id == Attempt.job_id).where(Attempt.id == attempt)
    ).one()
    lease = session.get(Lease, job.id)
    return LastWords(
        outcome=found.said,
        cancelling=job.state == "cancelling",
        checkpoint_step=found.checkpoint_step,
        resumed_from=found.resumed_from,
        lost_attempts=job.lost_attempts,
        shared=lease is not None and lease.share < 1.0,
        failure=job.failure,
        message=job.message,
        hint=job.hint,
        tail=job.tail,
    )


def settle(session: Session, *, attempt: int, outcome: str, exit_code: int | None = None) -> None:
    """The process is gone: give the attempt its outcome and free its device."""
    found = session.get(Attempt, attempt)
    if found is None:
        return
    found.outcome, found.exit_code, found.ended = outcome, exit_code, now()
    lease = session.get(Lease, found.job_id)
    if lease is not None:
        session.delete(lease)
    session.flush()


def leased_shares(session: Session) -> dict[str, float]:
    """Device -> the sum of the shares that jobs hold on it; 1 where a process outside the queue holds it."""
    shares = dict(session.execute(select(Lease.device, func.sum(Lease.share)).group_by(Lease.device)).tuples().all())
    return shares | dict.fromkeys(session.scalars(select(DeviceHold.device)), 1.0)


def memory_peak(session: Session, *, key: str) -> int | None:
    """Bytes of a GPU that finished attempts of this kind took at most; None where none was measured."""
    query = select(func.max(Attempt.memory_peak)).where(Attempt.memory_key == key, Attempt.outcome == "done")
    return session.scalar(query)


def overflowed(session: Session, *, key: str) -> bool:
    """Whether a job of this kind has run out of memory beside others."""
    query = select(Attempt.id).join(Job, Job.id == Attempt.job_id).where(Attempt.memory_key == key, Job.alone)
    return session.scalar(query.limit(1)) is not None


def leases(session: Session) -> list[dict[str, Any]]:
    """Who holds which device: device, share, since, job, name, run."""
    query = select(Lease, Job, Run).join(Job, Job.id == Lease.job_id).join(Run, Run.id == Job.run_id)
    return [
        {
            "device": lease.device,
            "share": lease.share,
            "since": lease.since,
            "job": job.id,
            "name": job.name,
            "run": run.slug,
        }
        for lease, job, run in session.execute(query.order_by(Lease.device, Lease.since))
    ]


_OF_ATTEMPT = (
    "id",
    "number",
    "token",
    "host",
    "boot",
    "pid",
    "process_start",
    "said",
    "checkpoint_step",
)
