"""The one owner of database connections: short reading sessions, exclusive writing ones, migration at opening."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session

from storage.backup import back_up
from storage.errors import ReplacedError, StorageError

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 15
RESTORE = (
    "End the studio and its dispatcher. Delete the files beside it that end in -wal and -shm, and copy the newest .bak "
    "file over it; or move it away and import the run folders (docs/jobs.md, Restoring)."
)
REOPEN = (
    "End the studio and its dispatcher, delete the files beside it that end in -wal and -shm, put the right file there "
    "and start again (docs/jobs.md, Restoring)."
)


class Database:
    """Sessions on one database; SQLite unless the URL names another.

    ``session()`` may only read. ``write()`` holds SQLite's single write lock from its start, so that nothing read in
    it is stale when it writes; keep it short.
    """

    def __init__(self, url: str, *, migrate: bool = True, busy_seconds: float = BUSY_SECONDS) -> None:
        try:
            self.url = make_url(url)
        except ArgumentError as error:
            raise StorageError(
                "The database address is not an SQLAlchemy URL.", "Example: sqlite:////path/x.db"
            ) from error
        self._busy_seconds = busy_seconds
        self._file: tuple[int, int] | None = None  # device and inode of the file that the connections are open on
        self.engine = self._connect()
        self._reader = self.engine.execution_options(tessera_write=False, postgresql_readonly=True)
        self._writer = self.engine.execution_options(tessera_write=True)
        if migrate:
            self.migrate()

    @property
    def path(self) -> Path | None:
        """The SQLite file, or None for a server."""
        is_file = self.url.get_backend_name() == "sqlite" and self.url.database not in (None, "", ":memory:")
        return Path(self.url.database) if is_file and self.url.database else None

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A short reading session; a write in it is an error."""
        self._check_file()
        with _explained(self), Session(self._reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One writing transaction: committed at the end, rolled back on any exception."""
        self._check_file()
        with _explained(self), Session(self._writer, expire_on_commit=False) as session, session.begin():
            session.connection()  # takes the write lock now, before anything is read
            yield session

    def migrate(self) -> None:
        """Bring the schema to the newest revision; the SQLite file is copied before anything changes."""
        scripts = ScriptDirectory(str(MIGRATIONS))
        head = scripts.get_current_head()
        with _explained(self):
            with self._reader.connect() as connection:
                present = _revision(connection)
            if present == head:
                return
            known = {script.revision for script in scripts.walk_revisions()}
            if present is not None and present not in known:
                raise StorageError(
                    f"The database was written by a newer version of the studio (schema {present}, not {head}).",
                    "Update the studio, or choose another data folder with --home.",
                )
            with self._writer.connect() as connection:
                self._upgrade(connection, head)

    def close(self) -> None:
        self.engine.dispose()

    def _check_file(self) -> None:
        """Raise ReplacedError where the file at the path is no longer the one that is open.

        SQLite would go on reading and writing a file without a name, and a new connection would find another one.
        """
        if self.path is None:
            return
        try:
            found = os.stat(self.path)
        except OSError:
            if self._file is None:
                return  # nothing was opened yet, and opening says what is wrong
            raise ReplacedError(f"The database {self.path} is gone.", REOPEN) from None
        identity = (found.st_dev, found.st_ino)
        self._file = self._file or identity
        if self._file != identity:
            raise ReplacedError(f"The database {self.path} was replaced while the studio used it.", REOPEN)

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _connect(self) -> Engine:
        if self.url.get_backend_name() != "sqlite":
            return create_engine(self.url, pool_pre_ping=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(
            self.url,
            pool_size=8,
            max_overflow=56,
            connect_args={"timeout": self._busy_seconds, "check_same_thread": False},
        )
        event.listen(engine, "connect", self._prepare)
        event.listen(engine, "begin", _begin)
        return engine

    def _prepare(self, connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not open transactions by itself
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={int(self._busy_seconds * 1000)}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    def _upgrade(self, connection: Connection, head: str | None) -> None:
        sqlite = self.url.get_backend_name() == "sqlite"
        if sqlite:  # later revisions rebuild tables; the keys are checked as a whole before the commit
            connection.connection.dbapi_connection.execute("PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                present = _revision(connection)  # another process may have been faster
                if present == head:
                    return
                if present is not None and self.path is not None:
                    back_up(self.path, present)
                config = Config(attributes={"connection": connection})
                config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
                command.upgrade(config, "head")
                if sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                    raise StorageError("The migration would leave broken references.", "The database is unchanged.")
        finally:
            if sqlite:
                connection.connection.dbapi_connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    if connection.get_execution_options().get("tessera_write", False):
        connection.exec_driver_sql("PRAGMA query_only=OFF")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql("PRAGMA query_only=ON")
        connection.exec_driver_sql("BEGIN")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@contextmanager
def _explained(database: Database) -> Iterator[None]:
    """Turn a driver's complaint into one that its reader can mend."""
    try:
        yield
    except DBAPIError as error:
        where = str(database.path or database.url.render_as_string(hide_password=True))
        text = str(error.orig)
        for sign, message, hint in _COMPLAINTS:
            if sign in text:
                raise StorageError(message.format(where=where), hint) from error
        raise


_COMPLAINTS = (
    ("database is locked", "The database {where} is locked by another program.", "Close that program and try again."),
    ("disk is full", "The disk of {where} is full.", "Make room; nothing of this change was stored."),
    (
        "readonly database",
        "The database {where} cannot be written.",
        "Check the permissions of the file and its folder.",
    ),
    ("unable to open", "The database {where} cannot be opened.", "Check that its folder exists and can be written."),
    (
        "disk I/O error",
        "The disk of {where} reports an error.",
        "Check free space and the disk; network disks are unfit.",
    ),
    (
        "malformed",
        "The database {where} is damaged.",
        RESTORE,
    ),
    (
        "not a database",
        "The file {where} is not a database of the studio, or its beginning is damaged.",
        RESTORE,
    ),
)
