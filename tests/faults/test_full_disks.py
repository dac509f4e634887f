"""Disks that are full: the checkpoint before is whole, the state says why, and there is no gap once there is room."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import room
from core.errors import DiskError
from core.home import PROJECT, write_json
from core.jobs.sinks import FileSink
from core.schema import TrainSpec
from core.training import checkpoints
from storage.queries import jobs, runs, series
from tests.support.tiny import tiny_base
from tests.support.training import LORA, NOT_REPEATABLE, toy_spec, toy_store

STEPS = 12
WORKER = str(Path(__file__).with_name("limited_worker.py"))


def submit(house, spec, full=None):
    with house.database.write() as session:
        run, _ = runs.add(session, spec=spec.model_dump(mode="json"))
        folder = house.home.run(run.folder).create()
        write_json(folder.spec, run.spec)
        if full:
            write_json(folder.root / "full.json", full)
        return jobs.add(session, run=run.id, kind="train", device="cpu")


def curves(house, run: str) -> dict[str, tuple[list[int], bytes]]:
    with house.database.session() as session:
        found = series.read(session, run=run)
    return {
        name: (curve.steps.tolist(), curve.values.tobytes())
        for name, curve in found.items()
        if name.split("/")[0] not in NOT_REPEATABLE
    }


def test_a_disk_that_fills_during_a_run_loses_nothing(house, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the second checkpoint, and in the middle of an event, past which nothing at all can be written."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    toy_store(house.home.datasets)
    settings = {"steps": STEPS, "checkpoint_every": 4, "evaluate_every": 6}
    spec = toy_spec(tiny_base(tmp_path / "base"), LORA, **settings)
    quiet, at_checkpoint, at_event = (
        submit(house, spec),
        submit(house, spec, ["checkpoint", 2]),
        submit(house, spec, ["event", 16]),
    )
    house.dispatcher(worker=WORKER, slots=2)
    house.until(quiet, "done", seconds=120)

    reached = {}
    for job, said in ((at_checkpoint, "no file that large"), (at_event, "took nothing more")):
        failed = house.until(job, "failed", "done", seconds=120)
        assert (
            (failed.state, failed.failure) == ("failed", "disk") and said in failed.message and "resume" in failed.hint
        )
        folder = house.home.run(job.run)
        reached[job.id], path = checkpoints.found(folder.checkpoints)[-1]
        assert 4 <= reached[job.id] < STEPS and checkpoints.defect(path) == ""
        assert not list(folder.checkpoints.glob(".writing-*"))
        (folder.root / "full.json").unlink()
        with house.database.write() as session:
            jobs.resume(session, job=job.id)
    for job in (at_checkpoint, at_event):
        assert house.until(job, "done", "failed", seconds=120).state == "done"
        assert house.attempts(job)[1].resumed_from == reached[job.id]
        assert curves(house, job.run) == curves(house, quiet.run)
    assert house.leases() == [] and house.survivors() == []


def test_events_wait_while_the_database_has_no_room(house, tmp_path: Path, expected_curve) -> None:
    flag = tmp_path / "full"
    job = house.submit(steps=80, pause=0.02)
    dispatcher = house.dispatcher(full=str(flag), retry=0.1)
    house.until_step(job, 10)
    flag.touch()
    events = house.home.run(job.run).events
    house.wait(lambda: b'"finished"' in events.read_bytes())
    time.sleep(0.5)
    assert house.job(job).state == "running" and len(house.curve(job)[0]) < 80
    assert dispatcher.poll() is None, "the dispatcher died"
    flag.unlink()
    house.until(job, "done")
    assert house.curve(job) == expected_curve(80) and len(house.attempts(job)) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("this machine lets nobody mount; limits of file size are tested instead")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_on_a_disk_that_is_really_full_the_checkpoint_before_stays(small_disk: Path) -> None:
    def fill(size: int):
        return lambda folder: (folder / "state.pt").write_bytes(os.urandom(size))

    checkpoints.write(small_disk, 1, fill(60_000), {})
    with pytest.raises(OSError) as caught:
        checkpoints.write(small_disk, 2, fill(250_000), {})
    assert "full" in room.trouble(caught.value).message
    assert [path.name for path in small_disk.iterdir()] == ["step-1"] and not checkpoints.defect(small_disk / "step-1")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError) as caught:
        checkpoints.write(small_disk, 2, fill(10), {})
    assert "only be read" in room.trouble(caught.value).message
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    checkpoints.write(small_disk, 2, fill(60_000), {})
    assert sorted(path.name for path in small_disk.iterdir()) == ["step-1", "step-2"]


def test_an_event_that_found_no_room_costs_no_other(small_disk: Path) -> None:
    sink = FileSink(small_disk / "events.jsonl", run="r", job="train", attempt=1)
    with pytest.raises(OSError):
        for step in range(10_000):
            sink.emit("log", level="info", message="x" * 300, step=step)
    with (small_disk / "events.jsonl").open("r+b") as file:  # somebody makes room
        whole = [json.loads(line)["step"] for line in file.read().splitlines()[:-1]]
    shutil.copy(small_disk / "events.jsonl", small_disk.parent / "events.jsonl")
    again = FileSink(small_disk.parent / "events.jsonl", run="r", job="train", attempt=2)
    again.emit("started", step=0)
    lines = (small_disk.parent / "events.jsonl").read_bytes().splitlines()
    assert whole == list(range(len(whole))) and json.loads(lines[-1])["kind"] == "started"


def test_too_little_room_is_said_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = TrainSpec(checkpoints_kept=2)
    need = room.needed(1_000_000, train)
    assert need == 4_000_000 * 3 * 4 + 4_000_000
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, need - 1))
    with pytest.raises(DiskError, match="free on the disk") as caught:
        room.require(1_000_000, train, tmp_path / "not" / "there")
    assert "checkpoints_kept" in caught.value.hint
    room.require(999_000, train, tmp_path)


UPLOAD = """
import resource, sys
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
from core.studio import Studio
studio = Studio(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
try:
    studio.upload(sys.argv[2])
except Exception as error:
    print(type(error).__name__, error)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(len(studio.datasets()), studio.upload(sys.argv[2])["counts"]["train"])
"""


def test_an_upload_that_finds_no_room_leaves_nothing_behind(tmp_path: Path) -> None:
    rows = "".join(
        f'{{"instruction": "Say.", "input": "{os.urandom(30).hex()}", "output": "yes"}}\n' for _ in range(400)
    )
    (tmp_path / "rows.jsonl").write_text(rows)
    command = [sys.executable, "-c", UPLOAD, str(tmp_path / "home"), str(tmp_path / "rows.jsonl")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    first, after = done.stdout.splitlines()
    assert "full" in first and after.startswith("0 "), done.stderr[-500:]
    assert len(list((tmp_path / "home" / "datasets").iterdir())) == 1
