"""What the pages of runs look at every second: lists, alarms, messages and curves, each from indexed rows."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Hashable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core import views
from core.errors import NotFoundError
from core.home import Home, RunFolder, whole
from core.jobs.worker_log import last_lines
from core.records import Records
from core.shared import Shared

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from storage.changes import Changes, Version
    from storage.queries.series import Curve

LOG_LINES = 200
OUTPUT_LINES = 40


class Watch:
    """One run or many, as they stand now; ``Studio.watch`` is one."""

    def __init__(self, home: Home, records: Records) -> None:
        self._home, self._records = home, records
        self.shared = Shared()

    @cached_property
    def changes(self) -> Changes:
        """Whether the database was written to since one last looked."""
        from storage.changes import Changes

        return Changes(self._records.database)

    def stamp(self, run: str, version: Version) -> Hashable:
        """Another one whenever a page of the run may look otherwise; one that rests changes with its own rows alone."""
        from storage.queries import runs

        def resting() -> tuple[Any, ...] | None:
            with self._records.read() as session:
                return runs.resting(session, run=run)

        return self.shared.of(("stamp", run), version, resting) or version, printed(self._home.run(run))

    def listing(
        self,
        *,
        search: str = "",
        limit: int = 25,
        offset: int = 0,
        by_setting: bool = False,
        **filters: str | Sequence[str] | None,
    ) -> dict[str, Any]:
        """``rows`` (newest first; each with ``ahead`` in the queue and ``device``), ``total`` of the filter, ``counts``
        of all runs by state, ``waiting`` jobs and ``devices``: device -> runs that hold it.

        ``filters``: state, method, tag, dataset, setting. ``by_setting``: a page counts settings, with all their seeds.
        """
        from storage.queries import runs

        with self._records.read() as session:
            find = runs.page_of_settings if by_setting else runs.page
            page = find(session, text=search or None, limit=limit, offset=offset, **filters)
            ahead, devices, waiting = _queue(session)
            counts = runs.counts(session)
        holds = {run: device for device, own in devices.items() for run in own}
        rows = [views.run(row) | {"ahead": ahead.get(row.id), "device": holds.get(row.id)} for row in page.rows]
        return {"rows": rows, "total": page.total, "counts": counts, "waiting": waiting, "devices": devices}

    def menu(self, *, state: str | None = None, limit: int) -> list[dict[str, Any]]:
        """Newest runs to choose from, read once for all tabs until something is written."""
        return self.shared.of(
            ("menu", state, limit), self.changes.now(), lambda: self.listing(state=state, limit=limit)["rows"]
        )

    def several(self, runs: Sequence[str]) -> list[dict[str, Any]]:
        """The runs with these ids and their specs, in this order; NotFoundError names those that are missing."""
        from storage.queries import runs as stored

        with self._records.read() as session:
            return [views.run(row) | {"spec": row.spec} for row in stored.many(session, runs=runs)]

    def facets(self) -> dict[str, list[str]]:
        """What runs can be filtered by: ``methods`` and ``tags`` that any of them has."""
        from storage.queries import runs

        with self._records.read() as session:
            return {"methods": runs.methods(session), "tags": list(runs.tags(session))}

    def messages(self, run: str) -> dict[str, Any]:
        """``alarms`` and the newest ``lines`` that its jobs said, and the end of what the newest worker printed."""
        from storage.queries import attempts, logs

        with self._records.read() as session:
            alarms, lines = logs.alarms(session, run=run), logs.of_run(session, run=run, limit=LOG_LINES)
            newest = attempts.newest(session, run=run)
        return {
            "alarms": [{"at": one.at, "name": one.name, "step": one.step, "message": one.message} for one in alarms],
            "lines": [{"at": one.at, "level": one.level, "job": one.job, "message": one.message} for one in lines],
            "output": output(self._home.run(run), newest),
        }

    def curve_names(self, run: str) -> dict[str, int]:
        """Curve -> its newest step."""
        from storage.queries import series

        with self._records.read() as session:
            return {one.name: one.last_step or 0 for one in series.names(session, run=run)}

    def compared_curves(self, runs: Sequence[str], name: str, max_points: int = 400) -> dict[str, list[list[float]]]:
        """One curve of several runs: run -> points; a run without it is left out."""
        from storage.queries import series

        with self._records.read() as session:
            found = series.read_many(session, runs=runs, names=[name], max_points=max_points)
        return {run: _points(own[name]) for run, own in found.items() if name in own}

    def run_curves(self, run: str, names: Sequence[str], max_points: int = 400) -> dict[str, list[list[float]]]:
        """Curves of one run: name -> points, thinned so that spikes stay."""
        from storage.queries import series

        with self._records.read() as session:
            found = series.read(session, run=run, names=names, max_points=max_points)
        return {name: _points(found[name]) for name in names if name in found}

    def size(self, run: str) -> int:
        """Bytes that the run's folder takes."""
        root = self._home.run(self._records.find(run).id).root
        return sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())

    def bundle(self, run: str, target: Path) -> Path:
        """A zip of what explains a run to someone else: its settings, events and output; no weights, no rows."""
        folder = self._home.run(self._records.find(run).id)
        files = [folder.spec, folder.events, *sorted(folder.logs.glob("*.log"))]
        found = [path for path in files if path.is_file()]
        if not found:
            raise NotFoundError(f"{folder.root.name} has left no files yet.", "Wait until it has started.")
        return _zip(target, folder.root, found)

    def adapter(self, run: str, target: Path) -> Path:
        """The exported adapter of a run as a zip; made in a child process, since it needs torch."""
        from core import transfer

        with tempfile.TemporaryDirectory() as room:
            folder = transfer.export(self._home.run(run), Path(room) / f"{run}-adapter")
            return _zip(target, folder, sorted(folder.rglob("*")))


def _queue(session: Session) -> tuple[dict[str, int], dict[str, list[str]], int]:
    from storage.queries import attempts, jobs

    ahead: dict[str, int] = {}
    queue = [job for job in jobs.queue(session, limit=500) if job.state == "queued"]
    for place, job in enumerate(queue):
        ahead.setdefault(job.run, place)
    devices: dict[str, list[str]] = {}
    for lease in attempts.leases(session):
        devices.setdefault(lease["device"], []).append(lease["run"])
    return ahead, devices, len(queue)


def printed(folder: RunFolder) -> tuple[int, int]:
    """Time and length of the newest output of a worker; another one when it printed more."""
    try:
        with os.scandir(folder.logs) as files:
            return max((file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    except (OSError, ValueError):
        return (0, 0)


def output(folder: RunFolder, newest: str = "", lines: int = OUTPUT_LINES) -> list[str]:
    """The end of what the worker of an attempt (``train-2``) printed."""
    path = newest_log(folder, newest)
    return [] if path is None else last_lines(path, lines)


def newest_log(folder: RunFolder, newest: str) -> Path | None:
    """The log of an attempt; where it left none (a run that was trained elsewhere), the one written last."""
    path = folder.logs / f"{newest}.log"
    if newest and path.is_file():
        return path
    return max(folder.logs.glob("*.log"), key=lambda path: path.stat().st_mtime, default=None)


def _zip(target: Path, root: Path, files: Sequence[Path]) -> Path:
    with whole(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            if path.is_file() and not path.is_symlink():
                archive.write(path, Path(root.name) / path.relative_to(root))
    return target


def _points(curve: Curve) -> list[list[float]]:
    """Steps and values without what is not a number, short enough to be sent every second."""
    kept = np.isfinite(curve.values)
    return [
        [int(step), float(f"{value:.5g}")]
        for step, value in zip(curve.steps[kept].tolist(), curve.values[kept].tolist(), strict=True)
    ]
