"""A training run under load: how long its steps take, and what saying and storing their events costs beside them."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from contextlib import closing, suppress
from datetime import datetime
from typing import Any

import psutil

from core.home import ASSETS, Home
from core.jobs.ingest import ingest_events
from core.jobs.sinks import FileSink
from core.schema import RunSpec
from core.studio import Studio
from storage import Database
from storage.queries import attempts, runs

HEAD = ("run", "job", "attempt", "seq", "at", "kind")
STARTS_WITHIN = 120.0
REPLAYED = 2_000  # events at most


class Training:
    """The demo's tasks on the bundled base, longer than any soak, on cores of its own."""

    def __init__(self, studio: Studio, cores: set[int]) -> None:
        self.studio, self._cores = studio, cores
        data = studio.upload(ASSETS / "demo", name="load")["id"]
        tasks = [{"dataset": data, "task": task} for task in studio.dataset(data)["tasks"]]
        train = {"steps": 100_000, "batch_size": 8, "log_every": 1, "checkpoint_every": 2_000}
        head = {"name": "under load", "method": {"name": "molora"}, "tasks": tasks, "device": "cpu"}
        self.run = studio.submit(RunSpec.parse({**head, "train": train}))
        self.folder = studio.home.run(self.run)

    def wait(self, steps: int = 5) -> psutil.Process:
        """Its process, once it has made some steps, on its own cores."""
        end = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < end:
            if len(self.times(0.0)) >= steps:
                with self.studio.records.read() as session:
                    found = [one for one in attempts.open_ones(session) if one.run == self.run]
                process = psutil.Process(found[0].pid)
                for thread in process.threads():
                    with suppress(OSError):
                        os.sched_setaffinity(thread.id, self._cores)
                return process
            time.sleep(0.2)
        raise TimeoutError(f"{self.run} did not train within {STARTS_WITHIN:.0f} s: {self.studio.run(self.run)}")

    def times(self, since: float, until: float = float("inf")) -> list[float]:
        """When steps were said between two times of ``time.time``."""
        if not self.folder.events.is_file():
            return []
        said = (json.loads(line) for line in self.folder.events.read_bytes().splitlines() if b'"metrics"' in line)
        found = (datetime.fromisoformat(one["at"]).timestamp() for one in said)
        return [at for at in found if since <= at <= until]

    def step(self, since: float, until: float = float("inf")) -> float:
        """The median of seconds from one step to the next."""
        times = self.times(since, until)
        return statistics.median(b - a for a, b in zip(times, times[1:], strict=False))

    def stop(self) -> None:
        self.studio.cancel(self.run)
        end = time.monotonic() + 60
        while self.studio.run(self.run)["state"] not in ("cancelled", "done", "failed") and time.monotonic() < end:
            time.sleep(0.2)


def replayed(training: Training) -> dict[str, float]:
    """Processor seconds for each step of saying its events, and of storing them as the dispatcher does, in passes.

    The very events of the run, into another file and another database.
    """
    lines = training.folder.events.read_bytes().splitlines()[:REPLAYED]
    events = [json.loads(line) for line in lines]
    steps = sum(event["kind"] == "metrics" for event in events) or 1
    with tempfile.TemporaryDirectory() as room:
        home = Home.open(room)
        saying = _say(home, events)
        storing = _store(home, training, lines)
    return {"say_s": saying / steps, "store_s": storing / steps}


def _say(home: Home, events: list[dict[str, Any]]) -> float:
    fields = [(event["kind"], {k: v for k, v in event.items() if k not in HEAD}) for event in events]
    with closing(FileSink(home.root / "said.jsonl", run="x", job="train", attempt=1)) as sink:
        began = time.process_time()
        for kind, said in fields:
            sink.emit(kind, **said)
        return time.process_time() - began


def _store(home: Home, training: Training, lines: list[bytes]) -> float:
    """In as many passes as the dispatcher made: one for what was said in half a second."""
    database = Database(home.database_url)
    with database.write() as session:
        run, _ = runs.add(session, spec=training.studio.run(training.run)["spec"])
    folder = home.run(run.id).create()
    if training.folder.routing.is_dir():
        shutil.copytree(training.folder.routing, folder.routing, dirs_exist_ok=True)
    spent, times = 0.0, [datetime.fromisoformat(json.loads(line)["at"]).timestamp() for line in lines]
    place = 0
    with folder.events.open("ab", buffering=0) as file:
        while place < len(lines):
            last = place
            while last < len(lines) and times[last] - times[place] < 0.5:
                last += 1
            file.write(b"\n".join(lines[place:last]) + b"\n")
            began = time.process_time()
            ingest_events(database, folder)
            spent += time.process_time() - began
            place = last
    database.close()
    return spent
