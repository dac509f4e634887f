"""Curves: chunks of float32 points, so that 50,000 points are some fifty small rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.orm import Session

from storage.models import Run, Series, SeriesChunk
from storage.queries import runs as run_queries

CHUNK = 1024
STEPS = np.dtype("<i4")
VALUES = np.dtype("<f4")


# Written once: building a query costs more than SQLite takes to answer it.
_OF_JOB = select(Series.id, Series.name, Series.count, Series.last_step).where(Series.job_id == bindparam("job"))
_IDS = bindparam("ids", expanding=True)
_LAST = select(func.max(SeriesChunk.first_step)).where(SeriesChunk.series_id == Series.id).scalar_subquery()
_LAST_CHUNKS = (
    select(SeriesChunk.series_id, SeriesChunk.first_step, SeriesChunk.count, SeriesChunk.steps, SeriesChunk.values)
    .join(Series, Series.id == SeriesChunk.series_id)
    .where(Series.id.in_(_IDS), SeriesChunk.first_step == _LAST.correlate(Series))
)


@dataclass(frozen=True)
class Curve:
    """``steps`` (n,) int32, strictly rising; ``values`` (n,) float32, NaN where the training said NaN."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class CurveName:
    name: str
    count: int
    last_step: int | None
    last_value: float | None


def append(
    session: Session, *, run_id: int, job_id: int, name: str, steps: Sequence[int], values: Sequence[float]
) -> int:
    """Add points behind a job's curve; returns how many. Points at or before its last step are left out."""
    return extend(session, run_id=run_id, job_id=job_id, points={name: (steps, values)})


def extend(
    session: Session, *, run_id: int, job_id: int, points: Mapping[str, tuple[Sequence[int], Sequence[float]]]
) -> int:
    """As ``append`` for several curves of a job, in as many statements as for one: a step says a dozen values."""
    known = {one.name: one for one in session.execute(_OF_JOB, {"job": job_id})}
    new = {name: own for name, own in points.items() if name not in known and len(own[0])}
    add_whole(session, run_id=run_id, job_id=job_id, curves={name: _rising(*own, None) for name, own in new.items()})
    later = {name: _rising(*own, known[name].last_step) for name, own in points.items() if name in known}
    later = {name: own for name, own in later.items() if len(own[0])}
    if later:
        _extend_known(session, {known[name].id: (known[name].count, *own) for name, own in later.items()})
    return sum(len(steps) for steps, _ in later.values()) + sum(len(_rising(*own, None)[0]) for own in new.values())


def _extend_known(session: Session, found: Mapping[int, tuple[int, np.ndarray, np.ndarray]]) -> None:
    """Series -> how many points it has, and the steps and values that come behind them."""
    open_chunks = {one.series_id: one for one in session.execute(_LAST_CHUNKS, {"ids": list(found)})}
    grown, fresh, curves = [], [], []
    for series_id, (count, steps, values) in found.items():
        last, taken = open_chunks.get(series_id), 0
        if last is not None and last.count < CHUNK:
            taken = min(CHUNK - last.count, len(steps))
            ends = {"last_step": int(steps[taken - 1]), "count": last.count + taken}
            data = {"steps": last.steps + steps[:taken].tobytes(), "values": last.values + values[:taken].tobytes()}
            grown.append({"series_id": series_id, "first_step": last.first_step, **ends, **data})
        fresh += _chunks(series_id, steps[taken:], values[taken:])
        newest = {"last_step": int(steps[-1]), "last_value": _finite(values[-1])}
        curves.append({"id": series_id, "count": count + len(steps), **newest})
    for statement, rows in ((update(SeriesChunk), grown), (insert(SeriesChunk), fresh), (update(Series), curves)):
        if rows:
            session.execute(statement, rows)


def add_whole(
    session: Session, *, run_id: int, job_id: int, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Store the curves of a job that has none yet: name -> steps and values, the steps strictly rising.

    One statement for each table, so that runs of fifty thousand points are stored by the hundred in seconds.
    """
    made = []
    if not curves:
        return
    for name, (steps, values) in curves.items():
        last = {"last_step": int(steps[-1]), "last_value": _finite(np.float32(values[-1]))}
        made.append({"run_id": run_id, "job_id": job_id, "name": name, "count": len(steps), **last})
    ids = session.scalars(insert(Series).returning(Series.id, sort_by_parameter_order=True), made).all()
    rows = [
        row
        for series_id, (steps, values) in zip(ids, curves.values(), strict=True)
        for row in _chunks(series_id, np.asarray(steps, STEPS), np.asarray(values, VALUES))
    ]
    session.execute(insert(SeriesChunk), rows)


def truncate(session: Session, *, job_id: int, step: int) -> None:
    """Void the points of all of a job's curves past ``step``: an attempt resumed there."""
    # Read anew: points may have been added beside what the session remembers.
    own = select(Series).where(Series.job_id == job_id).execution_options(populate_existing=True)
    for curve in session.scalars(own).all():
        if curve.last_step is None or curve.last_step <= step:
            continue
        of_curve = SeriesChunk.series_id == curve.id
        session.execute(delete(SeriesChunk).where(of_curve, SeriesChunk.first_step > step))
        past = select(SeriesChunk).where(of_curve, SeriesChunk.last_step > step)
        cut = session.scalar(past.execution_options(populate_existing=True))
        if cut is not None:
            kept = int(np.searchsorted(np.frombuffer(cut.steps, STEPS), step, side="right"))
            _fill(cut, cut.steps[: kept * STEPS.itemsize], cut.values[: kept * VALUES.itemsize])
        session.flush()
        counts = session.scalars(select(SeriesChunk.count).where(of_curve)).all()
        last = _last_chunk(session, curve.id)
        curve.count = sum(counts)
        curve.last_step = last.last_step if last is not None else None
        curve.last_value = _finite(np.frombuffer(last.values, VALUES)[-1]) if last is not None else None
    session.flush()


def names(session: Session, *, run: str) -> list[CurveName]:
    """The curves of a run with their newest point, by name."""
    owner = run_queries.row(session, run=run)
    found = session.scalars(select(Series).where(Series.run_id == owner.id).order_by(Series.name, Series.job_id))
    return [CurveName(one.name, one.count, one.last_step, one.last_value) for one in found if one.count]


def read(
    session: Session,
    *,
    run: str,
    names: Sequence[str] | None = None,
    after_step: int | None = None,
    max_points: int | None = None,
) -> dict[str, Curve]:
    """Curves of one run by name; ``after_step`` gives only newer points, ``max_points`` thins (see ``thin``)."""
    owner = run_queries.row(session, run=run)
    found = _read(session, [owner.id], names, after_step, max_points)
    return {name: curve for (_, name), curve in found.items()}


def read_many(
    session: Session, *, runs: Sequence[str], names: Sequence[str], max_points: int | None = None
) -> dict[str, dict[str, Curve]]:
    """Run -> name -> curve, for comparisons; a run without the curve is left out of its inner mapping."""
    ids = dict(session.execute(select(Run.id, Run.slug).where(Run.slug.in_(list(runs)))).tuples().all())
    result: dict[str, dict[str, Curve]] = {run: {} for run in runs}
    for (run_id, name), curve in _read(session, list(ids), names, None, max_points).items():
        result[ids[run_id]][name] = curve
    return result


def thin(curve: Curve, max_points: int) -> Curve:
    """At most ``max_points`` points: the lowest and highest of equal stretches, so that spikes stay visible."""
    count = len(curve.steps)
    if count <= max_points:
        return curve
    stretches = max(1, (max_points - 2) // 2)
    length = -(-count // stretches)
    padded = np.full(stretches * length, np.nan, curve.values.dtype)
    padded[:count] = curve.values
    parts = padded.reshape(stretches, length)
    empty = np.isnan(parts)
    ends = np.where(empty, np.inf, parts).argmin(1), np.where(empty, -np.inf, parts).argmax(1)
    found = (np.arange(stretches) * length + np.array(ends)).ravel()  # of a stretch without numbers its first point
    index = np.unique(np.concatenate(([0, count - 1], found[found < count])))
    return Curve(curve.steps[index], curve.values[index])


def _read(
    session: Session,
    run_ids: Sequence[int],
    names: Sequence[str] | None,
    after_step: int | None,
    max_points: int | None,
) -> dict[tuple[int, str], Curve]:
    query = (
        select(Series.run_id, Series.name, SeriesChunk.steps, SeriesChunk.values)
        .join(SeriesChunk, SeriesChunk.series_id == Series.id)
        .where(Series.run_id.in_(run_ids))
        .order_by(Series.run_id, Series.name, Series.job_id, SeriesChunk.first_step)
    )
    if names is not None:
        query = query.where(Series.name.in_(list(names)))
    if after_step is not None:
        query = query.where(SeriesChunk.last_step > after_step)
    parts: dict[tuple[int, str], tuple[list[bytes], list[bytes]]] = {}
    for run_id, name, steps, values in session.execute(query):
        of_steps, of_values = parts.setdefault((run_id, name), ([], []))
        of_steps.append(steps)
        of_values.append(values)
    curves = {}
    for key, (of_steps, of_values) in parts.items():
        steps, values = np.frombuffer(b"".join(of_steps), STEPS), np.frombuffer(b"".join(of_values), VALUES)
        if after_step is not None:
            newer = steps > after_step
            steps, values = steps[newer], values[newer]
        curve = Curve(steps, values)
        curves[key] = curve if max_points is None else thin(curve, max_points)
    return curves


def _rising(
    steps: Sequence[int] | np.ndarray, values: Sequence[float] | np.ndarray, last: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The points whose step is larger than every step before them."""
    steps, values = np.asarray(steps, STEPS), np.asarray(values, VALUES)
    if not len(steps):
        return steps, values
    floor = np.iinfo(STEPS).min if last is None else last
    before = np.maximum.accumulate(np.concatenate(([floor], steps[:-1])))
    kept = steps > np.maximum(before, floor)
    return steps[kept], values[kept]


def _chunks(series_id: int, steps: np.ndarray, values: np.ndarray) -> Iterator[dict[str, Any]]:
    """Rows of ``SeriesChunk``."""
    for start in range(0, len(steps), CHUNK):
        own, their = steps[start : start + CHUNK], values[start : start + CHUNK]
        ends = {"first_step": int(own[0]), "last_step": int(own[-1]), "count": len(own)}
        yield {"series_id": series_id, **ends, "steps": own.tobytes(), "values": their.tobytes()}


def _last_chunk(session: Session, series_id: int) -> SeriesChunk | None:
    query = select(SeriesChunk).where(SeriesChunk.series_id == series_id).order_by(SeriesChunk.first_step.desc())
    return session.scalar(query.limit(1).execution_options(populate_existing=True))


def _fill(chunk: SeriesChunk, steps: bytes, values: bytes) -> None:
    chunk.steps, chunk.values = steps, values
    chunk.count = len(steps) // STEPS.itemsize
    chunk.last_step = int(np.frombuffer(steps, STEPS)[-1])


def _finite(value: np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None
