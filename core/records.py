"""The studio's database: opened when first needed, its complaints turned into errors that people see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from core import access
from core.errors import ConfigurationError, NotFoundError
from core.home import Home

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from storage import Database
    from storage.queries.runs import RunRow


class Records:
    """Short sessions on the database of one home. The import waits too: training alone needs no database."""

    def __init__(self, home: Home) -> None:
        self._home = home

    @cached_property
    def database(self) -> Database:
        with explained():
            from storage import Database

            return Database(self._home.database_url)

    @contextmanager
    def read(self) -> Iterator[Session]:
        with explained(), self.database.session() as session:
            yield session

    @contextmanager
    def write(self, role: access.Role = "researcher") -> Iterator[Session]:
        """Refused to an actor with less than ``role``: the one place where a viewer's change ends."""
        access.need(role)
        with explained(), self.database.write() as session:
            yield session

    def find(self, name: str) -> RunRow:
        """A run by id (``run-12``, or ``12``) or by a name that only one run has; NotFoundError otherwise."""
        from storage.errors import MissingError
        from storage.queries import runs

        if not isinstance(name, str) or not name:
            raise NotFoundError("No run is named.", "Give an id such as run-3: python app.py runs lists them.")
        with self.read() as session:
            try:
                return runs.get(session, run=f"run-{name}" if name.isdecimal() else name)
            except MissingError:
                named = [row for row in runs.page(session, text=name, limit=20).rows if row.name == name]
            if len(named) == 1:
                return runs.get(session, run=named[0].id)
        if named:
            ids = ", ".join(row.id for row in named)
            raise ConfigurationError(f"Several runs are named {name!r}.", f"Give one of their ids: {ids}.")
        raise NotFoundError(f"There is no run {name!r}.", "List them with: python app.py runs")

    def own(self, name: str) -> RunRow:
        """As ``find``, refused where the run is not the actor's to change."""
        row = self.find(name)
        access.need_own(row.owner, row.id)
        return row

    def describe(self) -> str:
        """Where the database is and which schema it has; opening it migrates it."""
        from sqlalchemy import text

        shown = self.database.url.render_as_string(hide_password=True)
        with self.read() as session:
            revision = session.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return f"{shown}, schema {revision}"

    def close(self) -> None:
        if "database" in self.__dict__:
            self.database.close()


@contextmanager
def explained() -> Iterator[None]:
    """Raise what storage has to say as a StudioError."""
    from storage.errors import MissingError, StorageError

    try:
        yield
    except MissingError as error:
        raise NotFoundError(error.message, error.hint) from error
    except StorageError as error:
        raise ConfigurationError(error.message, error.hint) from error
    except (OverflowError, UnicodeEncodeError) as error:
        raise ConfigurationError(
            f"The database takes no such number or text: {error}.",
            "Give smaller numbers, and texts of whole characters.",
        ) from error
