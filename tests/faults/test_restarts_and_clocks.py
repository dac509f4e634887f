"""Machines that start anew and clocks that jump: what stands in files and rows of before is not believed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import pytest

from app.pages import run_views
from core.home import Home, write_json
from core.inference import Inference
from core.jobs import leftovers
from core.jobs.processes import Process, identify
from core.jobs.service import dispatcher_status, register_web, stop_dispatcher, web_lives
from core.studio import Studio
from storage import Database
from storage.queries import jobs, runs
from tests.storage.test_upgrades import restore

HOURS = 5 * 3600.0


@pytest.fixture
def stranger():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield child
    child.kill()
    child.wait()


def lies(true: Process) -> list[dict]:
    """What a file of before says of a process whose pid is another's by now."""
    facts = asdict(true)
    return [facts | {"boot": "before"}, facts | {"start": true.start - 1}, facts | {"pid": 2**22 - 1}]


def test_files_of_before_a_restart_name_nobody(tmp_path: Path, stranger) -> None:
    """The pid file, those of web processes and of inference workers; who has their pids now is let live."""
    home, true = Home.open(tmp_path), identify(stranger.pid)
    facts = home.inference / "abc" / "worker.json"
    for lie in lies(true):
        write_json(home.dispatcher / "pid", lie)
        write_json(home.dispatcher / f"web-{lie['pid']}.json", lie)
        write_json(facts, lie | {"socket": str(tmp_path / "none")})
        assert not dispatcher_status(home).alive and not stop_dispatcher(home)
        assert not web_lives(home) and not list(home.dispatcher.glob("web-*.json"))
        studio = Studio(tmp_path)
        inference = Inference(home, studio.records)
        assert inference.workers() == [] and inference.stop() == 0
        studio.close()
    for broken in ("", "{", "[]", '{"pid": "x"}', "\0" * 40):
        (home.dispatcher / "pid").write_text(broken)
        facts.write_text(broken)
        assert not dispatcher_status(home).alive and inference.stop() == 0
    assert stranger.poll() is None, "a stranger was ended"
    with register_web(home):
        assert web_lives(home)


def test_what_killed_processes_left_is_swept_at_the_start(house) -> None:
    home = house.home
    names = ["runs/.gone-run-1-ab", "runs/.import-xy", "datasets/.new-1", "datasets/.gone-2", "cache/experts-3"]
    kept = ["runs/run-7", "datasets/0123456789abcdef", "runs/.import-young"]
    for name in names + kept:
        (home.root / name).mkdir(parents=True)
        (home.root / name / "file").write_text("x")
    (home.root / "runs/run-7/jobs").mkdir()
    (home.root / "runs/run-7/jobs/.train-1.json.abc").write_text("{")
    old = time.time() - 3600
    for path in [*home.root.rglob("*")][::-1]:
        if "young" not in str(path) and "dispatcher" not in str(path):
            os.utime(path, (old, old))
    house.dispatcher()
    house.wait(lambda: (home.dispatcher / "boot").exists())
    assert not any((home.root / name).exists() for name in names)
    assert all((home.root / name / "file").exists() for name in kept)
    assert not list((home.root / "runs/run-7/jobs").iterdir())


def test_without_a_restart_what_was_touched_today_stays(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    leftovers.sweep(home)
    half = home.runs / ".import-slow"
    half.mkdir()
    os.utime(half, (time.time() - 3600,) * 2)
    assert leftovers.sweep(home) == [] and half.exists()
    os.utime(half, (time.time() - 2 * 24 * 3600,) * 2)
    assert leftovers.sweep(home) == [half] and not half.exists()


@pytest.mark.parametrize("revision", ["0001", "0003", "0006"])
def test_an_unfinished_run_of_an_old_schema_goes_on(house, revision: str) -> None:
    """Its worker lived before the machine was started anew; its job and the one that needs it are done now."""
    house.database.close()
    for path in house.home.root.glob("tessera.db*"):
        path.unlink()
    restore(revision, house.home.root)
    folder = house.home.run("run-2").create()
    write_json(folder.checkpoints / "train.json", {"step": 5})
    house.database = Database(house.home.database_url)
    house.dispatcher()
    with house.database.session() as session:
        owned = jobs.of_run(session, run="run-2")
    for job in owned:
        house.until(job, "done")
    first, second = house.attempts(owned[0])
    assert (first.outcome, second.outcome, second.resumed_from) == ("lost", "done", 5)
    assert house.job(owned[0]).lost_attempts == 0, "a restart is not the job's fault"
    assert "run-2" not in {lease["run"] for lease in house.leases()}  # the next run of the queue may have begun


@pytest.mark.parametrize("jump", [HOURS, -HOURS], ids=["forward", "back"])
@pytest.mark.parametrize("who", ["worker", "dispatcher"])
def test_a_clock_that_jumps_changes_no_duration(house, expected_curve, jump: float, who: str) -> None:
    job = house.submit(steps=60, pause=0.02, **({"jump": jump} if who == "worker" else {}))
    began = time.monotonic()
    house.dispatcher(**({"jump": jump} if who == "dispatcher" else {}))
    seen = []
    house.wait(lambda: seen.append(house.job(job)) or seen[-1].state in ("done", "failed", "lost"))
    took = time.monotonic() - began
    assert house.job(job).state == "done" and len(house.attempts(job)) == 1
    assert house.curve(job) == expected_curve(60)
    assert all(one.seconds_left >= 0 for one in seen if one.seconds_left is not None)
    with house.database.session() as session:
        run = runs.get(session, run=job.run)
    assert timedelta(0) <= run.finished - run.started <= timedelta(seconds=took + 1)
    studio = Studio(house.home.root)
    head = run_views.head(studio.run(job.run))
    assert "-" not in head.partition("took")[2].partition("<")[0]
    assert studio.watch.messages(job.run)["output"] == []
    studio.close()
    assert house.leases() == [] and dispatcher_status(house.home).alive


def test_times_never_run_backwards_over_attempts(house) -> None:
    """The second attempt's machine is five hours behind the first one's."""
    job = house.submit(steps=10, pause=0.0, jump=-HOURS, fail_at=8)
    house.dispatcher(jump=-HOURS)
    house.until(job, "failed")
    with house.database.write() as session:
        jobs.resume(session, job=job.id)
    done = house.until(job, "done")
    assert done.finished >= done.started


def test_the_newest_output_is_shown_whatever_the_clock_said(house) -> None:
    job = house.submit(steps=6, exit_at=4)
    house.dispatcher()
    house.until(job, "failed")
    with house.database.write() as session:
        jobs.resume(session, job=job.id)
    house.until(job, "failed")
    house.wait(lambda: len(house.attempts(job)) == 2 and house.attempts(job)[1].ended)
    logs = house.home.run(job.run).logs
    (logs / "train-2.log").write_text("the second\n")
    os.utime(logs / "train-1.log", (time.time() + HOURS,) * 2)
    studio = Studio(house.home.root)
    assert studio.watch.messages(job.run)["output"] == ["the second"]
    assert studio.logs(job.run)["output"] == ["the second"]
    studio.close()
