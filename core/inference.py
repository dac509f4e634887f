"""Finds or starts the inference worker of a base, and gives it a device. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.chat.lines import Connection
from core.errors import ConfigurationError, DiskError, StudioError
from core.home import PROJECT, Home, read_json
from core.jobs.processes import Process, alive, identify, this_process
from core.jobs.service import Lock
from core.records import Records
from core.room import EXIT_NO_ROOM, ROOM, explained
from core.schema import ModelSpec
from core.secrets import for_work

START_SECONDS = 60.0
GIVE_WAY_SECONDS = 5.0
LOG_BYTES = 1 << 20
ASK_AGAIN = "ask again"


@dataclass(frozen=True)
class Place:
    """Where a worker computes: ``held`` is the device that was taken for it, ``note`` why it is not a better one."""

    device: str
    visible: str | None = None
    held: str = ""
    holder: str = ""
    note: str = ""


class Inference:
    """One worker for each base (and wish for a device) of a home; shared by all its web processes and commands."""

    def __init__(self, home: Home, records: Records) -> None:
        self._home, self._records = home, records

    def connect(self, model: ModelSpec, device: str = "auto") -> Connection:
        """A connection to the worker; one that is not there is started, and is heard while it loads the base."""
        folder = self._folder(model, device)
        connection = _reach(folder)
        if connection is not None and self._holds(connection):
            return connection
        with explained(ASK_AGAIN):
            folder.mkdir(parents=True, exist_ok=True)
            self._home.inference.chmod(0o700)
            lock = Lock(folder / "start")
            if not lock.acquire(seconds=START_SECONDS):
                raise StudioError("Another process has been starting the inference worker for a minute.", "Try again.")
            try:
                return self._adopted(_reach(folder), model) or self._start(folder, model, device)
            finally:
                lock.release()

    def workers(self) -> list[dict[str, Any]]:
        """The living workers: pid, base, device, held, note, state, active, computed, adapters."""
        found = []
        for facts in sorted(self._home.inference.glob("*/worker.json")):
            connection = _reach(facts.parent)
            if connection is not None:
                with connection:
                    try:
                        connection.send(op="status", id=0)
                        found.append({k: v for k, v in connection.receive().items() if k not in ("op", "id")})
                    except OSError:
                        continue  # it was just ending
        return found

    def stop(self, *, seconds: float = 10.0) -> int:
        """End every worker, killing those that do not finish in time; returns how many lived."""
        processes = [process for facts in self._home.inference.glob("*/worker.json") if (process := _living(facts))]
        for process in processes:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        for process in processes:
            while alive(process):
                if time.monotonic() > deadline:
                    _signal(process, signal.SIGKILL)
                time.sleep(0.05)
        return len(processes)

    def leave(self, model: ModelSpec, device: str = "auto") -> None:
        """Say that a conversation is over: a worker that nobody else needs ends at once."""
        connection = _reach(self._folder(model, device))
        if connection is not None:
            with connection, suppress(OSError):  # it has ended
                connection.send(op="leave")
                connection.send(op="status", id=0)
                connection.receive()  # it has heard

    def _folder(self, model: ModelSpec, device: str) -> Path:
        key = hashlib.sha256(json.dumps([model.model_dump(mode="json"), device]).encode()).hexdigest()[:12]
        return self._home.inference / key

    def _start(self, folder: Path, model: ModelSpec, device: str) -> Connection:
        place = self._place(model, device)
        order = {"folder": str(folder), "home": str(self._home.root), "model": model.model_dump(mode="json")}
        order |= {"device": place.device, "held": place.held, "note": place.note}
        path = os.pathsep.join(part for part in (str(PROJECT), os.environ.get("PYTHONPATH", "")) if part)
        environment = for_work(os.environ) | {"PYTHONPATH": path, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin beside a training job starve both
        if place.visible is not None:
            environment["CUDA_VISIBLE_DEVICES"] = place.visible
        log = folder / "log"
        with log.open("ab" if log.exists() and log.stat().st_size < LOG_BYTES else "wb") as out:
            said = out.tell()
            child = subprocess.Popen(
                [sys.executable, "-m", "core.chat.serve", json.dumps(order)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=PROJECT,
                env=environment,
                start_new_session=True,
            )
        threading.Thread(target=child.wait, name="reap-inference", daemon=True).start()
        if place.held:
            self._hold(place, model, identify(child.pid, ended_too=True))
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if (connection := _reach(folder)) is not None:
                return connection
            if child.poll() is not None:
                raise _died(log, said, child.returncode)
            time.sleep(0.02)
        child.kill()
        raise StudioError("The inference process did not start within a minute.", f"Its log is {log}.")

    def _place(self, model: ModelSpec, device: str) -> Place:
        """A free GPU, taken for the worker to be; else the CPU, with the reason."""
        from core.capacity import CPU, place_of
        from core.fitting import too_large
        from core.jobs import holds

        wanted = [] if device == "cpu" else holds.gpus()
        if device.startswith("cuda:"):
            wanted = [gpu for gpu in wanted if gpu.name == device]
        reasons = []
        for gpu in wanted:
            if beyond := too_large(model, place_of(gpu), self._home.cache, model.base):
                reasons.append(beyond.message.removesuffix("."))
                continue
            self._make_room(gpu.name)
            place = Place("cuda", gpu.visible, gpu.name, uuid.uuid4().hex)
            if self._hold(place, model, this_process()):
                return place
            with self._records.read() as session:
                reasons.append(f"{gpu.name} is held by {holds.holder_of(session, gpu.name) or 'another process'}")
        if device.startswith("cuda"):
            why = "; ".join(reasons) or f"this machine has no {device}"
            raise ConfigurationError(f"Nothing can be answered on {device}: {why}.", "Choose auto or cpu.")
        if beyond := too_large(model, place_of(CPU), self._home.cache, model.base):
            raise beyond
        return Place("cpu", "" if wanted else None, note="; ".join(reasons))

    def _holds(self, connection: Connection) -> bool:
        """Whether the device that a worker computes on is held in its name."""
        from storage.queries import holds

        device, pid = connection.hello.get("held"), connection.hello["pid"]
        if not device:
            return True
        with self._records.read() as session:
            return any(hold.pid == pid and hold.device == device for hold in holds.every(session))

    def _adopted(self, connection: Connection | None, model: ModelSpec) -> Connection | None:
        """A worker whose starter died before it handed over the device holds it now, or leaves it to who has it."""
        if connection is None or self._holds(connection):
            return connection
        process = identify(connection.hello["pid"])
        place = Place("cuda", held=connection.hello["held"], holder=uuid.uuid4().hex)
        if process is not None and self._hold(place, model, process):
            return connection
        connection.close()
        if process is not None:
            _signal(process, signal.SIGTERM)
        return None

    def _make_room(self, device: str) -> None:
        """Let another base's worker that computes nothing leave the device."""
        from core.jobs import holds

        with self._records.write() as session:
            held = [hold for hold in holds.sweep(session) if hold.device == device]
        idle = {worker["pid"] for worker in self.workers() if not worker["active"]} if held else set()
        for hold in held:
            if hold.pid in idle:
                holds.ask_to_give_way(hold)
                deadline = time.monotonic() + GIVE_WAY_SECONDS
                while alive(Process(hold.pid, hold.process_start, hold.boot)) and time.monotonic() < deadline:
                    time.sleep(0.05)
        if idle:
            with self._records.write() as session:
                holds.sweep(session)

    def _hold(self, place: Place, model: ModelSpec, process: Process | None) -> bool:
        """Take the device, first for the process that starts the worker, then for the worker itself."""
        from storage.queries import holds

        process = process or this_process()
        with self._records.write() as session:
            return holds.take(
                session,
                holder=place.holder,
                device=place.held,
                title=f"chat and token inspector on {model.base}",
                pid=process.pid,
                process_start=process.start,
                boot=process.boot,
            )


def _reach(folder: Path) -> Connection | None:
    """A connection to the worker of a folder, or None where none answers."""
    try:
        return Connection(read_json(folder / "worker.json")["socket"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _living(facts: Path) -> Process | None:
    try:
        stored = read_json(facts)
        process = Process(stored["pid"], stored["start"], stored["boot"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return process if alive(process) else None


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)


def _died(log: Path, said: int, code: int) -> StudioError:
    """Why a worker ended before it was reached; ``said`` is where its words begin in the log."""
    if code < 0:
        return StudioError(
            f"The inference process was killed ({signal.Signals(-code).name}) while it started.",
            "Ask again. If that happens again, the machine may lack memory: `python app.py doctor` looks.",
        )
    if code == EXIT_NO_ROOM:
        return DiskError(f"The disk of {log.parent} is full or cannot be written.", f"{ROOM}, then {ASK_AGAIN}.")
    lines = log.read_bytes()[said:].decode("utf-8", "replace").strip().splitlines()
    last = lines[-1] if lines else f"exit code {code}"
    return StudioError(f"The inference process ended: {last}.", "`python app.py doctor` says what is wrong.")
