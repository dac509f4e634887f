"""Real dispatchers and real workers: what a job becomes when nothing goes wrong."""

import time

import pytest


def test_a_job_runs_and_everything_is_in_the_database(house, expected_curve) -> None:
    job = house.submit(steps=12)
    house.dispatcher()
    done = house.until(job, "done", "failed")
    assert (done.state, done.step, done.total, done.phase) == ("done", 12, 12, "training")
    assert house.curve(job) == expected_curve(12)
    (attempt,) = house.attempts(job)
    assert (attempt.outcome, attempt.exit_code, attempt.versions) == ("done", 0, {"worker": "1"})
    assert house.leases() == [] and house.survivors() == []
    from storage.queries import routing, runs, scores

    with house.database.session() as session:
        run = runs.get(session, run=job.run)
        assert (run.state, run.trainable_parameters, run.total_parameters) == ("done", 10, 100)
        assert run.started and run.finished
        (score,) = scores.of_run(session, run=job.run)
        assert (score.value, score.stderr, score.predictions) == (0.5, 0.1, "a.jsonl")
        moments = routing.moments(session, run=job.run)
        assert [m.step for m in moments] == [5, 10]
        axes, arrays = routing.read(session, snapshot=moments[1].id)
        assert axes == {"tasks": ["a", "b"]} and arrays["mean_gate"].tolist() == [[10.0] * 3] * 2


def test_priorities_first_then_the_order_of_submission(house) -> None:
    low = house.submit(steps=2)
    first = house.submit(steps=2, priority=5)
    second = house.submit(steps=2, priority=5)
    house.dispatcher()
    for job in (low, first, second):
        house.until(job, "done")
    order = sorted((low, first, second), key=lambda job: house.attempts(job)[0].created)
    assert [job.id for job in order] == [first.id, second.id, low.id]


def test_one_job_for_each_device(house) -> None:
    both = [house.submit(steps=400, hold={"1": 2}) for _ in range(2)]
    third = house.submit(steps=2)
    house.dispatcher(slots=2)
    for job in both:
        house.until(job, "running")
    assert house.job(third).state == "queued" and house.job(third).ahead == 0
    assert sorted(lease["share"] for lease in house.leases()) == [0.5, 0.5]


def test_a_failed_job_blocks_nobody_and_says_why(house) -> None:
    bad = house.submit(steps=5, fail_at=2)
    silent = house.submit(steps=5, exit_at=2, exit_code=7)
    good = house.submit(steps=3)
    house.dispatcher()
    house.until(good, "done")
    failed = house.job(bad)
    assert (failed.state, failed.failure, failed.message, failed.hint) == (
        "failed",
        "data",
        "Row 3 is empty.",
        "Fill it.",
    )
    assert failed.tail.endswith("row 3")
    left = house.job(silent)
    assert (left.state, left.failure) == ("failed", "internal")
    assert "exit code 7" in left.message and "about to leave" in left.tail
    assert house.leases() == []


def test_a_failed_job_resumes_from_its_checkpoint(house, expected_curve) -> None:
    job = house.submit(steps=12, fail_at=8)
    house.dispatcher()
    house.until(job, "failed")
    from storage.queries import jobs

    with house.database.write() as session:
        jobs.resume(session, job=job.id)
    done = house.until(job, "done")
    assert done.failure is None and done.message is None
    assert house.curve(job) == expected_curve(12)
    assert [a.resumed_from for a in house.attempts(job)] == [0, 5]


def test_what_needs_a_failed_job_is_cancelled_and_comes_back_with_it(house) -> None:
    from storage.queries import jobs

    train = house.submit(steps=6, fail_at=2)
    with house.database.write() as session:
        score = jobs.add(session, run=train.run, kind="score", arguments={"steps": 2}, needs=[train.id])
        after = jobs.add(session, run=train.run, kind="score", arguments={"steps": 2}, needs=[score.id])
    assert (score.name, after.name) == ("score", "score-2")
    house.dispatcher()
    house.until(after, "cancelled")
    assert house.job(score).failure == "dependency" and "train" in house.job(score).message
    with house.database.write() as session:
        jobs.resume(session, job=train.id)
    house.until(after, "done")
    ends = [house.job(job).finished for job in (train, score, after)]
    assert ends == sorted(ends)


def test_a_wish_that_this_machine_cannot_grant_is_refused(house) -> None:
    job = house.submit(device="cuda:3")
    other = house.submit(steps=2)
    house.dispatcher()
    refused = house.until(job, "failed")
    assert refused.failure == "configuration" and "cuda:3" in refused.message and "cpu" in refused.message
    house.until(other, "done")


def test_a_worker_that_prints_megabytes_is_not_held_up(house) -> None:
    job = house.submit(steps=3, print_mib=8)
    house.dispatcher()
    house.until(job, "done")
    log = house.home.run(job.run).logs / "train-1.log"
    assert log.stat().st_size > 8 << 20


def test_a_worker_that_is_done_but_does_not_leave_is_ended(house) -> None:
    job = house.submit(steps=3, linger=600)
    house.dispatcher()
    assert house.until(job, "done").state == "done"
    assert house.survivors() == [] and house.leases() == []


def test_children_left_behind_by_a_finished_worker_are_ended(house) -> None:
    job = house.submit(steps=3, children=2, runaway=True)
    house.dispatcher()
    house.until(job, "done")
    assert house.survivors() == []


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"children": 2},
        {"heed_cancel": False},
        {"heed_cancel": False, "ignore_term": True, "children": 1, "runaway": True},
    ],
    ids=["polite", "with children", "deaf to the flag", "deaf to TERM with runaway grandchild"],
)
def test_cancelling_leaves_nothing_alive(house, wish) -> None:
    job = house.submit(steps=5000, pause=0.01, **wish)
    follower = house.submit(steps=2)
    house.dispatcher()
    house.until_step(job, 3)
    from storage.queries import jobs

    with house.database.write() as session:
        assert jobs.cancel(session, job=job.id).state == "cancelling"
    house.until(job, "cancelled")
    house.until(follower, "done")
    assert house.survivors() == [] and house.leases() == []
    assert house.attempts(job)[-1].outcome == "cancelled"


def test_a_waiting_job_is_cancelled_at_once_and_never_starts(house) -> None:
    from storage.queries import jobs

    job, other = house.submit(steps=2), house.submit(steps=2)
    with house.database.write() as session:
        assert jobs.cancel(session, job=job.id).state == "cancelled"
    house.dispatcher()
    house.until(other, "done")
    assert house.job(job).state == "cancelled" and house.attempts(job) == []


def test_a_cancelled_job_resumes_where_it_stopped(house, expected_curve) -> None:
    from storage.queries import jobs

    job = house.submit(steps=60, hold={"1": 7})
    house.dispatcher()
    house.until_step(job, 7)
    with house.database.write() as session:
        jobs.cancel_run(session, run=job.run)
    house.until(job, "cancelled")
    with house.database.write() as session:
        jobs.resume_run(session, run=job.run)
    house.until(job, "done")
    assert house.curve(job) == expected_curve(60)
    first, second = house.attempts(job)
    assert second.resumed_from >= 7


def test_a_full_queue_drains(house) -> None:
    all_jobs = [house.submit(steps=1, pause=0.0) for _ in range(12)]
    house.dispatcher(slots=3)
    began = time.monotonic()
    for job in all_jobs:
        house.until(job, "done", seconds=90)
    assert all(len(house.attempts(job)) == 1 for job in all_jobs)
    assert time.monotonic() - began < 90
