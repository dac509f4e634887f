"""Training or fusing in this process: no dispatcher, no database, only torch and a folder."""

from __future__ import annotations

import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.adapters.folders import CONFIG
from core.errors import ConfigurationError, StudioError
from core.home import Home, RunFolder, read_json, write_json
from core.jobs.sinks import FileSink, Tee, TerminalSink
from core.pipelines import kind_of
from core.planning import Plan
from core.schema import RunSpec

if TYPE_CHECKING:
    from core.jobs.worker import StopSignal


def train(plan: Plan, home: Home, out: Path | None = None, first: Sequence[Plan] = ()) -> Path:
    """Train and score ``plan`` in this process; returns the run folder. ``first``: what it needs, trained inside it.

    A folder that holds a started run of the same settings is continued from its last checkpoint; one that holds
    another run is refused. A failure leaves its reason in the events and is raised again.
    """
    folder = RunFolder(out.expanduser().resolve() if out is not None else home.runs / f"here-{uuid.uuid4().hex[:8]}")
    resume = _started(folder, plan.spec)
    folder.create()
    write_json(folder.spec, plan.spec.model_dump(mode="json"))
    experts = [_expert(one, home, folder.root / "experts" / str(number)) for number, one in enumerate(first)]
    job = _job(folder, home, plan.spec, resume) | {"arguments": {"experts": experts} if experts else {}}
    write_json(folder.jobs / f"{job['job']}.json", job)

    from core.jobs.worker import StopSignal, run_job  # torch from here on

    cancel = Path(job["cancel"])
    cancel.unlink(missing_ok=True)
    file = FileSink(folder.events, run=job["run"], job=job["job"], attempt=job["attempt"], cancel=cancel)
    watch, stop = _Watch(), StopSignal()
    shown = Tee(file, TerminalSink(sys.stderr), watch, stop)  # keeps the terminal while libraries write into the log
    if plan.memory is not None:
        file.emit("estimate", memory=plan.memory.total)
    try:
        with (folder.logs / f"{job['job']}.log").open("a", encoding="utf-8") as log, redirect_stderr(log), _stops(stop):
            code = run_job(job, shown)
    finally:
        file.close()
    if watch.failure is not None:
        raise watch.failure
    if code:
        again = f"--out {folder.root}"
        raise StudioError(f"The run in {folder.root} was stopped.", f"The same command with {again} continues it.")
    return folder.root


def _expert(plan: Plan, home: Home, folder: Path) -> str:
    """Train one of the runs that come first, unless it is there from an earlier try."""
    if not (folder / "adapter" / CONFIG).is_file():
        train(plan, home, folder)
    return str(folder)


@contextmanager
def _stops(stop: StopSignal) -> Iterator[None]:
    """While entered, Ctrl-C or SIGTERM asks for a checkpoint and an orderly end; the second time it ends at once."""
    if threading.current_thread() is not threading.main_thread():  # of a notebook's own making: it hears no signals
        yield
        return

    def interrupt(*_: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.heard()
        with suppress(AttributeError, OSError):  # past the buffer: what is interrupted may be printing just now
            os.write(sys.__stderr__.fileno(), b"Stopping at the next step, with a checkpoint. Again: at once.\n")

    before = {which: signal.signal(which, interrupt) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _started(folder: RunFolder, spec: RunSpec) -> bool:
    if not folder.spec.is_file():
        if folder.root.is_dir() and any(folder.root.iterdir()):
            raise ConfigurationError(
                f"{folder.root} holds other files.", "Name an empty folder, or one of a run to continue."
            )
        return False
    if RunSpec.parse(read_json(folder.spec)) != spec:
        raise ConfigurationError(f"{folder.root} holds a run with other settings.", "Name another folder with --out.")
    return folder.events.is_file()


def _job(folder: RunFolder, home: Home, spec: RunSpec, resume: bool) -> dict[str, Any]:
    kind = kind_of(spec)
    path = folder.jobs / f"{kind}.json"
    before = read_json(path) if path.is_file() else {}
    return {
        "job": kind,
        "run": before.get("run") or f"here-{uuid.uuid4().hex[:12]}",
        "attempt": before.get("attempt", 0) + 1,
        "kind": kind,
        "device": spec.device,
        "home": str(home.root),
        "folder": str(folder.root),
        "resume": resume,
        "arguments": {},
        "cancel": str(folder.jobs / f"{kind}.cancel"),
    }


class _Watch:
    """Keeps the failure that a job tells, so that the command line can raise it."""

    def __init__(self) -> None:
        self.failure: StudioError | None = None

    def emit(self, kind: str, **fields: Any) -> None:
        if kind == "failed":
            self.failure = StudioError(fields["message"], fields.get("hint", ""))
            self.failure.kind = fields["failure"]

    def cancelled(self) -> bool:
        return False
