import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from core.home import PROJECT, Home
from core.jobs.processes import kill_family, with_token
from storage import Database
from storage.models import Attempt
from storage.queries import attempts, jobs, runs, series
from storage.queries.attempts import AttemptRow
from storage.queries.jobs import JobRow

SPEC = {
    "name": "",
    "tasks": [{"dataset": "d", "task": "a"}],
    "method": {"name": "lora"},
    "seed": 0,
    "model": {"base": "b"},
}


class House:
    """A home with a queue, and dispatchers as real processes."""

    def __init__(self, root: Path) -> None:
        self.home = Home.open(root)
        self.database = Database(self.home.database_url)
        self.processes: list[subprocess.Popen[bytes]] = []

    def submit(self, *, priority: int = 0, device: str = "auto", kind: str = "train", **arguments: Any) -> JobRow:
        with self.database.write() as session:
            run, _ = runs.add(session, spec=SPEC)
            return jobs.add(session, run=run.id, kind=kind, arguments=arguments, priority=priority, device=device)

    def dispatcher(self, **limits: Any) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
        script = Path(__file__).with_name("stand_in_dispatcher.py")
        with (self.home.dispatcher / "test-log").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, str(script), str(self.home.root), json.dumps(limits)],
                stdout=out,
                stderr=out,
                env={**os.environ, "PYTHONPATH": path},
                cwd=PROJECT,
            )
        self.processes.append(process)
        return process

    def job(self, job: JobRow) -> JobRow:
        with self.database.session() as session:
            return jobs.get(session, job=job.id)

    def attempts(self, job: JobRow) -> list[AttemptRow]:
        with self.database.session() as session:
            return attempts.of_job(session, job=job.id)

    def curve(self, job: JobRow, name: str = "loss") -> tuple[list[int], list[float]]:
        with self.database.session() as session:
            found = series.read(session, run=job.run).get(name)
        return ([], []) if found is None else (found.steps.tolist(), found.values.tolist())

    def wait(self, check: Callable[[], Any], seconds: float = 30.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := check()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds} s; the log:\n{self.log()[-3000:]}")
            time.sleep(0.03)
        return found

    def until(self, job: JobRow, *states: str, seconds: float = 30.0) -> JobRow:
        return self.wait(lambda: found if (found := self.job(job)).state in states else None, seconds)

    def until_step(self, job: JobRow, step: int) -> None:
        self.wait(lambda: (self.job(job).step or 0) >= step)

    def let_go(self, job: JobRow) -> None:
        """Workers told to ``hold`` (attempt -> step) go on."""
        (self.home.run(job.run).root / "go").touch()

    def worker(self, job: JobRow) -> int:
        """The pid of the job's newest worker, once it is known."""
        return self.wait(lambda: (found := self.attempts(job)) and not found[-1].ended and found[-1].pid)

    def tokens(self) -> list[str]:
        with self.database.session() as session:
            return [token for token in session.scalars(select(Attempt.token)) if token]

    def survivors(self) -> list[int]:
        return [pid for token in self.tokens() for pid in with_token(token)]

    def leases(self) -> list[dict[str, Any]]:
        with self.database.session() as session:
            return attempts.leases(session)

    def log(self) -> str:
        path = self.home.dispatcher / "test-log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
        for token in self.tokens():
            kill_family(None, token)
        self.database.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "home")
    yield made
    made.close()


def uninterrupted(steps: int) -> tuple[list[int], list[float]]:
    return list(range(1, steps + 1)), [float(np.float32(10.0 / step)) for step in range(1, steps + 1)]


@pytest.fixture
def expected_curve() -> Callable[[int], tuple[list[int], list[float]]]:
    """The curve of a stand-in run that nothing interrupted."""
    return uninterrupted
