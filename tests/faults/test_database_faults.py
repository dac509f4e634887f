"""A database that is taken away, replaced, locked or damaged under a living dispatcher: a clear state, no loop."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing

import pytest

from core.errors import ConfigurationError
from core.jobs.service import stop_dispatcher
from core.studio import Studio
from storage import Database
from storage.queries import runs
from tests.support.seed import QuietStudio


def beside(path) -> None:
    """What the documented remedy says to delete first."""
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_database_that_is_taken_away_ends_the_dispatcher_and_the_remedy_works(
    house, expected_curve, how: str
) -> None:
    """The worker goes on meanwhile; the copy is older than some events, which are read again."""
    path = house.database.path
    job = house.submit(steps=200, pause=0.02)
    first = house.dispatcher()
    house.until_step(job, 5)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(path.with_name("copy.bak"))) as copy:
        source.backup(copy)
    studio = Studio(house.home.root)
    assert studio.run(job.run)["state"] == "running"
    if how == "removed":
        path.unlink()
    else:
        shutil.copy(path.with_name("copy.bak"), path.with_name("new.db"))
        os.replace(path.with_name("new.db"), path)
    assert first.wait(20) == 0 and "gone" in house.log() or "replaced" in house.log()
    with pytest.raises(ConfigurationError, match="gone|replaced") as caught:
        studio.run(job.run)
    assert "-wal" in caught.value.hint
    studio.close()
    house.database.close()

    beside(path)
    shutil.copy(path.with_name("copy.bak"), path)
    house.database = Database(house.home.database_url)
    house.dispatcher()
    assert house.until(job, "done", "failed", seconds=60).state == "done"
    assert house.curve(job) == expected_curve(200) and len(house.attempts(job)) == 1


def test_a_locked_database_delays_the_dispatcher_and_nothing_else(house, expected_curve) -> None:
    job = house.submit(steps=60, pause=0.02)
    process = house.dispatcher(busy=0.2, retry=0.1)
    house.until_step(job, 5)
    with closing(sqlite3.connect(house.database.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        studio = Studio(house.home.root)
        assert studio.run(job.run)["state"] == "running", "pages read on"
        studio.records.__dict__["database"] = Database(house.home.database_url, busy_seconds=0.3)
        began = time.monotonic()
        with pytest.raises(ConfigurationError, match="locked by another program"):
            studio.annotate(job.run, notes="x")
        assert time.monotonic() - began >= 0.3
        studio.close()
        house.wait(lambda: "locked by another program" in house.log())
    house.until(job, "done")
    assert process.poll() is None and house.curve(job) == expected_curve(60)
    assert house.log().count("locked by another program") == 1, "the same complaint fills the log"


def test_a_damaged_database_is_named_and_nothing_loops(house) -> None:
    job = house.submit(steps=4000, pause=0.02)
    process = house.dispatcher(retry=0.1)
    house.until_step(job, 5)
    path = house.database.path
    process.send_signal(signal.SIGSTOP)
    house.database.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:  # all but the header, so that it still looks like a database
        file.seek(100)
        file.write(os.urandom(path.stat().st_size - 100))
    process.send_signal(signal.SIGCONT)
    with pytest.raises(ConfigurationError) as caught:
        Studio(house.home.root).runs()
    assert "docs/jobs.md" in caught.value.hint
    time.sleep(1.5)
    assert process.poll() in (None, 0) and len(house.log()) < 20_000
    shutil.rmtree(house.home.run(job.run).root)  # the worker ends with its folder
    process.kill()
    process.wait()
    path.unlink()
    beside(path)
    house.database = Database(house.home.database_url)


def test_runs_that_a_restored_database_does_not_know_come_back_under_their_numbers(house) -> None:
    """Without this, a new run would be given the folder, the events and the checkpoints of an old one."""
    done = [house.submit(steps=5) for _ in range(3)]
    house.dispatcher()
    for job in done:
        house.until(job, "done")
    stop_dispatcher(house.home)
    house.database.close()
    house.database.path.unlink()
    beside(house.database.path)
    house.database = Database(house.home.database_url)
    studio = QuietStudio(house.home.root)
    for number in (2, 3):
        assert studio.import_run(house.home.runs / f"run-{number}")["id"] == f"run-{number}"
    assert studio.curves("run-3")["step"].max() == 5 and studio.run("run-2")["state"] == "done"
    with studio.records.write() as session:
        assert runs.add(session, spec={"tasks": []}, above=studio.home.last_run)[0].id == "run-4"
    studio.close()
