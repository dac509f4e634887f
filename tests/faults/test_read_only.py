"""A database or a folder that suddenly can only be read, under living processes: said, no loop, nothing lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from core.errors import ConfigurationError
from core.home import write_json
from core.studio import Studio
from storage.queries import jobs
from tests.support.read_only import read_only


def test_a_database_that_can_only_be_read_under_a_living_dispatcher(house, tmp_path: Path, expected_curve) -> None:
    """The worker goes on and ends meanwhile; what it said is read when the database can be written."""
    flag = tmp_path / "read-only"
    job, waits = house.submit(steps=60, pause=0.02), house.submit(steps=3)
    dispatcher = house.dispatcher(readonly=str(flag), retry=0.1)
    house.until_step(job, 5)
    flag.touch()
    events = house.home.run(job.run).events
    house.wait(lambda: b'"finished"' in events.read_bytes())
    time.sleep(0.5)
    assert dispatcher.poll() is None and house.log().count("cannot be written") == 1, "it dies, or fills its log"
    assert house.job(job).state == "running" and len(house.attempts(waits)) == 0
    flag.unlink()
    house.until(job, "done")
    house.until(waits, "done")
    assert house.curve(job) == expected_curve(60) and len(house.attempts(job)) == 1 and house.leases() == []


@pytest.mark.long
def test_a_home_that_can_only_be_read_is_shown_and_refuses_changes(house) -> None:
    job = house.submit(steps=3)
    house.dispatcher()
    house.until(job, "done")
    house.database.close()
    before = Studio(house.home.root)
    before.runs()
    with read_only(house.home.root):
        fresh = Studio(house.home.root)
        for studio in (before, fresh):
            assert studio.run(job.run)["state"] == "done" and studio.health()["database"] == "ok"
        with pytest.raises(ConfigurationError, match="cannot be written"):
            fresh.annotate(job.run, notes="x")
    for studio in (before, fresh):
        studio.annotate(job.run, notes="written again")
        studio.close()


def test_folders_that_can_only_be_read_under_living_processes(house, expected_curve) -> None:
    """The dispatcher's own folder disturbs no run. A run's folder fails the run, which resumes without a gap."""
    write_json(house.home.dispatcher / "web-1.json", {"pid": 1 << 22, "start": 1.0, "boot": "before"})
    dispatcher = house.dispatcher(beat=0.1, poll=0.4)
    house.wait(lambda: "at work" in house.log())
    with read_only(house.home.dispatcher):
        time.sleep(0.8)  # with nothing to do, and the file of a web server that died
        job = house.submit(steps=120, pause=0.02)
        house.until_step(job, 20)
        assert dispatcher.poll() is None, house.log()[-2000:]
    folder = house.home.run(job.run).root
    with read_only(folder):
        failed = house.until(job, "failed")
        assert failed.failure == "disk" and failed.hint, failed
    with house.database.write() as session:
        jobs.resume(session, job=job.id)
    house.until(job, "done", "failed", seconds=60)
    assert house.curve(job) == expected_curve(120) and house.leases() == [] and house.survivors() == []
    assert dispatcher.poll() is None and len(house.log()) < 20_000


@pytest.mark.long
def test_runs_that_cannot_be_begun_say_why_and_are_done_later(house) -> None:
    dispatcher = house.dispatcher()
    with read_only(house.home.runs):
        job = house.submit(steps=3)
        failed = house.until(job, "failed")
        assert failed.failure == "disk" and "cannot be started" in failed.message and "resume" in failed.hint
    with house.database.write() as session:
        jobs.resume(session, job=job.id)
    assert house.until(job, "done", "failed").state == "done" and dispatcher.poll() is None
