"""Brings a run's ``events.jsonl`` into the database: as often as one likes, each event counts once.

Whole new lines are read from the stored offset on. (attempt, seq) decides whether an event is known; the offset only
saves reading. A half-written line waits for its end, a broken one is skipped. ``started`` voids what earlier attempts
said past its step; what a superseded attempt still says is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, InvalidRequestError, StatementError
from sqlalchemy.orm import Session

from core.home import RunFolder
from core.jobs import event_values as safe
from core.jobs.routing_files import read_arrays
from storage import Database
from storage.models import Attempt, Job
from storage.queries import jobs, logs, routing, runs, scores, series, tables

GIB = 1 << 30
PASS_BYTES = 1 << 20
LONGEST_LINE = 64 << 20


@dataclass(frozen=True)
class Ingested:
    """``applied`` events, ``skipped`` lines that could not be used, and whether the file's end was reached."""

    applied: int
    skipped: int
    caught_up: bool


def ingest_events(
    database: Database, folder: RunFolder, *, run: str | None = None, max_bytes: int | None = None
) -> Ingested:
    """Apply the new events of a run; ``run`` is its id (default: the folder's name), ``max_bytes`` bounds the work."""
    slug = run or folder.root.name
    applied = skipped = done = 0
    goal = folder.events.stat().st_size if folder.events.exists() else 0  # a busy writer is never caught up with
    while True:
        with database.session() as session:
            offset = runs.row(session, run=slug).events_offset
        lines, end = _whole_lines(folder.events, offset)
        if end == offset:
            return Ingested(applied, skipped, True)
        with database.write() as session:
            owner = runs.row(session, run=slug)
            if owner.events_offset != offset:
                continue  # another reader was faster
            new, useless = _apply_lines(session, owner.id, folder, lines)
            owner.events_offset = end
        applied, skipped, done = applied + new, skipped + useless, done + abs(end - offset)
        if end >= goal or max_bytes is not None and done >= max_bytes:
            return Ingested(applied, skipped, end >= goal)


def close_imported(database: Database, *, run: str) -> None:
    """Jobs that came with an imported run and never said how they ended are lost: nothing works on them here."""
    with database.write() as session:
        owner = runs.row(session, run=run)
        for job in session.scalars(select(Job).where(Job.run_id == owner.id, Job.state == "running")).all():
            if not session.scalar(select(Attempt.id).where(Attempt.job_id == job.id, Attempt.token != "")):
                message = "The imported events end before the job did."
                jobs.end(session, job=job.id, state="lost", failure="internal", message=message, hint="Resume it here.")


def _apply_lines(session: Session, run_id: int, folder: RunFolder, lines: list[bytes]) -> tuple[int, int]:
    """Applied and skipped; when one event upsets the database, the others are applied without it."""
    try:
        with session.begin_nested():
            return _apply_together(session, run_id, folder, lines)
    except (StatementError, InvalidRequestError, ValueError, OverflowError) as error:
        if isinstance(error, DBAPIError) and not isinstance(error, DataError | IntegrityError | InterfaceError):
            raise  # a lock, a full disk, a damaged file: not an event's fault, and the events wait
        if len(lines) == 1:
            return 0, 1
    half = len(lines) // 2
    first = _apply_lines(session, run_id, folder, lines[:half])
    second = _apply_lines(session, run_id, folder, lines[half:])
    return first[0] + second[0], first[1] + second[1]


def _apply_together(session: Session, run_id: int, folder: RunFolder, lines: list[bytes]) -> tuple[int, int]:
    batch = _Batch(session, run_id, folder)
    for line in lines:
        batch.take(line)
    batch.flush()
    session.flush()
    return batch.applied, batch.skipped


def _whole_lines(path: Path, offset: int) -> tuple[list[bytes], int]:
    """New lines and the offset behind them; a file shorter than the offset is read again from its start."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return [], offset
    start = 0 if size < offset else offset
    if size == start:
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        block = file.read(PASS_BYTES)
        while (end := block.rfind(b"\n") + 1) == 0:
            more = file.read(PASS_BYTES)
            if not more:
                return [], start  # the writer is not done with this line
            block += more
            if len(block) > LONGEST_LINE:
                return [block], start + len(block)  # no event is that long: skip it
    return block[:end].split(b"\n")[:-1], start + end


@dataclass
class _Known:
    """A job as the batch sees it, with points and log lines that are not stored yet."""

    job: Job
    newest: int
    attempts: dict[int, Attempt]
    points: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    lines: list[logs.NewLine] = field(default_factory=list)


class _Batch:
    """Events of one pass, applied in one transaction."""

    def __init__(self, session: Session, run_id: int, folder: RunFolder) -> None:
        self.session, self.run_id, self.folder = session, run_id, folder
        self.applied = self.skipped = 0
        self._jobs: dict[str, _Known] = {}

    def take(self, line: bytes) -> None:
        for event in safe.parse(line):
            try:
                self.applied += self._apply(event)
            except (KeyError, TypeError, ValueError, OverflowError):
                if not self.session.is_active:
                    raise  # it reached the database: the whole batch has to be taken back
                self.skipped += 1
            return
        self.skipped += bool(line.strip())

    def flush(self) -> None:
        for known in self._jobs.values():
            self._store_points(known)
            logs.extend(self.session, run_id=self.run_id, job_id=known.job.id, lines=known.lines)
            known.lines = []

    def _apply(self, event: dict[str, Any]) -> bool:
        number, seq, kind = safe.count(event["attempt"], 31), safe.count(event["seq"], 62), event["kind"]
        known = self._known(str(event["job"]))
        attempt = known.attempts.get(number) or self._add_attempt(known, number)
        if seq <= attempt.last_seq or number < known.newest:
            return False
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, known, attempt, event)
        attempt.last_seq = seq
        return True

    def _known(self, name: str) -> _Known:
        if name not in self._jobs:
            query = select(Job).where(Job.run_id == self.run_id, Job.name == name[:64])
            job = self.session.scalar(query) or self._add_job(name[:64])
            found = self.session.scalars(select(Attempt).where(Attempt.job_id == job.id)).all()
            newest = max((attempt.number for attempt in found if attempt.started), default=0)
            self._jobs[name] = _Known(job, newest, {attempt.number: attempt for attempt in found})
        return self._jobs[name]

    def _add_job(self, name: str) -> Job:
        """A job that this database did not queue: the run comes from another machine."""
        kind = name.rpartition("-")[0] if name.rpartition("-")[2].isdigit() else name
        last = self.session.scalar(select(func.max(Job.position))) or 0
        job = Job(run_id=self.run_id, name=name, kind=kind[:32], state="running", position=last + 1)
        self.session.add(job)
        self.session.flush()
        return job

    def _add_attempt(self, known: _Known, number: int) -> Attempt:
        attempt = Attempt(job_id=known.job.id, number=number, token="")
        self.session.add(attempt)
        self.session.flush()
        known.attempts[number] = attempt
        return attempt

    def _store_points(self, known: _Known) -> None:
        if known.points:
            series.extend(self.session, run_id=self.run_id, job_id=known.job.id, points=known.points)
        known.points = {}

    def started(self, known: _Known, attempt: Attempt, event: dict[str, Any]) -> None:
        step, at = safe.step({"step": 0, **event}), safe.time(event)
        self._store_points(known)
        series.truncate(self.session, job_id=known.job.id, step=step)
        routing.void_after(self.session, job_id=known.job.id, step=step)
        tables.void_after(self.session, job_id=known.job.id, step=step)
        attempt.started, attempt.resumed_from = at, step
        attempt.versions = event["versions"] if isinstance(event.get("versions"), dict) else None
        attempt.device = attempt.device or safe.text(event.get("device"), 64)
        known.newest = attempt.number
        known.job.started = known.job.started or at
        known.job.step = step
        if known.job.state == "starting" or not attempt.token and known.job.state != "cancelling":
            known.job.state = "running"
            runs.refresh_state(self.session, run_id=self.run_id)
        trainable, total = safe.whole(event.get("trainable")), safe.whole(event.get("total"))
        runs.set_parameters(self.session, run_id=self.run_id, trainable=trainable, total=total)

    def estimate(self, known: _Known, attempt: Attempt, event: dict[str, Any]) -> None:
        runs.set_memory(self.session, run_id=self.run_id, estimate=safe.whole(event.get("memory")))

    def memory(self, known: _Known, attempt: Attempt, event: dict[str, Any]) -> None:
        attempt.memory_peak = safe.whole(event.get("peak"))

    def progress(self, known: _Known, attempt: Attempt, event: dict[str, Any]) -> None:
        job = known.job
        job.step, job.total = safe.step(event), safe.whole(event.get("total"))
        job.phase = safe.text(event.get("phase"), 64)
        job.seconds_left = safe.finite(event.get("seconds_left"))

    def metrics(self, known: _Known, attempt: Attempt, event: dict[str, Any]) -> None:
        step = safe.step(event)
        for name, value in event["values"].items():
            steps, values = known.points.setdefault(safe.text(name, 200), ([], []))
            number = float("nan") if value is None else float(value)
            steps.append(step)
            values.append(number)
        if known.job.kind == "train" and (peak := safe.finite(event["values"].get("memory_gib"))):
            runs.set_memory(self.session, run_id=self.run_id, peak=round(peak * GIB))

    def routing(self, known: _Known, attempt: Attempt, event: dict[str, Any]) -> None:
        name, step = str(event["file"]), safe.step(event)
        try:
            axes, arrays = read_arrays(self.folder.routing, name)
        except ValueError as error:
            self._say(known, attempt, event, level="warning", message=str(error))
            return
        routing.add(
            self.session,
            run_id=self.run_id,
            job_id=known.job.id,
            moment=safe.text(event.get("moment") or f"step-{step}", 64),
            step=step,
            split=safe.text(event.get("split"), 32),
            file=safe.text(name, 300),
            axes=axes,
            arrays=arrays,
        )

    def score(self, known: _Known, attempt: Attempt, event: dict[str, Any]) -> None:
        named = {"task", "dataset", "split", "model", "metric", "value", "stderr", "rows", "primary", "chance"}
        head = {"run", "job", "attempt", "seq", "at", "kind", "key", "predictions"}
        predictions = event.get("predictions")
        scores.put(
            self.session,
            run_id=self.run_id,
            job_id=known.job.id,
            task=safe.text(event["task"], 200),
            dataset=safe.text(event.get("dataset"), 64),
            split=safe.text(event["split"], 32),
            model=safe.text(event["model"], 32),
            metric=safe.text(event["metric"], 64),
            value=safe.finite(event.get("value")),
            stderr=safe.finite(event.get("stderr")),
            rows=safe.whole(event.get("rows")) or 0,
            primary=bool(event.get("primary")),
            chance=safe.finite(event.get("chance")),
            key=safe.text(event.get("key"), 64),
            predictions=safe.text(predictions, 300) if predictions else None,
            extras={name: value for name, value in event.items() if name not in named | head},
        )

    def table(self, known: _Known, attempt: Attempt, event: dict[str, Any]) -> None:
        columns = [safe.text(name, 300) for name in event["columns"]]
        rows = [[safe.entry(value) for value in row] for row in event["rows"]]
        if any(len(row) != len(columns) for row in rows):
            raise ValueError("a row of another length than the columns")
        tables.put(
            self.session,
            run_id=self.run_id,
            job_id=known.job.id,
            name=safe.text(event["name"], 64),
            step=safe.step(event),
            columns=columns,
            rows=rows,
        )

    def checkpoint(self, known: _Known, attempt: Attempt, event: dict[str, Any]) -> None:
        attempt.checkpoint_step = safe.step(event)

    def log(self, known: _Known, attempt: Attempt, event: dict[str, Any]) -> None:
        self._say(
            known,
            attempt,
            event,
            level=safe.text(event.get("level") or "info", 16),
            message=safe.text(event["message"]),
        )

    def alarm(self, known: _Known, attempt: Attempt, event: dict[str, Any]) -> None:
        name = safe.text(event.get("name") or "alarm", 100)
        runs.alarmed(self.session, run_id=self.run_id)
        self._say(known, attempt, event, level="warning", message=safe.text(event.get("message") or name), name=name)

    def finished(self, known: _Known, attempt: Attempt, event: dict[str, Any]) -> None:
        if known.job.phase != "scoring":  # then the counter stands at rows, not steps
            known.job.step = safe.whole(event.get("step")) or known.job.step
        self._last_word(known, attempt, event, "done")

    def cancelled(self, known: _Known, attempt: Attempt, event: dict[str, Any]) -> None:
        known.job.step = safe.whole(event.get("step")) or known.job.step
        self._last_word(known, attempt, event, "cancelled")

    def failed(self, known: _Known, attempt: Attempt, event: dict[str, Any]) -> None:
        job = known.job
        job.failure = safe.text(event.get("failure") or "internal", 32)
        job.message, job.hint = safe.text(event.get("message")), safe.text(event.get("hint"))
        tail = event.get("tail") or ""
        job.tail = safe.text("\n".join(map(str, tail)) if isinstance(tail, list) else tail)
        self._last_word(known, attempt, event, "failed")

    def _last_word(self, known: _Known, attempt: Attempt, event: dict[str, Any], outcome: str) -> None:
        """The dispatcher gives its own jobs their final state once the process is gone; others end here."""
        attempt.said, known.job.finished = outcome, safe.time(event)
        if attempt.token:
            return
        job, at = known.job, safe.time(event)
        attempt.outcome, attempt.ended = outcome, at
        failed = outcome == "failed"
        said = {"failure": job.failure, "message": job.message, "hint": job.hint, "tail": job.tail} if failed else {}
        jobs.end(self.session, job=job.id, state=outcome, **said)
        job.finished = at
        runs.refresh_state(self.session, run_id=self.run_id)

    def _say(
        self,
        known: _Known,
        attempt: Attempt,
        event: dict[str, Any],
        *,
        level: str,
        message: str,
        name: str | None = None,
    ) -> None:
        step = safe.whole(event.get("step"))
        known.lines.append(logs.NewLine(attempt.number, safe.time(event), level, message, name, step))


_Handler = Callable[[_Batch, _Known, Attempt, dict[str, Any]], None]
_HANDLERS: dict[str, _Handler] = {
    "started": _Batch.started,
    "estimate": _Batch.estimate,
    "memory": _Batch.memory,
    "progress": _Batch.progress,
    "metrics": _Batch.metrics,
    "routing": _Batch.routing,
    "score": _Batch.score,
    "table": _Batch.table,
    "checkpoint": _Batch.checkpoint,
    "log": _Batch.log,
    "alarm": _Batch.alarm,
    "finished": _Batch.finished,
    "cancelled": _Batch.cancelled,
    "failed": _Batch.failed,
}
