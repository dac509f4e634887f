"""Databases of every earlier schema, made by the code of their time, migrate with their data, or nothing changes."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.pages import home_views, run_look
from app.pages.run_list import Filters
from core.home import PROJECT, Home
from storage import Database, StorageError, backup
from storage import database as module
from storage.models import Base
from storage.queries import chats, holds, jobs, routing, tables
from tests.support.seed import QuietStudio

FIXTURES = Path(__file__).with_name("fixtures")
REVISIONS = sorted(path.stem for path in FIXTURES.glob("*.sql"))


def restore(revision: str, home: Path) -> Path:
    """The stored database of a revision as the database of a home."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / "tessera.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript((FIXTURES / f"{revision}.sql").read_text("utf-8"))
    return path


def counted(path: Path) -> dict[str, int]:
    """Table -> rows."""
    with closing(sqlite3.connect(path)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        kept = [name for name in names if not name.startswith(("sqlite_", "alembic_"))]
        return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in kept}


def test_every_earlier_revision_has_a_fixture() -> None:
    """Whoever adds a revision first runs ``python -m tests.storage.make_fixture`` on the one before."""
    scripts = ScriptDirectory(str(module.MIGRATIONS))
    earlier = {script.revision for script in scripts.walk_revisions()} - {scripts.get_current_head()}
    assert earlier <= set(REVISIONS)


@pytest.mark.parametrize("revision", REVISIONS)
def test_an_old_database_migrates_with_its_data(revision: str, tmp_path: Path) -> None:
    path = restore(revision, tmp_path)
    before = counted(path)
    assert len(before) > 15 and all(before.values()), "a table of the fixture is empty"
    with Database(f"sqlite:///{path}") as database, database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    after = counted(path)
    assert {name: after[name] for name in before} == before
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_pages_answer_on_an_old_database(revision: str, tmp_path: Path) -> None:
    restore(revision, tmp_path)
    studio = QuietStudio(tmp_path)
    first, second = studio.run("run-1"), studio.run("run-2")
    assert (first["state"], first["trainable"], first["tags"]) == ("done", 1000, ["old"])
    assert second["parent"] == "run-1" and [job["state"] for job in second["jobs"]] == ["running", "queued"]
    assert [run["id"] for run in studio.runs()] == ["run-3", "run-2", "run-1"]
    assert studio.curves("run-1")["value"].iloc[-1] == pytest.approx(0.25)
    assert studio.scores("run-1")["value"].tolist() == [0.75]
    said = studio.watch.messages("run-1")
    assert [alarm["name"] for alarm in said["alarms"]] == ["diverged"] and len(said["lines"]) == 2
    with studio.records.read() as session:
        (moment,) = routing.moments(session, run="run-1")
        assert routing.read(session, snapshot=moment.id)[1]["mean_gate"].tolist() == [[0.25] * 4]
        assert [job.run for job in jobs.queue(session)] == ["run-2", "run-2", "run-3"]
        if revision >= "0002":
            assert [hold.holder for hold in holds.every(session)] == ["w"]
            assert [one.title for one in chats.page(session).rows] == ["Hello"]
        if revision >= "0004":
            assert tables.read(session, run="run-1", name="sweep")[0].rows == [[0.1, 0.7]]
    for run in ("run-1", "run-2", "run-3"):
        fresh, _ = run_look.look(studio, run, "loss", Filters(), {})
        assert run in fresh["head"] and "No run" not in fresh["head"]
    assert home_views.counts(studio.overview()["counts"])
    studio.close()


def test_the_copy_before_a_migration_is_the_database_before_it(tmp_path: Path) -> None:
    before = counted(restore("0001", tmp_path))
    Database(f"sqlite:///{tmp_path / 'tessera.db'}").close()
    (copy,) = tmp_path.glob("tessera.db.0001-*.bak")
    assert counted(copy) == before
    shutil.copy(copy, tmp_path / "again.db")
    Database(f"sqlite:///{tmp_path / 'again.db'}").close()


def test_copies_are_bounded_in_number(tmp_path: Path) -> None:
    for year in range(2000, 2008):
        (tmp_path / f"tessera.db.0001-{year}0101-000000.bak").touch()
    restore("0003", tmp_path)
    Database(f"sqlite:///{tmp_path / 'tessera.db'}").close()
    kept = sorted(path.name for path in tmp_path.glob("*.bak"))
    assert len(kept) == backup.KEPT and kept[-1].startswith("tessera.db.0003-")


def unchanged(tmp_path: Path, before: bytes) -> bool:
    return (tmp_path / "tessera.db").read_bytes() == before and not list(tmp_path.glob("*.bak*"))


def test_too_little_disk_for_the_copy_is_refused_before_anything_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = restore("0002", tmp_path).read_bytes()
    small = shutil._ntuple_diskusage(10**9, 10**9, len(before) // 2)
    monkeypatch.setattr(backup.shutil, "disk_usage", lambda _: small)
    with pytest.raises(StorageError, match="free"):
        Database(f"sqlite:///{tmp_path / 'tessera.db'}")
    assert unchanged(tmp_path, before)


LIMITED = """
import resource, sys
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from storage import Database, StorageError
try:
    Database(sys.argv[1])
except StorageError as error:
    print(error.message, error.hint)
    sys.exit(7)
"""


def test_a_disk_that_fills_while_the_copy_is_made_changes_nothing(tmp_path: Path) -> None:
    """No file of the process may grow past a part of the database: the copy breaks off in the middle."""
    before = restore("0002", tmp_path).read_bytes()
    command = [sys.executable, "-c", LIMITED, f"sqlite:///{tmp_path / 'tessera.db'}", str(len(before) // 2)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 7 and "Nothing was changed" in done.stdout, done.stderr[-800:]
    assert unchanged(tmp_path, before) and not list(tmp_path.glob(".*.part"))
    Database(f"sqlite:///{tmp_path / 'tessera.db'}").close()


def test_a_copy_that_does_not_open_stops_the_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = restore("0002", tmp_path).read_bytes()
    check = backup._check

    def spoilt(copy: Path, revision: str) -> None:
        content = bytearray(copy.read_bytes())
        content[4096:12288] = os.urandom(8192)
        copy.write_bytes(content)
        check(copy, revision)

    monkeypatch.setattr(backup, "_check", spoilt)
    with pytest.raises(StorageError, match="copy before it failed"):
        Database(f"sqlite:///{tmp_path / 'tessera.db'}")
    assert unchanged(tmp_path, before)


def newer(home: Path) -> Path:
    path = home / "tessera.db"
    Database(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    return path


@pytest.mark.parametrize(
    "command",
    [
        lambda home: ["app.py", "--home", home, "runs"],
        lambda home: ["app.py", "--home", home, "serve", "--port", "0"],
        lambda home: ["-m", "core.jobs.dispatcher", home],
    ],
    ids=["command line", "web", "dispatcher"],
)
def test_a_newer_database_is_refused_with_a_reason(tmp_path: Path, command: Callable[[str], list[str]]) -> None:
    Home.open(tmp_path)
    before = newer(tmp_path).read_bytes()
    told = subprocess.run(
        [sys.executable, *command(str(tmp_path))], cwd=PROJECT, capture_output=True, text=True, timeout=60
    )
    said = told.stdout + told.stderr
    assert told.returncode != 0 and "Traceback" not in said
    assert "newer version of the studio" in said and "Update the studio" in said
    assert unchanged(tmp_path, before)
