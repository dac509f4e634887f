import time

import numpy as np
import pytest

from storage import Database, MissingError
from storage.errors import ConflictError
from storage.models import RunDataset, Score, Series
from storage.queries import attempts, jobs, logs, routing, runs, scores, series
from storage.types import now, setting_hash


def spec(seed: int = 0, method: str = "lora", **more: object) -> dict:
    return {"tasks": [{"dataset": "toys", "task": "a"}], "method": {"name": method}, "seed": seed, **more}


def score(task: str = "a", value: float = 0.5, **more: object) -> dict:
    fields = {"dataset": "d", "split": "test", "model": "adapter", "metric": "accuracy", "key": "k"}
    return {"task": task, "value": value, "stderr": 0.1, "rows": 9, "primary": True, "chance": 0.5, **fields, **more}


def test_seeds_names_and_notes_do_not_change_the_setting() -> None:
    same = {setting_hash(spec(seed, name=f"n{seed}", tags=[str(seed)], notes=str(seed))) for seed in range(3)}
    assert len(same) == 1
    assert setting_hash(spec(method="mosld")) not in same


def test_lists_are_paged_and_filtered(database: Database) -> None:
    with database.write() as session:
        for number in range(30):
            method = "mosld" if number % 3 == 0 else "lora"
            tags = ["even"] if number % 2 == 0 else ["odd", "50%"]
            runs.add(session, spec=spec(number, method, name=f"trial {number}", tags=tags), datasets=[f"d{number % 5}"])
        jobs.add(session, run="run-7", kind="train")
        jobs.claim(session, requests=["auto"])
    with database.session() as session:
        first = runs.page(session, limit=10)
        assert [r.number for r in first.rows] == list(range(30, 20, -1)) and first.total == 30
        assert runs.page(session, limit=10, offset=25).rows[-1].id == "run-1"
        assert runs.page(session, method="mosld").total == 10
        assert runs.page(session, tag="even").total == 15
        assert runs.page(session, dataset="d3").total == 6
        assert [r.id for r in runs.page(session, text="TRIAL 29").rows] == ["run-30"]
        assert runs.page(session, text="%").total == 0, "signs of LIKE are plain text"
        (working,) = runs.page(session, state=["starting", "running"]).rows
        assert working.id == "run-7" and working.job["name"] == "train"
        assert runs.page(session, setting=first.rows[1].setting).total == 20
        assert runs.tags(session) == {"even": 15, "odd": 15, "50%": 15}
        assert runs.counts(session) == {"queued": 29, "starting": 1}
        assert runs.methods(session) == ["lora", "mosld"]


def test_a_run_knows_its_parent_and_what_people_wrote(database: Database) -> None:
    with database.write() as session:
        first, _ = runs.add(session, spec=spec(notes="old", tags=["x"]))
        second, _ = runs.add(session, spec=spec(1), parent=first.id, lineage="clone")
        changed = runs.update(session, run=first.id, name="better", notes="new", tags=["y", "z", "y"])
    assert (second.parent, second.lineage, second.name) == ("run-1", "clone", "run-2")
    assert (changed.name, changed.notes, changed.tags) == ("better", "new", ["y", "z"])
    with database.session() as session, pytest.raises(MissingError, match="run-99"):
        runs.get(session, run="run-99")


def test_deleting_a_run_takes_all_of_it_and_never_its_number(database: Database) -> None:
    with database.write() as session:
        run, _ = runs.add(session, spec=spec(tags=["t"]), datasets=["d"])
        job = jobs.add(session, run=run.id, kind="train")
        series.append(session, run_id=run.number, job_id=job.id, name="loss", steps=[1], values=[1.0])
        scores.put(session, run_id=run.number, job_id=job.id, **score())
        jobs.claim(session, requests=["auto"])
        with pytest.raises(ConflictError, match="still at work"):
            runs.remove(session, run=run.id)
        jobs.end(session, job=job.id, state="done")
        assert runs.remove(session, run=run.id) == "run-1"
    with database.write() as session:
        for table in (Series, Score, RunDataset):
            assert session.query(table).count() == 0
        assert runs.add(session, spec=spec())[0].id == "run-2"


def test_a_trained_run_stays_done_when_its_second_scoring_fails(database: Database) -> None:
    with database.write() as session:
        run, _ = runs.add(session, spec=spec())
        train = jobs.add(session, run=run.id, kind="train")
        jobs.end(session, job=train.id, state="done")
        again = jobs.add(session, run=run.id, kind="score")
        jobs.end(session, job=again.id, state="failed", failure="data", message="m")
        assert runs.get(session, run=run.id).state == "done"
        alone, _ = runs.add(session, spec=spec())
        only = jobs.add(session, run=alone.id, kind="score")
        jobs.end(session, job=only.id, state="failed")
        assert runs.get(session, run=alone.id).state == "failed"


def test_the_queue_can_be_reordered(database: Database) -> None:
    with database.write() as session:
        first, second, third = (runs.add(session, spec=spec())[0].id for _ in range(3))
        urgent = jobs.add(session, run=first, kind="score", priority=1).id
        one, two, three, last = (jobs.add(session, run=run, kind="score").id for run in (first, second, third, third))
        jobs.move_to_front(session, run=third)
        assert [job.id for job in jobs.queue(session)] == [three, last, urgent, one, two]
        assert [job.ahead for job in jobs.queue(session)] == [0, 1, 2, 3, 4]
        jobs.end(session, job=two, state="done")
        with pytest.raises(ConflictError, match="waits for nothing"):
            jobs.move_to_front(session, run=second)


def test_what_cannot_be_resumed_says_so(database: Database) -> None:
    with database.write() as session:
        run, _ = runs.add(session, spec=spec())
        job = jobs.add(session, run=run.id, kind="train", request_id="r")
        assert jobs.add(session, run=run.id, kind="train", request_id="r").id == job.id
        with pytest.raises(ConflictError, match="queued"):
            jobs.resume(session, job=job.id)
        jobs.end(session, job=job.id, state="done")
        assert jobs.cancel(session, job=job.id).state == "done"
        with pytest.raises(ConflictError, match="nothing to resume"):
            jobs.resume_run(session, run=run.id)


def test_cancelling_a_run_cancels_its_waiting_jobs_as_asked(database: Database) -> None:
    with database.write() as session:
        run, _ = runs.add(session, spec=spec())
        train = jobs.add(session, run=run.id, kind="train")
        jobs.add(session, run=run.id, kind="score", needs=[train.id])
        assert {job.state for job in jobs.cancel_run(session, run=run.id)} == {"cancelled"}
        assert all(job.failure is None for job in jobs.of_run(session, run=run.id))


def test_a_lease_is_freed_with_its_job(database: Database) -> None:
    with database.write() as session:
        run, _ = runs.add(session, spec=spec())
        job = jobs.add(session, run=run.id, kind="train")
        jobs.claim(session, requests=["auto"])
        attempt = attempts.begin(session, job=job.id, token="t", device="cuda:0", share=1.0, host="h")
        assert attempts.leased_shares(session) == {"cuda:0": 1.0}
        assert jobs.get(session, job=job.id).leased == "cuda:0"
        attempts.settle(session, attempt=attempt.id, outcome="lost")
        assert attempts.leased_shares(session) == {}


def test_the_newest_score_counts_and_all_are_kept(database: Database) -> None:
    with database.write() as session:
        run, _ = runs.add(session, spec=spec())
        first, second = (jobs.add(session, run=run.id, kind=kind).id for kind in ("train", "score"))
        for job, value in ((first, 0.1), (first, 0.2), (second, 0.3)):
            scores.put(session, run_id=run.number, job_id=job, **score(value=value))
        scores.put(session, run_id=run.number, job_id=first, **score(model="base", value=float("nan")))
    with database.session() as session:
        found = scores.of_run(session, run="run-1")
        assert [(s.model, s.value, s.job) for s in found] == [("adapter", 0.3, "score"), ("base", None, "train")]
        assert [s.value for s in scores.of_run(session, run="run-1", model="adapter", every=True)] == [0.2, 0.3]


def test_routing_arrays_come_back_with_shape_axes_and_nan(database: Database) -> None:
    array = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    array[1, 2, 3] = np.nan
    with database.write() as session:
        run, _ = runs.add(session, spec=spec())
        job = jobs.add(session, run=run.id, kind="train").id
        for step in (10, 20):
            fields = {"moment": f"step-{step}", "step": step, "split": "validation", "file": f"{step}.npz"}
            stored = {"axes": {"tasks": ["a"]}, "arrays": {"mean_gate": array + step, "count": array[0, 0]}}
            routing.add(session, run_id=run.number, job_id=job, **fields, **stored)
            routing.add(session, run_id=run.number, job_id=job, **fields, **stored)
    with database.session() as session:
        moments = routing.moments(session, run="run-1")
        assert [m.moment for m in moments] == ["step-10", "step-20"]
        axes, arrays = routing.read(session, snapshot=moments[1].id)
    assert axes == {"tasks": ["a"]} and arrays["count"].shape == (4,)
    np.testing.assert_array_equal(arrays["mean_gate"], (array + 20).astype(np.float32))
    with database.write() as session:
        routing.void_after(session, job_id=job, step=10)
        assert [m.step for m in routing.moments(session, run="run-1")] == [10]


def test_a_flood_of_messages_is_bounded_but_alarms_are_kept(database: Database) -> None:
    with database.write() as session:
        run, _ = runs.add(session, spec=spec())
        job = jobs.add(session, run=run.id, kind="train").id
        flood = [logs.NewLine(1, now(), "info", f"line {n}") for n in range(logs.LINES_PER_JOB + 50)]
        alarm = logs.NewLine(1, now(), "warning", "x" * 9000, name="nan", step=3)
        logs.extend(session, run_id=run.number, job_id=job, lines=[*flood, alarm])
    with database.session() as session:
        newest = logs.of_run(session, run="run-1", limit=2)
        assert [line.message[:9] for line in newest] == ["line 4999", "xxxxxxxxx"]
        assert logs.of_run(session, run="run-1", after=newest[-1].id) == []
        assert [(a.name, a.step, len(a.message)) for a in logs.alarms(session, run="run-1")] == [("nan", 3, 4000)]


def test_five_hundred_runs_are_listed_quickly(database: Database) -> None:
    tasks = ["a", "b", "c", "d"]
    with database.write() as session:
        for seed in range(500):
            run, _ = runs.add(session, spec=spec(seed, tags=["t", str(seed % 7)], notes="n" * 500))
            job = jobs.add(session, run=run.id, kind="train")
            session.add_all(Score(run_id=run.number, job_id=job.id, **score(task)) for task in tasks)
    with database.session() as session:
        runs.page(session)
        began = time.perf_counter()
        page = runs.page(session, limit=50, offset=200)
        listed = time.perf_counter() - began
        began = time.perf_counter()
        found = scores.of_runs(session, runs=[run.id for run in page.rows], primary_only=True)
        scored = time.perf_counter() - began
    assert len(page.rows) == 50 and page.total == 500 and len(found) == 200
    assert listed < 0.1 and scored < 0.2, (listed, scored)


def test_lists_ask_a_fixed_number_of_questions(database: Database) -> None:
    from sqlalchemy import event

    def questions(limit: int) -> int:
        asked: list[str] = []
        listener = lambda *args: asked.append(args[2])  # noqa: E731
        event.listen(database.engine, "before_cursor_execute", listener)
        with database.session() as session:
            rows = runs.page(session, limit=limit).rows
            scores.of_runs(session, runs=[run.id for run in rows])
            jobs.queue(session, limit=limit)
        event.remove(database.engine, "before_cursor_execute", listener)
        return len(asked)

    with database.write() as session:
        for seed in range(20):
            run, _ = runs.add(session, spec=spec(seed))
            jobs.add(session, run=run.id, kind="train")
    assert questions(2) == questions(20)
