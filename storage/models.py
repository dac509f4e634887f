"""The tables. A run is what was asked, a job does one step of it, an attempt is one process."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    String,
    Text,
    UniqueConstraint,
    false,
)
from sqlalchemy.orm import Mapped, mapped_column

from storage.base import Base
from storage.base import parent as _parent
from storage.types import now

WAITING = ("queued",)
ACTIVE = ("starting", "running", "cancelling")
ENDED = ("done", "failed", "cancelled", "lost")


class Dataset(Base):
    """What the studio knows of a stored data set; the rows are files."""

    __tablename__ = "datasets"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    source: Mapped[str] = mapped_column(Text, default="")
    created: Mapped[datetime] = mapped_column(default=now, index=True)
    tasks: Mapped[dict[str, Any]] = mapped_column(default=dict)
    counts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    info: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Run(Base):
    __tablename__ = "runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    spec: Mapped[dict[str, Any]]
    method: Mapped[str] = mapped_column(String(64), index=True)
    base: Mapped[str] = mapped_column(String(300))
    tasks: Mapped[list[str]]
    seed: Mapped[int]
    setting_hash: Mapped[str] = mapped_column(String(16), index=True)
    state: Mapped[str] = mapped_column(String(16), default="queued", index=True)
    created: Mapped[datetime] = mapped_column(default=now, index=True)
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    notes: Mapped[str] = mapped_column(Text, default="")
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id", ondelete="SET NULL"), index=True)
    lineage: Mapped[str | None] = mapped_column(String(16))
    imported_from: Mapped[str | None] = mapped_column(Text)
    trainable_parameters: Mapped[int | None] = mapped_column(BigInteger)
    total_parameters: Mapped[int | None] = mapped_column(BigInteger)
    memory_estimate: Mapped[int | None] = mapped_column(BigInteger)  # bytes at the peak of training
    memory_peak: Mapped[int | None] = mapped_column(BigInteger)  # the same, measured
    folder: Mapped[str] = mapped_column(String(300))
    events_offset: Mapped[int] = mapped_column(BigInteger, default=0)
    request_id: Mapped[str | None] = mapped_column(String(100), unique=True)
    alarms: Mapped[int] = mapped_column(default=0, server_default="0")  # those that nobody has answered
    owner: Mapped[str | None] = mapped_column(String(64), index=True)  # the name of a user, who may be gone since
    # A deleted run's number is never given again: its folder or a bookmark may still stand somewhere.
    __table_args__ = {"sqlite_autoincrement": True}


class RunTag(Base):
    __tablename__ = "run_tags"
    run_id: Mapped[int] = _parent("runs.id", primary_key=True)
    tag: Mapped[str] = mapped_column(String(100), primary_key=True, index=True)


class RunDataset(Base):
    """Which data sets a run reads; without a foreign key, since imported runs may name unknown ones."""

    __tablename__ = "run_datasets"
    run_id: Mapped[int] = _parent("runs.id", primary_key=True)
    dataset_id: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)


class Job(Base):
    """One step of a run. ``name`` is unique in its run and is what events and files call the job."""

    __tablename__ = "jobs"
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = _parent("runs.id", index=True)
    name: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16), default="queued")
    priority: Mapped[int] = mapped_column(default=0)
    position: Mapped[int] = mapped_column(BigInteger, default=0)
    arguments: Mapped[dict[str, Any]] = mapped_column(default=dict)
    device: Mapped[str] = mapped_column(String(32), default="auto")
    submitted: Mapped[datetime] = mapped_column(default=now)
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    cancel_requested: Mapped[datetime | None]
    resume: Mapped[bool] = mapped_column(default=False)
    lost_attempts: Mapped[int] = mapped_column(default=0)
    alone: Mapped[bool] = mapped_column(default=False, server_default=false())  # it ran out of memory beside others
    failure: Mapped[str | None] = mapped_column(String(32))
    message: Mapped[str | None] = mapped_column(Text)
    hint: Mapped[str | None] = mapped_column(Text)
    tail: Mapped[str | None] = mapped_column(Text)
    step: Mapped[int | None]
    total: Mapped[int | None]
    phase: Mapped[str | None] = mapped_column(String(64))
    seconds_left: Mapped[float | None]
    request_id: Mapped[str | None] = mapped_column(String(100), unique=True)
    __table_args__ = (
        UniqueConstraint("run_id", "name"),
        Index("ix_jobs_queue", "state", "priority", "position"),
        {"sqlite_autoincrement": True},
    )


class JobNeed(Base):
    """``job_id`` starts only when ``needs_id`` is done."""

    __tablename__ = "job_needs"
    job_id: Mapped[int] = _parent("jobs.id", primary_key=True)
    needs_id: Mapped[int] = _parent("jobs.id", primary_key=True, index=True)


class Attempt(Base):
    """One process. (host, boot, pid, process_start) name it for ever: pids alone are used again."""

    __tablename__ = "attempts"
    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = _parent("jobs.id")
    number: Mapped[int]
    outcome: Mapped[str | None] = mapped_column(String(16))
    token: Mapped[str] = mapped_column(String(64), default="")
    device: Mapped[str | None] = mapped_column(String(64))
    host: Mapped[str | None] = mapped_column(String(200))
    boot: Mapped[str | None] = mapped_column(String(64))
    pid: Mapped[int | None]
    process_start: Mapped[float | None]
    created: Mapped[datetime] = mapped_column(default=now)
    started: Mapped[datetime | None]
    ended: Mapped[datetime | None]
    heartbeat: Mapped[datetime | None]
    exit_code: Mapped[int | None]
    last_seq: Mapped[int] = mapped_column(BigInteger, default=0)
    resumed_from: Mapped[int | None]
    checkpoint_step: Mapped[int | None]
    versions: Mapped[dict[str, Any] | None]
    # Said by the worker's own last event; the attempt has ended only when its process is gone too.
    said: Mapped[str | None] = mapped_column(String(16))
    memory_peak: Mapped[int | None] = mapped_column(BigInteger)  # bytes of a GPU, as the worker said at its end
    memory_key: Mapped[str | None] = mapped_column(String(16), index=True)  # equal for attempts that take the same
    __table_args__ = (UniqueConstraint("job_id", "number"), Index("ix_attempts_ended", "ended"))


class Lease(Base):
    """A job's hold on a device; the shares of one device add up to at most 1."""

    __tablename__ = "leases"
    job_id: Mapped[int] = _parent("jobs.id", primary_key=True)
    device: Mapped[str] = mapped_column(String(64), index=True)
    share: Mapped[float] = mapped_column(default=1.0)
    since: Mapped[datetime] = mapped_column(default=now)


class DeviceHold(Base):
    """A whole device that a process outside the queue works on: the inference worker. It gives way to jobs."""

    __tablename__ = "device_holds"
    holder: Mapped[str] = mapped_column(String(100), primary_key=True)
    device: Mapped[str] = mapped_column(String(64), index=True)
    title: Mapped[str] = mapped_column(String(300))
    pid: Mapped[int]
    process_start: Mapped[float]
    boot: Mapped[str] = mapped_column(String(64))
    since: Mapped[datetime] = mapped_column(default=now)


class Series(Base):
    """One curve of one job; its points lie in chunks."""

    __tablename__ = "series"
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = _parent("runs.id", index=True)
    job_id: Mapped[int] = _parent("jobs.id")
    name: Mapped[str] = mapped_column(String(200))
    count: Mapped[int] = mapped_column(default=0)
    last_step: Mapped[int | None]
    last_value: Mapped[float | None]
    __table_args__ = (UniqueConstraint("job_id", "name"),)


class SeriesChunk(Base):
    """Up to ``storage.queries.series.CHUNK`` points: ``steps`` little-endian int32, ``values`` float32."""

    __tablename__ = "series_chunks"
    series_id: Mapped[int] = _parent("series.id", primary_key=True)
    first_step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    last_step: Mapped[int]
    count: Mapped[int]
    steps: Mapped[bytes]
    values: Mapped[bytes]


class RoutingSnapshot(Base):
    """Routing figures of one moment; ``axes`` holds the names along the arrays' axes."""

    __tablename__ = "routing_snapshots"
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = _parent("runs.id", index=True)
    job_id: Mapped[int] = _parent("jobs.id")
    moment: Mapped[str] = mapped_column(String(64))
    step: Mapped[int]
    split: Mapped[str] = mapped_column(String(32))
    file: Mapped[str] = mapped_column(String(300))
    axes: Mapped[dict[str, Any]]
    created: Mapped[datetime] = mapped_column(default=now)
    __table_args__ = (UniqueConstraint("job_id", "moment", "split"),)


class RoutingArray(Base):
    """One float32 array of a snapshot, little-endian, C order."""

    __tablename__ = "routing_arrays"
    snapshot_id: Mapped[int] = _parent("routing_snapshots.id", primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    shape: Mapped[list[int]]
    data: Mapped[bytes]


class Score(Base):
    """One figure of one task. Scores with equal ``key`` were taken on the same rows and can be paired."""

    __tablename__ = "scores"
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = _parent("runs.id", index=True)
    job_id: Mapped[int] = _parent("jobs.id")
    task: Mapped[str] = mapped_column(String(200))
    dataset: Mapped[str] = mapped_column(String(64), default="")
    split: Mapped[str] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(String(32))
    metric: Mapped[str] = mapped_column(String(64))
    value: Mapped[float | None]
    stderr: Mapped[float | None]
    rows: Mapped[int] = mapped_column(default=0)
    primary: Mapped[bool] = mapped_column(default=False)
    chance: Mapped[float | None]
    key: Mapped[str] = mapped_column(String(64), default="", index=True)
    predictions: Mapped[str | None] = mapped_column(String(300))
    extras: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created: Mapped[datetime] = mapped_column(default=now)
    __table_args__ = (UniqueConstraint("job_id", "task", "dataset", "split", "model", "metric"),)


class RunTable(Base):
    """A small table that a job said at a step: coefficients of a fusion, a sweep over noise."""

    __tablename__ = "run_tables"
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = _parent("runs.id", index=True)
    job_id: Mapped[int] = _parent("jobs.id")
    name: Mapped[str] = mapped_column(String(64))
    step: Mapped[int]
    columns: Mapped[list[str]]
    rows: Mapped[list[Any]]
    __table_args__ = (UniqueConstraint("job_id", "name", "step"),)


class LogLine(Base):
    """What a job said: messages, warnings, alarms."""

    __tablename__ = "log_lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = _parent("runs.id", index=True)
    job_id: Mapped[int] = _parent("jobs.id", index=True)
    attempt: Mapped[int]
    at: Mapped[datetime]
    level: Mapped[str] = mapped_column(String(16))
    name: Mapped[str | None] = mapped_column(String(100))
    step: Mapped[int | None]
    message: Mapped[str] = mapped_column(Text)


class Setting(Base):
    __tablename__ = "settings"
    key: Mapped[str] = mapped_column(String(100), primary_key=True)
    value: Mapped[dict[str, Any]]
    changed: Mapped[datetime] = mapped_column(default=now, onupdate=now)


class User(Base):
    """Who may sign in. ``stamp`` is another one after every change that ends sessions."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    password: Mapped[str] = mapped_column(String(255))  # an Argon2 hash with its own salt and costs
    stamp: Mapped[str] = mapped_column(String(32))
    created: Mapped[datetime] = mapped_column(default=now)
    disabled: Mapped[datetime | None]
    seen: Mapped[datetime | None]  # the last sign-in
    __table_args__ = {"sqlite_autoincrement": True}


class ApiToken(Base):
    """A key of one user for programs; of the key itself only its SHA-256 is kept."""

    __tablename__ = "api_tokens"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = _parent("users.id", index=True)
    label: Mapped[str] = mapped_column(String(100))
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[datetime] = mapped_column(default=now)
    expires: Mapped[datetime | None]
    used: Mapped[datetime | None]
    __table_args__ = {"sqlite_autoincrement": True}


class UserSession(Base):
    """A browser in which a user is signed in, by the SHA-256 of its cookie; it counts while ``stamp`` is the user's."""

    __tablename__ = "user_sessions"
    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[int] = _parent("users.id", index=True)
    stamp: Mapped[str] = mapped_column(String(32))
    began: Mapped[datetime]
    acted: Mapped[datetime]  # the last use, to some minutes


class Study(Base):
    """Runs that are meant to be compared."""

    __tablename__ = "studies"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    notes: Mapped[str] = mapped_column(Text, default="")
    created: Mapped[datetime] = mapped_column(default=now)


class StudyRun(Base):
    __tablename__ = "study_runs"
    study_id: Mapped[int] = _parent("studies.id", primary_key=True)
    run_id: Mapped[int] = _parent("runs.id", primary_key=True, index=True)


class Conversation(Base):
    """A chat with one to four models; ``models`` are runs by id, or ``base``."""

    __tablename__ = "conversations"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(200))
    models: Mapped[list[str]]
    system: Mapped[str] = mapped_column(Text, default="")
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created: Mapped[datetime] = mapped_column(default=now)
    changed: Mapped[datetime] = mapped_column(default=now, index=True)
    owner: Mapped[str | None] = mapped_column(String(64), index=True)
    __table_args__ = {"sqlite_autoincrement": True}  # a bookmark never leads to another conversation


class Message(Base):
    """A question (no ``model``, no ``question_id``) or one model's answer to it."""

    __tablename__ = "messages"
    id: Mapped[int] = mapped_column(primary_key=True)
    conversation_id: Mapped[int] = _parent("conversations.id")
    question_id: Mapped[int | None] = mapped_column(ForeignKey("messages.id", ondelete="CASCADE"), index=True)
    model: Mapped[str | None] = mapped_column(String(64))
    text: Mapped[str] = mapped_column(Text, default="")
    tokens: Mapped[int] = mapped_column(default=0)
    seconds: Mapped[float] = mapped_column(default=0.0)
    ended: Mapped[str | None] = mapped_column(String(16))
    problem: Mapped[str | None] = mapped_column(Text)
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created: Mapped[datetime] = mapped_column(default=now)
    __table_args__ = (
        Index("ix_messages_order", "conversation_id", "question_id", "id"),
        {"sqlite_autoincrement": True},
    )
