"""One dispatcher for each home: its lock, its pid file, starting, stopping and replacing it, and who still needs it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from core.home import PROJECT, Home, read_json, write_json
from core.jobs.processes import Process, alive, identify, this_process

LOG_BYTES = 5 << 20
WATCH_SECONDS, SELDOM_SECONDS = 2.0, 60.0
SECRETS = ("TESSERA_PASSWORD", "TESSERA_TOKEN")  # of no use to dispatcher and workers


@dataclass(frozen=True)
class DispatcherStatus:
    """``pid`` is None when no dispatcher lives."""

    alive: bool
    pid: int | None
    log: str


class Lock:
    """An operating-system lock on a file: gone with its process, however that ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    def acquire(self, seconds: float = 0.0) -> bool:
        deadline = time.monotonic() + seconds
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(handle)
                    return False
                time.sleep(0.05)
            else:
                self._handle = handle
                return True

    def held(self) -> bool:
        """Whether the lock still means anything: its file may have been removed or replaced."""
        try:
            return self._handle is not None and os.path.samestat(os.stat(self._path), os.fstat(self._handle))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def dispatcher_status(home: Home) -> DispatcherStatus:
    process = _living(home.dispatcher / "pid")
    return DispatcherStatus(process is not None, process.pid if process else None, str(log_file(home)))


def ensure_dispatcher(home: Home) -> DispatcherStatus:
    """Start a dispatcher of its own session if none lives; returns at once. Call it after every change to the queue."""
    status = dispatcher_status(home)
    if status.alive:
        return status
    starting = home.dispatcher / "starting"
    if (process := _living(starting)) is not None:  # it says that it is there when it has its lock
        return DispatcherStatus(True, process.pid, str(log_file(home)))
    home.dispatcher.mkdir(parents=True, exist_ok=True)
    _stopped(home).unlink(missing_ok=True)
    _shorten(log_file(home))
    with log_file(home).open("ab") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "core.jobs.dispatcher", str(home.root)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=PROJECT,
            env={name: value for name, value in os.environ.items() if name not in SECRETS},
            start_new_session=True,
        )
    if (process := identify(child.pid)) is not None:
        with contextlib.suppress(OSError):  # a full disk: at worst another is started, which finds the lock taken
            write_json(starting, asdict(process))
    threading.Thread(target=child.wait, name="reap-dispatcher", daemon=True).start()  # leaves no zombie behind
    return DispatcherStatus(True, child.pid, str(log_file(home)))


def stop_dispatcher(home: Home, *, seconds: float = 15.0) -> bool:
    """End the dispatcher; workers go on, and the next dispatcher finds them. True if one was stopped."""
    with contextlib.suppress(OSError):  # a full disk stops nobody
        _stopped(home).touch()
    process = _living(home.dispatcher / "pid") or _living(home.dispatcher / "starting")
    if process is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while alive(process):
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.05)
    return True


@contextmanager
def register_web(home: Home) -> Iterator[None]:
    """While this is held, the dispatcher does not end for want of work."""
    path = home.dispatcher / f"web-{os.getpid()}.json"
    write_json(path, asdict(this_process()))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def watch_over(home: Home, needed: Callable[[], bool], *, seconds: float = WATCH_SECONDS) -> Iterator[None]:
    """While this is held, a dispatcher that died is replaced when it is ``needed``; one that was stopped is not."""
    over = threading.Event()
    thread = threading.Thread(target=_replace, args=(home, needed, seconds, over), name="watch-over", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def _replace(home: Home, needed: Callable[[], bool], seconds: float, over: threading.Event) -> None:
    """Those that die before they are at work (a full disk) are started more and more seldom."""
    pause = begun = 0.0
    while not over.wait(seconds):
        with contextlib.suppress(Exception):  # a full disk, a locked database: the next look tries again
            if dispatcher_status(home).alive:
                pause = 0.0
                continue
            comes = _living(home.dispatcher / "starting") is not None or time.monotonic() - begun < pause
            if not comes and not _stopped(home).exists() and needed():
                ensure_dispatcher(home)
                pause, begun = min(2 * pause or 2 * seconds, SELDOM_SECONDS), time.monotonic()


def web_lives(home: Home) -> bool:
    """Whether any registered web process lives; files of dead ones are removed."""
    lives = False
    for path in home.dispatcher.glob("web-*.json"):
        if _living(path) is not None:
            lives = True
        else:
            with contextlib.suppress(OSError):  # a folder that can only be read keeps them
                path.unlink()
    return lives


def _stopped(home: Home) -> Path:
    """Stands there from a stop that somebody asked for until the next start."""
    return home.dispatcher / "stopped"


def log_file(home: Home) -> Path:
    return home.dispatcher / "log"


@contextmanager
def announced(home: Home) -> Iterator[None]:
    """This process is the dispatcher, for all to see."""
    path = home.dispatcher / "pid"
    write_json(path, asdict(this_process()))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _living(path: Path) -> Process | None:
    try:
        process = Process(**read_json(path))
    except (OSError, ValueError, TypeError):
        return None
    return process if alive(process) else None


def _shorten(path: Path) -> None:
    """Keep one older log, so that years of use do not fill the disk."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES:
            os.replace(path, path.with_suffix(".old"))
