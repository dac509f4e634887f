import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from storage import Database
from storage.queries import jobs, runs, series
from storage.queries.series import CHUNK, Curve


@pytest.fixture
def job(database: Database) -> tuple[int, int, str]:
    """Run number, job number and run id."""
    with database.write() as session:
        run, _ = runs.add(session, spec={"tasks": []})
        return run.number, jobs.add(session, run=run.id, kind="train").id, run.id


def append(database: Database, job: tuple[int, int, str], steps: list[int], name: str = "loss") -> None:
    with database.write() as session:
        series.append(session, run_id=job[0], job_id=job[1], name=name, steps=steps, values=[s / 2 for s in steps])


def read(database: Database, job: tuple[int, int, str], name: str = "loss", **options: int) -> list[int]:
    with database.session() as session:
        found = series.read(session, run=job[2], names=[name], **options).get(name)
    if found is None:
        return []
    assert found.values.tolist() == [s / 2 for s in found.steps.tolist()]
    return found.steps.tolist()


def test_points_come_back_as_they_went(database: Database, job: tuple[int, int, str]) -> None:
    append(database, job, [1, 2])
    append(database, job, [3])
    append(database, job, [10, 20], name="validation")
    assert read(database, job) == [1, 2, 3] and read(database, job, "validation") == [10, 20]
    with database.session() as session:
        found = {one.name: (one.count, one.last_step, one.last_value) for one in series.names(session, run=job[2])}
    assert found == {"loss": (3, 3, 1.5), "validation": (2, 20, 10.0)}


def test_no_step_counts_twice(database: Database, job: tuple[int, int, str]) -> None:
    append(database, job, [1, 2, 2, 3])
    append(database, job, [2, 3, 4, 4, 5])
    assert read(database, job) == [1, 2, 3, 4, 5]


@given(
    parts=st.lists(st.integers(1, 3 * CHUNK // 2), min_size=1, max_size=5),
    cut=st.integers(0, 6 * CHUNK),
    more=st.integers(0, CHUNK),
)
@profile(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncation_keeps_exactly_what_is_not_past_the_step(
    database: Database, job: tuple[int, int, str], parts: list[int], cut: int, more: int
) -> None:
    with database.write() as session:
        series.truncate(session, job_id=job[1], step=0)
    last = 0
    for part in parts:
        append(database, job, list(range(last + 1, last + part + 1)))
        last += part
    with database.write() as session:
        series.truncate(session, job_id=job[1], step=cut)
    kept = min(last, cut)
    assert read(database, job) == list(range(1, kept + 1))
    append(database, job, list(range(kept + 1, kept + more + 1)))
    assert read(database, job) == list(range(1, kept + more + 1))
    with database.session() as session:
        assert sum(one.count for one in series.names(session, run=job[2])) == kept + more


def test_only_newer_points_on_request(database: Database, job: tuple[int, int, str]) -> None:
    append(database, job, list(range(1, 3001)))
    assert read(database, job, after_step=2990) == list(range(2991, 3001))
    assert read(database, job, after_step=3000) == []


def test_not_a_number_is_kept_in_the_curve(database: Database, job: tuple[int, int, str]) -> None:
    nan = float("nan")
    with database.write() as session:
        series.append(session, run_id=job[0], job_id=job[1], name="loss", steps=[1, 2], values=[1.0, nan])
    with database.session() as session:
        curve = series.read(session, run=job[2])["loss"]
        (name,) = series.names(session, run=job[2])
    assert np.isnan(curve.values[1]) and name.last_value is None


def test_thinning_keeps_ends_and_spikes() -> None:
    values = np.zeros(10_000, np.float32)
    values[1234], values[7777] = 9, -9
    thin = series.thin(Curve(np.arange(10_000, dtype=np.int32), values), 200)
    assert len(thin.steps) <= 200 and {0, 1234, 7777, 9999} <= set(thin.steps.tolist())
    assert (np.diff(thin.steps) > 0).all()


def test_thinning_survives_curves_of_nan() -> None:
    nothing = np.full(1000, np.nan, np.float32)
    assert 2 <= len(series.thin(Curve(np.arange(1000, dtype=np.int32), nothing), 50).steps) <= 50


def test_fifty_thousand_points_are_quick(database: Database, job: tuple[int, int, str]) -> None:
    began = time.perf_counter()
    for start in range(1, 50_001, 500):
        append(database, job, list(range(start, start + 500)))
    appended = time.perf_counter() - began
    began = time.perf_counter()
    assert read(database, job) == list(range(1, 50_001))
    whole = time.perf_counter() - began
    began = time.perf_counter()
    with database.session() as session:
        assert len(series.read(session, run=job[2], max_points=1000)["loss"].steps) <= 1000
    thinned = time.perf_counter() - began
    assert appended < 5 and whole < 0.5 and thinned < 0.3, (appended, whole, thinned)


def test_several_runs_at_once(database: Database, job: tuple[int, int, str]) -> None:
    with database.write() as session:
        other, _ = runs.add(session, spec={"tasks": []})
    append(database, job, [1, 2])
    with database.session() as session:
        found = series.read_many(session, runs=[job[2], other.id], names=["loss"])
    assert found[job[2]]["loss"].steps.tolist() == [1, 2] and found[other.id] == {}
