"""How a worker is started and ended. Local processes first; a cluster would be a second class of this shape."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from core.home import PROJECT
from core.jobs.devices import Device
from core.jobs.processes import TOKEN_VARIABLE, Process, alive, boot_id, family, identify, kill_family, send, with_token
from core.secrets import for_work

WORKER = (sys.executable, "-m", "core.jobs.worker")


class Executor(Protocol):
    def start(self, job_file: Path, *, log: Path, device: Device, token: str) -> Process:
        """Start a worker; raises ``OSError``."""
        ...

    def find(self, token: str) -> Process | None:
        """The worker of an attempt whose process was never noted."""
        ...

    def alive(self, process: Process) -> bool: ...

    def exit_code(self, process: Process) -> int | None:
        """None while it lives, and for workers that another dispatcher started."""
        ...

    def ask_to_end(self, process: Process, token: str) -> None: ...

    def end(self, process: Process | None, token: str) -> bool:
        """End the worker and every descendant; True when none lives."""
        ...


class LocalExecutor:
    """Workers as processes of this machine, each the leader of a session of its own."""

    def __init__(self, command: Sequence[str] = WORKER) -> None:
        self._command = list(command)
        self._children: dict[Process, subprocess.Popen[bytes]] = {}

    def start(self, job_file: Path, *, log: Path, device: Device, token: str) -> Process:
        log.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(part for part in (str(PROJECT), os.environ.get("PYTHONPATH", "")) if part)
        environment = {
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin beside another job starve both
            **_threads(device),
            **for_work(os.environ),
            TOKEN_VARIABLE: token,
            "CUDA_VISIBLE_DEVICES": device.visible,
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("ab") as out:
            child = subprocess.Popen(
                [*self._command, str(job_file)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=PROJECT,
                env=environment,
                start_new_session=True,
            )
        # Not reaped yet, so it can be named even if it has ended already.
        process = identify(child.pid, ended_too=True) or Process(child.pid, 0.0, boot_id())
        self._children[process] = child
        return process

    def find(self, token: str) -> Process | None:
        carriers = with_token(token)
        return identify(carriers[0]) if carriers else None

    def alive(self, process: Process) -> bool:
        child = self._children.get(process)
        return child.poll() is None if child is not None else alive(process)

    def exit_code(self, process: Process) -> int | None:
        child = self._children.get(process)
        return child.poll() if child is not None else None

    def ask_to_end(self, process: Process, token: str) -> None:
        send(family(process, token), signal.SIGTERM)

    def end(self, process: Process | None, token: str) -> bool:
        child = self._children.get(process) if process is not None else None
        gone = kill_family(process, token, watched=child is not None)
        if child is not None and gone:
            child.wait()
        return gone


def _threads(device: Device) -> dict[str, str]:
    """Each of the jobs that share a device gets its part of the cores."""
    return {} if device.slots == 1 else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // device.slots))}
