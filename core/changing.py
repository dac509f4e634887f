"""What changes or deletes something that belongs to somebody: refused to those who neither own it nor are admins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from core import access, views
from core.errors import AlarmError, ConfigurationError
from core.schema import RunSpec

if TYPE_CHECKING:
    from core.data.store import DatasetStore
    from core.home import Home
    from core.records import Records
    from core.users import Users


class Changing:
    """The part of ``Studio`` that changes runs and data sets which are there already, and the users."""

    home: Home
    records: Records
    store: DatasetStore
    run: Callable[[str], dict[str, Any]]
    dispatcher: Callable[..., dict[str, Any]]

    @cached_property
    def users(self) -> Users:
        """Who may sign in and as what; a home without users asks nobody."""
        from core.users import Users

        return Users(self.records, self.store)

    def score(
        self,
        run: str,
        *,
        datasets: Sequence[str] | None = None,
        split: str = "test",
        base: bool = True,
        priority: int = 0,
        request_id: str | None = None,
    ) -> str:
        """Queue scoring of a finished run on its own tasks or on ``NAME[:TASK]``; returns the job's name."""
        from core import fitting, planning
        from storage.queries import jobs

        row = self.records.own(run)
        spec = RunSpec.parse(row.spec)
        arguments = planning.scoring(row.id, spec, self.store, datasets, split, base)
        fitting.require_loaded(spec.model, spec.device, self.home.cache, f"Scoring {row.id}")
        with self.records.write() as session:
            job = jobs.add(
                session,
                run=row.id,
                kind="score",
                arguments=arguments,
                device=spec.device,
                priority=priority,
                request_id=request_id,
            )
        self.dispatcher("start")
        return job.name

    def annotate(
        self, run: str, *, name: str | None = None, notes: str | None = None, tags: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Change what people wrote about a run, within the bounds that a new run has."""
        from storage.queries import runs

        row = self.records.own(run)
        given = {"name": name, "notes": notes, "tags": None if tags is None else list(tags)}
        RunSpec.parse({"origin": row.id} | {key: value for key, value in given.items() if value is not None})
        with self.records.write() as session:
            return views.run(runs.update(session, run=row.id, name=name, notes=notes, tags=tags))

    def cancel(self, run: str) -> dict[str, Any]:
        """Cancel every job of a run that waits or works; one that has ended stays as it is."""
        from storage.queries import jobs

        row = self.records.own(run)
        with self.records.write() as session:
            jobs.cancel_run(session, run=row.id)
        self.dispatcher("start")  # a dispatcher that died could not end the worker
        return self.run(row.id)

    def move_to_front(self, run: str) -> dict[str, Any]:
        """Let a run that waits start next, before everything else in the queue."""
        from storage.queries import jobs

        row = self.records.own(run)
        with self.records.write() as session:
            jobs.move_to_front(session, run=row.id)
        return self.run(row.id)

    def resume(self, run: str) -> dict[str, Any]:
        from storage.queries import jobs

        row = self.records.own(run)
        with self.records.write() as session:
            jobs.resume_run(session, run=row.id)
        self.dispatcher("start")
        return self.run(row.id)

    def go_on(self, run: str) -> dict[str, Any]:
        """Answer a run's alarms: one that stopped at them is resumed and goes on past them, one that works goes on."""
        from storage.queries import jobs, runs

        row = self.records.own(run)
        with self.records.write() as session:
            runs.answer_alarms(session, run=row.id)
            for job in jobs.of_run(session, run=row.id):
                if job.state == "failed" and job.failure == AlarmError.kind:
                    jobs.resume(session, job=job.id)
        self.dispatcher("start")
        return self.run(row.id)

    def delete(self, run: str) -> None:
        """Remove a run from the database, then its folder; refused while it works."""
        from core import transfer

        transfer.delete_run(self.records.own(run).id, self.home, self.records)

    def delete_dataset(self, name: str) -> None:
        """Refused while runs were trained or scored on it."""
        from storage.queries import runs

        info = self.store.find(name)
        access.need_own(info.owner, info.name)
        with self.records.read() as session:
            users = runs.using_dataset(session, dataset=info.id)
        if users:
            raise ConfigurationError(f"{info.name} is used by {', '.join(users[:5])}.", "Delete those runs first.")
        self.store.delete(info.id)
