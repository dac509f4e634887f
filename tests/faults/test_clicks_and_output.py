"""Two tabs, two processes, stale pages; and workers that print without end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.pages import runs as page
from core.home import PROJECT
from core.jobs import worker_log
from core.schema import RunSpec
from storage.queries import jobs
from storage.queries import runs as stored
from tests.support.seed import QuietStudio
from tests.support.training import toy_store

SUBMIT = """
import sys
from tests.support.seed import QuietStudio
from core.schema import RunSpec
print(QuietStudio(sys.argv[1]).submit(RunSpec.from_yaml(sys.argv[2]), request_id="one click"))
"""
SPEC = "{tasks: [{dataset: toy}], method: {name: lora}, train: {steps: 2}, device: cpu, name: twin}"


def test_a_double_click_in_two_processes_starts_one_run(tmp_path: Path) -> None:
    toy_store(tmp_path / "datasets")
    command = [sys.executable, "-c", SUBMIT, str(tmp_path), SPEC]
    both = [subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = {process.communicate(timeout=120)[0].strip() for process in both}
    studio = QuietStudio(tmp_path)
    assert told == {"run-1"} and [run["id"] for run in studio.runs()] == ["run-1"]
    assert len(studio.run("run-1")["jobs"]) == 1
    studio.close()


@pytest.mark.parametrize("kind", ["train", "fuse", "score"])
def test_a_stale_tab_stops_its_own_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The tab shows the older of two runs of one name; it ended while the question stood there."""
    said: list[str] = []
    for name in ("Info", "Warning"):
        monkeypatch.setattr(page.gr, name, said.append)
    studio, spec = QuietStudio(tmp_path), RunSpec.from_yaml(SPEC).model_dump(mode="json")
    with studio.records.write() as session:
        old, new = (stored.add(session, spec=spec, name="twin")[0] for _ in range(2))
        first, second = (jobs.add(session, run=run.id, kind=kind) for run in (old, new))
        for job in (first, second):
            jobs.row(session, job=job.id).state = "running"
    asking = page.question(studio, "cancel", old.id)[1]
    assert page.confirmed(studio, asking, new.id) == new.id and "another run" in said[-1]
    with studio.records.write() as session:
        jobs.end(session, job=first.id, state="done")
    page.confirmed(studio, asking, old.id)
    assert [studio.run(run.id)["jobs"][0]["state"] for run in (old, new)] == ["done", "running"]
    page.confirmed(studio, page.question(studio, "cancel", new.id)[1], new.id)
    assert studio.run(new.id)["jobs"][0]["state"] == "cancelling"
    studio.close()


def test_a_worker_that_never_stops_printing_neither_waits_nor_fills_the_disk(house, expected_curve) -> None:
    """Without a line's end and with bytes that are no text."""
    job = house.submit(steps=100, pause=0.02, babble=60)
    house.dispatcher(log_bytes=3 << 20)
    log = house.home.run(job.run).logs / "train-1.log"
    sizes = []
    house.wait(lambda: sizes.append(log.stat().st_size if log.exists() else 0) or house.job(job).state == "done", 60)
    assert house.curve(job) == expected_curve(100)
    assert max(sizes) > 3 << 20 and b"were cut out here" in log.read_bytes()
    worker_log.shorten(log, 3 << 20)
    assert log.stat().st_size < 5 << 20
    lines = worker_log.last_lines(log, 40)
    assert lines and all(len(line) <= worker_log.LINE + 3 and line.isprintable() for line in lines)


def test_a_log_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first line\n" + b"x" * (5 << 20) + b"\nlast line\n")
    assert worker_log.shorten(path, 4 << 20) and not worker_log.shorten(path, 4 << 20)
    content = path.read_bytes()
    assert content.startswith(b"first line\n") and content.endswith(b"\nlast line\n") and len(content) < 2 << 20
    assert worker_log.last_lines(path, 1) == ["last line"]
