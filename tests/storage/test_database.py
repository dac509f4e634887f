import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from storage import Database, StorageError
from storage import database as module
from storage.models import Base, Conversation
from storage.queries import settings


def test_migrations_from_empty_make_exactly_the_models(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_opening_again_changes_nothing_and_makes_no_copy(database: Database, tmp_path: Path) -> None:
    with database.write() as session:
        settings.put(session, key="x", value=[1, 2])
    with Database(str(database.url)) as again, again.session() as session:
        assert settings.get(session, key="x") == [1, 2]
    assert not list(tmp_path.glob("*.bak"))


def test_a_newer_schema_is_refused_with_a_reason(database: Database) -> None:
    with closing(sqlite3.connect(database.path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StorageError, match="newer version of the studio"):
        Database(str(database.url))


HEAD = ScriptDirectory(str(module.MIGRATIONS)).get_current_head()
NEXT = """
from alembic import op
import sqlalchemy as sa
revision = "9000"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("settings", sa.Column("colour", sa.Text(), server_default="grey"))
    {then}
"""


def _with_next_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str = "") -> None:
    scripts = tmp_path / "migrations"
    shutil.copytree(module.MIGRATIONS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "9000_next.py").write_text(NEXT.format(then=then, head=HEAD))
    monkeypatch.setattr(module, "MIGRATIONS", scripts)


def test_an_upgrade_keeps_the_data_and_a_copy_of_the_file_before_it(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.write() as session:
        settings.put(session, key="kept", value=1)
    _with_next_revision(tmp_path, monkeypatch)
    with Database(str(database.url)) as upgraded, upgraded.session() as session:
        assert session.execute(text("SELECT key, colour FROM settings")).all() == [("kept", "grey")]
    (copy,) = tmp_path.glob(f"tessera.db.{HEAD}-*.bak")
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]
        assert connection.execute("SELECT key FROM settings").fetchall() == [("kept",)]


def test_an_upgrade_that_fails_half_way_changes_nothing(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.write() as session:
        settings.put(session, key="kept", value=1)
    with monkeypatch.context() as patch:
        _with_next_revision(tmp_path, patch, then="raise RuntimeError('half way')")
        with pytest.raises(RuntimeError, match="half way"):
            Database(str(database.url))
    with Database(str(database.url)) as again, again.session() as session:
        assert settings.get(session, key="kept") == 1


def test_a_failed_migration_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "tessera.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE jobs (x INTEGER)")  # in the way of the first revision
    with pytest.raises(Exception, match="jobs"):
        Database(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall() == [("jobs",)]


def test_many_processes_may_open_a_fresh_database_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'fresh.db'}"
    code = f"from storage import Database; Database({url!r}).close()"
    opened = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait(60) for process in opened] == [0, 0, 0, 0]


def test_pragmas_hold(database: Database) -> None:
    with database.session() as session:
        assert session.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert session.execute(text("PRAGMA foreign_keys")).scalar() == 1


def test_a_reading_session_cannot_write(database: Database) -> None:
    with pytest.raises(StorageError, match="cannot be written"), database.session() as session:
        settings.put(session, key="x", value=1)
    with database.write() as session:
        settings.put(session, key="x", value=2)
    with database.session() as session:
        assert settings.get(session, key="x") == 2


def test_a_writer_that_fails_leaves_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError), database.write() as session:
        settings.put(session, key="x", value=1)
        raise RuntimeError
    with database.session() as session:
        assert settings.get(session, key="x") is None


def test_read_then_write_from_many_threads_loses_nothing(database: Database) -> None:
    def add() -> None:
        for _ in range(20):
            with database.write() as session:
                settings.put(session, key="n", value=settings.get(session, key="n", default=0) + 1)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.session() as session:
        assert settings.get(session, key="n") == 160


def test_a_database_locked_by_another_program_is_explained(database: Database) -> None:
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with (
            pytest.raises(StorageError, match="locked by another program"),
            Database(str(database.url), busy_seconds=0.3) as second,
            second.write(),
        ):
            pass
        assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"\0" * 4096])
def test_a_file_that_is_no_database_is_explained(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tessera.db"
    path.write_bytes(content)
    if content.strip(b"\0"):
        with pytest.raises(StorageError, match="not a database"):
            Database(f"sqlite:///{path}")
    else:
        with pytest.raises(StorageError):
            Database(f"sqlite:///{path}")


def test_times_keep_their_moment_and_naive_ones_are_refused(database: Database) -> None:
    east = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    with database.write() as session:
        session.add(Conversation(title="a", models=["base"], created=east))
    with database.session() as session:
        read = session.get_one(Conversation, 1).created
    assert read == east and read.tzinfo == UTC
    with pytest.raises(Exception, match="time zone"), database.write() as session:
        session.add(Conversation(title="b", models=["base"], created=datetime(2026, 3, 1)))


def test_storage_imports_neither_torch_nor_the_engine() -> None:
    code = (
        "import sys, storage, storage.queries; "
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'core', 'app')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
