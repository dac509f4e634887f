"""The dispatcher: one process that owns the queue and the devices.

    python -m core.jobs.dispatcher HOME

Everything it knows stands in the database and the run folders, so it may die at any instruction: the next one finds
the workers by pid, start time and boot (or by the token in their environment, had the pid not been noted yet), reads
what they said meanwhile, and goes on.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.orm import Session

from core.home import Home, write_json
from core.jobs import holds, leftovers, placing
from core.jobs.devices import Device, all_requests, list_devices, requests_for
from core.jobs.executors import Executor, LocalExecutor
from core.jobs.ingest import ingest_events
from core.jobs.limits import Limits
from core.jobs.placing import Start
from core.jobs.processes import Process, boot_id
from core.jobs.service import (
    Lock,
    announced,
    dispatcher_status,
    ensure_dispatcher,
    log_file,
    register_web,
    stop_dispatcher,
    web_lives,
)
from core.jobs.settling import Ending, judge, read_tail
from core.jobs.worker_log import shorten
from core.room import EXIT_NO_ROOM, trouble
from core.secrets import guard_output
from storage import Database, StorageError
from storage.errors import ReplacedError
from storage.queries import attempts, jobs, logs, runs, settings
from storage.queries.attempts import OpenAttempt
from storage.types import now

__all__ = ["Dispatcher", "Limits", "dispatcher_status", "ensure_dispatcher", "register_web", "stop_dispatcher"]

log = logging.getLogger("tessera.dispatcher")
ALONE = "The memory ran out while the job had a part of its device: it is queued again and will have it alone."


@dataclass
class _Watch:
    """What this dispatcher remembers of one attempt, in monotonic seconds; all of it may be forgotten."""

    since: float = field(default_factory=time.monotonic)
    read: float = float("-inf")
    cancel_seen: float | None = None
    asked_to_end: float | None = None
    last_word: float | None = None


class Dispatcher:
    """Claims, starts, watches, cancels, resumes; ``run()`` repeats ``step()`` until idle or told to end."""

    def __init__(
        self,
        home: Home,
        *,
        executor: Executor | None = None,
        limits: Limits | None = None,
        devices: Callable[[], list[Device]] = list_devices,
    ) -> None:
        self.home = home
        self.limits = limits or Limits()
        self.executor = executor or LocalExecutor()
        self.database = Database(home.database_url)
        self._list_devices = devices
        self._devices: list[Device] = []
        self._devices_at = self._beat_at = float("-inf")
        self._watches: dict[int, _Watch] = {}
        self._complaints: dict[str, float] = {}
        self._stop = False

    def run(self) -> bool:
        """Work until idle or told to end; False if another dispatcher of this home lives."""
        lock = Lock(self.home.dispatcher / "lock")
        while lock.acquire(seconds=1.0):
            try:
                with announced(self.home):
                    log.info("dispatcher %s at work on %s", os.getpid(), self.home.root)
                    leftovers.sweep(self.home)
                    self._loop(lock)
            finally:
                lock.release()
            # A job queued while this process was ending saw a living dispatcher and started none: look once more.
            if self._stop or not self._busy():
                return True
        return False

    def stop(self, *_: object) -> None:
        self._stop = True

    def step(self) -> int:
        """One pass over everything; returns the number of jobs that wait or work."""
        with self.database.session() as session:
            busy = jobs.busy(session)
            watched = attempts.open_ones(session)
        for attempt in watched:
            try:
                self._watch(attempt)
            except OSError as error:  # one run's folder must not hold up the others
                self._complain(f"{attempt.run}/{attempt.job} cannot be looked after; the next pass tries again", error)
        if busy:
            self._refresh_devices(self.limits.device_refresh)
            self._refuse_impossible()
            self._start_ready()
        self._beat(watched)
        return busy + len(watched)

    def _loop(self, lock: Lock) -> None:
        idle_since = time.monotonic()
        while not self._stop:
            if not lock.held():
                log.warning("the data folder was removed or replaced: ending")
                self._stop = True
                return
            try:
                busy = self.step()
            except ReplacedError as error:
                log.error("%s Ending; workers go on, and the next dispatcher finds them.", error)
                self._stop = True
                return
            except StorageError as error:
                self._complain(str(error))
                busy = 1
                time.sleep(self.limits.retry)
            except Exception as error:
                self._complain("a pass failed; the next one tries again", error)
                busy = 1
                time.sleep(self.limits.retry)
            if busy or web_lives(self.home):
                idle_since = time.monotonic()
            elif self.limits.idle is not None and time.monotonic() - idle_since >= self.limits.idle:
                log.info("nothing to do and nobody there: ending")
                return
            time.sleep(self.limits.poll)

    def _complain(self, message: str, error: Exception | None = None) -> None:
        """Log what goes wrong at every pass once a minute."""
        key, instant = f"{message} {error!r}", time.monotonic()
        if instant - self._complaints.get(key, float("-inf")) >= self.limits.complaint:
            self._complaints = {key: instant} if len(self._complaints) > 50 else {**self._complaints, key: instant}
            log.warning("%s", message, exc_info=error)

    def _busy(self) -> bool:
        with self.database.session() as session:
            return bool(jobs.busy(session))

    def _watch(self, attempt: OpenAttempt) -> None:
        watch = self._watches.setdefault(attempt.id, _Watch())
        process = self._process(attempt)
        if process is None and time.monotonic() - watch.since < self.limits.nameless_grace:
            return  # its dispatcher died while starting it: give the worker time to show its token
        lives = process is not None and self.executor.alive(process)
        shorten(self._log(attempt), self.limits.log_bytes)
        if not lives or time.monotonic() - watch.read >= self.limits.read:
            self._read(attempt, watch)
        if process is None or not lives:
            self._settle(attempt, process)
            return
        if attempt.job_state == "cancelling":
            self._press(attempt, process, watch)
        if attempt.said is not None:
            watch.last_word = watch.last_word or time.monotonic()
            if time.monotonic() - watch.last_word >= self.limits.finish_grace:
                log.warning("%s/%s said %s but does not leave: killing it", attempt.run, attempt.job, attempt.said)
                self.executor.end(process, attempt.token)

    def _read(self, attempt: OpenAttempt, watch: _Watch) -> None:
        watch.read = time.monotonic()
        ingest_events(self.database, self.home.run(attempt.folder), run=attempt.run, max_bytes=self.limits.pass_bytes)

    def _process(self, attempt: OpenAttempt) -> Process | None:
        if attempt.pid is not None:
            return Process(attempt.pid, attempt.process_start or 0.0, attempt.boot or "")
        process = self.executor.find(attempt.token)
        if process is not None:
            log.info("found the worker of %s/%s by its token: pid %s", attempt.run, attempt.job, process.pid)
            self._note(attempt.id, process)
        return process

    def _note(self, attempt: int, process: Process) -> None:
        with self.database.write() as session:
            attempts.set_process(
                session, attempt=attempt, pid=process.pid, process_start=process.start, boot=process.boot
            )

    def _press(self, attempt: OpenAttempt, process: Process, watch: _Watch) -> None:
        """The ladder of a cancellation: a flag that the worker reads, then TERM, then KILL of the whole family."""
        instant = time.monotonic()
        if watch.cancel_seen is None:
            watch.cancel_seen = instant
            self._flag(attempt).touch()
        elif watch.asked_to_end is None and instant - watch.cancel_seen >= self.limits.cancel_grace:
            watch.asked_to_end = instant
            self.executor.ask_to_end(process, attempt.token)
        elif watch.asked_to_end is not None and instant - watch.asked_to_end >= self.limits.term_grace:
            self.executor.end(process, attempt.token)

    def _settle(self, attempt: OpenAttempt, process: Process | None) -> None:
        """The worker is gone: end what it left behind, read its last words, decide, free the device."""
        if not self.executor.end(process, attempt.token):
            log.warning("%s/%s left processes that do not die; trying again", attempt.run, attempt.job)
            return
        folder = self.home.run(attempt.folder)
        ingest_events(self.database, folder, run=attempt.run)
        exit_code = self.executor.exit_code(process) if process is not None else None
        tail = read_tail(self._log(attempt))
        with self.database.session() as session:
            others = [one for one in attempts.open_ones(session) if one.run == attempt.run and one.id != attempt.id]
        if not others:
            leftovers.sweep_run(folder)
        with self.database.write() as session:
            said = attempts.last_words(session, attempt=attempt.id)
            ending = judge(
                said,
                exit_code,
                tail,
                limit=self.limits.lost_attempts,
                rebooted=process is not None and process.boot != boot_id(),
                never_lived=process is None,
            )
            attempts.settle(session, attempt=attempt.id, outcome=ending.outcome, exit_code=exit_code)
            self._conclude(session, attempt, ending)
        self._flag(attempt).unlink(missing_ok=True)
        self._watches.pop(attempt.id, None)
        log.info(
            "%s/%s attempt %s: %s (exit code %s)", attempt.run, attempt.job, attempt.number, ending.outcome, exit_code
        )

    def _conclude(self, session: Session, attempt: OpenAttempt, ending: Ending) -> None:
        row = jobs.row(session, job=attempt.job_id)
        row.lost_attempts, row.alone = ending.lost_attempts, row.alone or ending.alone
        if ending.alone:
            line = logs.NewLine(attempt.number, now(), "warning", ALONE)
            logs.extend(session, run_id=attempt.run_id, job_id=attempt.job_id, lines=[line])
        if ending.resume:
            jobs.requeue(session, job=attempt.job_id)
            return
        jobs.end(
            session,
            job=attempt.job_id,
            state=ending.state,
            failure=ending.failure,
            message=ending.message,
            hint=ending.hint,
            tail=ending.tail,
        )

    def _flag(self, attempt: OpenAttempt) -> Path:
        return self.home.run(attempt.folder).jobs / f"{attempt.job}-{attempt.number}.cancel"

    def _log(self, attempt: OpenAttempt) -> Path:
        return self.home.run(attempt.folder).logs / f"{attempt.job}-{attempt.number}.log"

    def _refresh_devices(self, seconds: float) -> None:
        """List the devices again if that was longer ago."""
        if time.monotonic() - self._devices_at < seconds:
            return
        try:
            self._devices = self._list_devices()
            self._devices_at = time.monotonic()
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("the devices cannot be listed: %s", error)  # those known before stay in use
            self._devices_at = time.monotonic() - seconds + self.limits.device_retry

    def _refuse_impossible(self) -> None:
        requests = all_requests(self._devices)
        with self.database.session() as session:
            if not self._devices or not jobs.unsatisfiable(session, requests=requests):
                return
        with self.database.write() as session:
            for job in jobs.unsatisfiable(session, requests=requests):
                wish = jobs.row(session, job=job).device
                message = f"This machine has no device {wish}; it has {', '.join(d.name for d in self._devices)}."
                hint = "Choose another device, or auto."
                jobs.end(session, job=job, state="failed", failure="configuration", message=message, hint=hint)

    def _start_ready(self) -> None:
        with self.database.session() as session:
            if not jobs.waiting(session):
                return
            free = placing.room(session, self._devices)
        if any(device.name in free and device.memory_gib for device in self._devices):
            self._refresh_devices(self.limits.memory_refresh)  # other programs take memory too
        with self.database.session() as session:  # most passes find nothing and need no lock
            ready = placing.next_start(session, self._devices) is not None
        while ready and self._start_next():
            pass
        holds.give_way(self.database, self._devices)

    def _start_next(self) -> bool:
        """Claim the next job that finds room and start its worker."""
        token, host = uuid.uuid4().hex, socket.gethostname()
        with self.database.write() as session:
            start = placing.next_start(session, self._devices)
            if start is None:
                return False
            job_id, device = start.job, start.device
            jobs.claim(session, requests=requests_for(device, self._devices), job=job_id)
            kept = {"share": start.share, "memory_key": start.key}
            attempt = attempts.begin(session, job=job_id, token=token, device=device.name, host=host, **kept).id
            job = jobs.get(session, job=job_id)
            owner = runs.get(session, run=job.run)
        try:
            process = self._launch(job, owner, start, token)
        except OSError as error:
            log.exception("%s/%s cannot be started", job.run, job.name)
            with self.database.write() as session:
                attempts.settle(session, attempt=attempt, outcome="failed")
                message = f"The worker cannot be started: {error}."
                hint = "Check free disk space and the permissions of the run's folder, then resume the job."
                kind = "internal" if trouble(error) is None else "disk"
                jobs.end(session, job=job_id, state="failed", failure=kind, message=message, hint=hint)
            return True
        self._note(attempt, process)
        place = f"{device.name} ({start.share:.0%})"
        log.info("%s/%s attempt %s on %s: pid %s", job.run, job.name, job.attempt, place, process.pid)
        return True

    def _launch(self, job: jobs.JobRow, owner: runs.RunRow, start: Start, token: str) -> Process:
        folder = self.home.run(owner.folder).create()
        if not folder.spec.exists():
            write_json(folder.spec, owner.spec)
        name = f"{job.name}-{job.attempt}"
        flag = folder.jobs / f"{name}.cancel"
        flag.unlink(missing_ok=True)
        path = folder.jobs / f"{name}.json"
        content = {
            "job": job.name,
            "run": owner.folder,
            "attempt": job.attempt,
            "kind": job.kind,
            "device": start.device.argument,
            "share": start.share,
            "home": str(self.home.root),
            "resume": job.resume,
            "arguments": job.arguments,
            "cancel": str(flag),
        }
        write_json(path, content)
        return self.executor.start(path, log=folder.logs / f"{name}.log", device=start.device, token=token)

    def _beat(self, watched: list[OpenAttempt]) -> None:
        if time.monotonic() - self._beat_at < self.limits.beat:
            return
        self._beat_at = time.monotonic()
        shorten(log_file(self.home), self.limits.log_bytes)
        beat = {"pid": os.getpid(), "host": socket.gethostname(), "at": now().isoformat()}
        devices = [{"name": d.name, "title": d.title, "memory_gib": d.memory_gib} for d in self._devices]
        with self.database.write() as session:
            settings.put(session, key="dispatcher", value={**beat, "devices": devices})
            holds.sweep(session)
            if watched:
                attempts.beat(session, attempts=[attempt.id for attempt in watched])


def main() -> int:
    guard_output()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    home = Home.open(sys.argv[1] if len(sys.argv) > 1 else None)
    try:
        dispatcher = Dispatcher(home)
    except StorageError as error:
        log.error("%s", error)
        return 1
    signal.signal(signal.SIGTERM, dispatcher.stop)
    signal.signal(signal.SIGINT, dispatcher.stop)
    try:
        if not dispatcher.run():
            log.info("another dispatcher of %s lives; nothing to do", home.root)
    except OSError as error:
        if (found := trouble(error, "submit or resume a run: that starts it again")) is None:
            raise
        log.error("%s", found)
        return EXIT_NO_ROOM
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
