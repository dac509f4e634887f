"""Naming processes for ever, and ending whole families of them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

TOKEN_VARIABLE = "TESSERA_ATTEMPT"


@dataclass(frozen=True)
class Process:
    """A process by pid, start and boot: a pid alone is given again to another process."""

    pid: int
    start: float
    boot: str


@cache
def boot_id() -> str:
    """Changes with every start of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(round(psutil.boot_time()))


def identify(pid: int, *, ended_too: bool = False) -> Process | None:
    """The process with this pid, or None; one that has ended but is not reaped yet only if asked for."""
    start = _start(pid, ended_too=ended_too)
    return None if start is None else Process(pid, start, boot_id())


def this_process() -> Process:
    found = identify(os.getpid())
    assert found is not None
    return found


def alive(process: Process) -> bool:
    """Whether this very process still runs; one that is dead but not yet reaped does not."""
    return process.boot == boot_id() and _start(process.pid) == process.start


def with_token(token: str) -> list[int]:
    """Pids of the living processes that carry an attempt's token in their environment, oldest first."""
    found = [pid for pid in psutil.pids() if _carries(pid, token)]
    return sorted(found, key=lambda pid: (_start(pid) or 0.0, pid))


def family(process: Process | None, token: str, *, watched: bool = False) -> list[int]:
    """Pids of an attempt's living processes: carriers of its token, descendants and members of its session.

    When the leader is dead its session number may belong to somebody else by now, so it counts only if this
    dispatcher ``watched`` the leader alive a moment ago.
    """
    found = set(with_token(token))
    if process is not None:
        leads = alive(process)
        if leads:
            found.add(process.pid)
            with contextlib.suppress(psutil.Error):
                found |= {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
        if leads or (watched and _start(process.pid) is None):
            found |= {pid for pid in psutil.pids() if _session(pid) == process.pid}
    found.discard(os.getpid())
    return [pid for pid in found if _start(pid) is not None]


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def kill_family(process: Process | None, token: str, *, watched: bool = False, seconds: float = 5.0) -> bool:
    """KILL until no member lives; False if some still do after ``seconds``."""
    deadline = time.monotonic() + seconds
    while members := family(process, token, watched=watched):
        send(members, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _start(pid: int, *, ended_too: bool = False) -> float | None:
    """Start of a living process: on Linux in clock ticks since boot, which no clock jump changes."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _start_without_proc(pid)
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" and not ended_too else float(fields[19])


def _start_without_proc(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _carries(pid: int, token: str) -> bool:
    try:
        return bool(token) and psutil.Process(pid).environ().get(TOKEN_VARIABLE) == token
    except (psutil.Error, OSError):
        return False


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None
