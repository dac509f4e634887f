"""What the machine does right now and what of it the studio uses, looked at in the background: no page waits."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from core import access
from core.home import Home
from core.records import Records
from core.units import MIB

MACHINE_SECONDS = 2.0
T = TypeVar("T")


class Background(Generic[T]):
    """A value that is made again in a thread when somebody asks and it is old; the answer is the newest there is."""

    def __init__(self, make: Callable[[], T], seconds: float) -> None:
        self._make, self._seconds = make, seconds
        self._lock = threading.Lock()
        self._value: T | None = None
        self._made = float("-inf")
        self._working = False

    def newest(self) -> T | None:
        """At once; None until the first is made."""
        with self._lock:
            if not self._working and time.monotonic() - self._made > self._seconds:
                self._working = True
                threading.Thread(target=self._again, name="look-around", daemon=True).start()
            return self._value

    def now(self) -> T:
        """Made anew before this returns."""
        value = self._make()
        with self._lock:
            self._value, self._made = value, time.monotonic()
        return value

    def _again(self) -> None:
        try:
            self.now()
        finally:
            with self._lock:
                self._working = False
                self._made = max(self._made, time.monotonic() - self._seconds / 2)  # a failure is not tried at once


def meters() -> dict[str, Any]:
    """Load of CPU, memory and GPUs; ``percent`` of the CPU is over a tenth of a second."""
    import psutil

    memory = psutil.virtual_memory()
    return {
        "cpu": {"percent": psutil.cpu_percent(interval=0.1), "cores": os.cpu_count() or 1},
        "memory": {"used": memory.total - memory.available, "total": memory.total},
        "gpus": gpus(),
    }


def gpus() -> list[dict[str, Any]]:
    """``device``, ``title``, ``percent`` and memory in bytes of each GPU; none where nvidia-smi does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    fields = "index,name,utilization.gpu,memory.used,memory.total"
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [_gpu(line) for line in done.stdout.splitlines() if line.count(",") >= 4]


def _gpu(line: str) -> dict[str, Any]:
    index, rest = line.split(",", 1)
    title, percent, used, total = (part.strip() for part in rest.rsplit(",", 3))
    sizes = {"used": _number(used), "total": _number(total)}
    memory = {name: None if size is None else int(size * MIB) for name, size in sizes.items()}
    return {"device": f"cuda:{index.strip()}", "title": title, "percent": _number(percent), **memory}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def occupied(records: Records) -> dict[str, Any]:
    """``holders``: device -> who works on it, and ``waiting``: the jobs in their order, with their wishes."""
    from core.jobs import holds
    from storage.queries import attempts, jobs

    with records.read() as session:
        leases = attempts.leases(session)
        chats = holds.living(session)
        queued = [job for job in jobs.queue(session) if job.state == "queued"]
    holders: dict[str, list[dict[str, Any]]] = {}
    for lease in leases:
        one = {"run": lease["run"], "title": lease["name"], "share": lease["share"]}
        holders.setdefault(lease["device"], []).append(one)
    for hold in chats:
        holders.setdefault(hold.device, []).append({"run": None, "title": hold.title, "share": 1.0})
    waiting = [{"run": job.run, "title": job.name, "device": job.device} for job in queued]
    return {"holders": holders, "waiting": waiting}


class Machine:
    """The machine of one home; ``Studio.machine`` is one."""

    def __init__(self, home: Home, records: Records) -> None:
        from core.disk import DISK_SECONDS, usage

        self._home, self._records = home, records
        self._meters = Background(meters, MACHINE_SECONDS)
        self._usage = Background(lambda: usage(home, records), DISK_SECONDS)

    def state(self) -> dict[str, Any]:
        """``meters`` (None until first measured), ``holders``, ``waiting``, and the ``dispatcher`` with its process."""
        from core.jobs.service import dispatcher_status

        status = dispatcher_status(self._home)
        lives = {"alive": status.alive, "pid": status.pid, "log": status.log}
        return {"meters": self._meters.newest(), "dispatcher": lives, **occupied(self._records)}

    def disk(self) -> dict[str, Any]:
        """Sizes by kind, as ``core.disk.usage`` counts them now."""
        return self._usage.now()

    def counted(self) -> dict[str, Any] | None:
        """The newest sizes that were counted, about half a minute old; None before the first count."""
        return self._usage.newest()

    def clean(self, kinds: Sequence[str]) -> dict[str, int]:
        """Delete checkpoints of finished runs, caches or folders of no run; returns the bytes that each freed."""
        from core.disk import clean

        access.need("admin")
        freed = clean(self._home, self._records, kinds)
        self._usage.now()
        return freed
