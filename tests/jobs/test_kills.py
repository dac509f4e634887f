"""Kill -9 of workers and dispatchers at bad moments: nothing is lost, nothing counts twice."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from core.home import PROJECT
from core.jobs.processes import identify
from core.jobs.service import dispatcher_status, ensure_dispatcher, register_web, stop_dispatcher
from storage import Database
from storage.models import Attempt
from storage.queries import attempts, jobs, runs


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_a_killed_worker_is_lost_and_resumed(house, expected_curve) -> None:
    job = house.submit(steps=40, children=1, hold={"1": 12})
    house.dispatcher()
    house.until_step(job, 12)
    os.kill(house.worker(job), signal.SIGKILL)
    house.until(job, "done")
    assert house.curve(job) == expected_curve(40)
    first, second = house.attempts(job)
    assert (first.outcome, first.exit_code, second.outcome) == ("lost", -9, "done")
    assert second.resumed_from >= 10
    by_attempt = house.curve(job, "attempt")[1]
    assert by_attempt == [1.0] * second.resumed_from + [2.0] * (40 - second.resumed_from)
    assert house.survivors() == [] and house.leases() == []


def test_a_killed_dispatcher_takes_no_worker_with_it(house, expected_curve) -> None:
    job = house.submit(steps=60, hold={"1": 5})
    first = house.dispatcher()
    house.until_step(job, 5)
    pid = house.worker(job)
    kill(first)
    time.sleep(0.4)
    assert identify(pid) is not None
    house.dispatcher()
    house.wait(lambda: dispatcher_status(house.home).alive)
    house.let_go(job)
    house.until(job, "done")
    assert house.curve(job) == expected_curve(60)
    (attempt,) = house.attempts(job)
    assert (attempt.pid, attempt.outcome) == (pid, "done")


def test_a_worker_that_finished_while_no_dispatcher_lived_is_done(house, expected_curve) -> None:
    job = house.submit(steps=30, hold={"1": 3})
    first = house.dispatcher()
    house.until_step(job, 3)
    pid = house.worker(job)
    kill(first)
    house.let_go(job)
    house.wait(lambda: identify(pid) is None)
    assert house.job(job).state == "running"
    house.dispatcher()
    assert house.until(job, "done").step == 30
    assert len(house.attempts(job)) == 1 and house.curve(job) == expected_curve(30)


def test_both_killed(house, expected_curve) -> None:
    job = house.submit(steps=50, hold={"1": 12})
    first = house.dispatcher()
    house.until_step(job, 12)
    pid = house.worker(job)
    kill(first)
    os.kill(pid, signal.SIGKILL)
    house.dispatcher()
    house.until(job, "done")
    assert house.curve(job) == expected_curve(50)
    assert [a.outcome for a in house.attempts(job)] == ["lost", "done"]


def test_a_worker_whose_pid_was_never_noted_is_found_by_its_token(house, expected_curve) -> None:
    job = house.submit(steps=80, hold={"1": 2})
    first = house.dispatcher()
    house.until_step(job, 2)
    pid = house.worker(job)
    kill(first)
    with house.database.write() as session:
        attempt = session.query(Attempt).one()
        attempt.pid = attempt.process_start = attempt.boot = None
    house.dispatcher()
    house.wait(lambda: house.attempts(job)[0].pid == pid)
    house.let_go(job)
    house.until(job, "done")
    assert len(house.attempts(job)) == 1 and house.curve(job) == expected_curve(80)


def test_a_dispatcher_that_died_before_starting_its_worker_costs_nothing(house) -> None:
    job = house.submit(steps=3)
    with house.database.write() as session:
        assert jobs.claim(session, requests=["auto"]) == job.id
        attempts.begin(session, job=job.id, token="f" * 32, device="cpu", share=1.0, host="here")
    house.dispatcher()
    done = house.until(job, "done")
    assert done.lost_attempts == 0
    assert [a.outcome for a in house.attempts(job)] == ["lost", "done"]


@pytest.mark.parametrize(("change", "then"), [("pid given again", "failed"), ("machine restarted", "done")])
def test_a_pid_alone_is_not_believed(house, change: str, then: str) -> None:
    """A stranger with the worker's old pid is let live; only a restart of the machine is not the job's fault."""
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    house.processes.append(stranger)
    job = house.submit(steps=10)
    with house.database.write() as session:
        jobs.claim(session, requests=["auto"])
        attempt = attempts.begin(session, job=job.id, token="e" * 32, device="cpu", share=1.0, host="here")
        true = identify(stranger.pid)
        fields = {"pid": true.pid, "process_start": true.start, "boot": true.boot}
        fields |= {"boot": "another-boot"} if then == "done" else {"process_start": true.start - 1}
        attempts.set_process(session, attempt=attempt.id, **fields)
    house.dispatcher(lost_attempts=1)
    house.until(job, then)
    assert house.attempts(job)[0].outcome == "lost"
    assert stranger.poll() is None, "a stranger was killed"


def test_a_job_that_always_dies_ends_with_a_hint(house) -> None:
    job = house.submit(steps=20, die_at=3, deaths=99)
    house.dispatcher(lost_attempts=2)
    failed = house.until(job, "failed")
    assert len(house.attempts(job)) == 2
    assert failed.failure == "internal" and "signal 9" in failed.message and "memory" in failed.hint
    with house.database.write() as session:
        assert jobs.resume(session, job=job.id).lost_attempts == 0


def test_deaths_with_progress_between_them_do_not_add_up(house, expected_curve) -> None:
    job = house.submit(steps=40, hold={"1": 7, "2": 16, "3": 27})
    house.dispatcher(lost_attempts=2)
    for attempt, step in enumerate((7, 16, 27), start=1):
        house.wait(lambda number=attempt: house.job(job).attempt == number)
        house.until_step(job, step)
        os.kill(house.worker(job), signal.SIGKILL)
    house.until(job, "done")
    assert len(house.attempts(job)) == 4 and house.curve(job) == expected_curve(40)


def test_a_lost_job_may_wait_for_a_person(house) -> None:
    job = house.submit(steps=20, die_at=8)
    house.dispatcher(lost_attempts=0)
    lost = house.until(job, "lost")
    assert "Resume" in lost.hint and house.leases() == []
    with house.database.write() as session:
        jobs.resume(session, job=job.id)
    house.until(job, "done")


def test_two_dispatchers_one_wins(house) -> None:
    first, second = house.dispatcher(), house.dispatcher()
    house.wait(lambda: first.poll() is not None or second.poll() is not None)
    time.sleep(0.3)
    codes = [first.poll(), second.poll()]
    assert sorted(codes, key=str) == [4, None]
    job = house.submit(steps=3)
    house.until(job, "done")
    assert len(house.attempts(job)) == 1


def test_an_idle_dispatcher_leaves_unless_a_web_process_lives(house) -> None:
    with register_web(house.home):
        process = house.dispatcher(idle=0.3)
        time.sleep(2.0)
        assert process.poll() is None
    assert process.wait(15) == 0
    assert not dispatcher_status(house.home).alive


def test_a_dispatcher_whose_home_is_removed_ends(house) -> None:
    with register_web(house.home):
        process = house.dispatcher()
        house.wait(lambda: dispatcher_status(house.home).alive)
        shutil.rmtree(house.home.root.rename(house.home.root.with_name("gone")))  # at once: it may end meanwhile
        assert process.wait(20) == 0
        house.home.dispatcher.mkdir(parents=True)
    house.database.close()
    house.database = Database(house.home.database_url)


def test_a_dead_web_process_keeps_no_dispatcher(house) -> None:
    code = (
        "import os, sys; from core.home import Home; from core.jobs.service import register_web; "
        f"held = register_web(Home.open({str(house.home.root)!r})); held.__enter__(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False)
    assert list(house.home.dispatcher.glob("web-*.json"))
    assert house.dispatcher(idle=0.2).wait(20) == 0
    assert not list(house.home.dispatcher.glob("web-*.json"))


def test_ensure_starts_one_and_stop_ends_it(house) -> None:
    assert not dispatcher_status(house.home).alive
    ensure_dispatcher(house.home)
    house.wait(lambda: dispatcher_status(house.home).alive and (house.home.dispatcher / "pid").exists())
    pid = dispatcher_status(house.home).pid
    assert ensure_dispatcher(house.home).pid == pid
    assert stop_dispatcher(house.home)
    assert not dispatcher_status(house.home).alive and identify(pid) is None
    assert not stop_dispatcher(house.home)


def test_a_stopped_dispatcher_leaves_its_workers_to_the_next(house, expected_curve) -> None:
    job = house.submit(steps=60, hold={"1": 3})
    first = house.dispatcher()
    house.until_step(job, 3)
    assert stop_dispatcher(house.home)
    assert first.wait(10) == 0
    assert house.job(job).state == "running"
    house.dispatcher()
    house.let_go(job)
    house.until(job, "done")
    assert len(house.attempts(job)) == 1 and house.curve(job) == expected_curve(60)


def test_a_double_click_starts_one_run(house) -> None:
    ids = set()
    for _ in range(2):
        with house.database.write() as session:
            run, new = runs.add(session, spec={"tasks": []}, request_id="click-1")
            if new:
                jobs.add(session, run=run.id, kind="train", arguments={"steps": 1})
            ids.add(run.id)
    assert len(ids) == 1
    with house.database.session() as session:
        assert len(jobs.queue(session)) == 1


CLAIM = """
import sys
from storage import Database
from storage.queries import jobs
database = Database(sys.argv[1])
while True:
    with database.write() as session:
        job = jobs.claim(session, requests=["auto"])
    if job is None:
        break
    print(job)
"""


def test_each_job_is_claimed_once_by_many_processes(house) -> None:
    with house.database.write() as session:
        run, _ = runs.add(session, spec={"tasks": []})
        queued = [jobs.add(session, run=run.id, kind="score").id for _ in range(60)]
    command = [sys.executable, "-c", CLAIM, house.home.database_url]
    claimants = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT) for _ in range(4)]
    claimed = [int(line) for process in claimants for line in process.communicate(timeout=60)[0].split()]
    assert sorted(claimed) == sorted(queued)


@pytest.mark.slow
def test_random_kills(house, expected_curve) -> None:
    chance = random.Random(7)
    several = [house.submit(steps=60, pause=0.02, checkpoint_every=3) for _ in range(3)]
    dispatcher = house.dispatcher(slots=2, lost_attempts=50)
    for _ in range(15):
        time.sleep(chance.uniform(0.1, 0.8))
        if chance.random() < 0.5:
            kill(dispatcher)
            dispatcher = house.dispatcher(slots=2, lost_attempts=50)
        for job in several:
            found = house.attempts(job)
            if found and found[-1].pid and not found[-1].ended and chance.random() < 0.5:
                living = identify(found[-1].pid)
                if living is not None:
                    os.kill(found[-1].pid, signal.SIGKILL)
    for job in several:
        house.until(job, "done", seconds=90)
        assert house.curve(job) == expected_curve(60)
    assert house.survivors() == [] and house.leases() == []
