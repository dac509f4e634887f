"""The real worker on a tiny base: kill -9 of worker and dispatcher during training loses nothing."""

import os
import signal

import pytest
from support.tiny import tiny_base
from support.training import NOT_REPEATABLE, toy_spec, toy_store

from core.home import write_json
from storage.queries import jobs, routing, runs, scores, series

STEPS = 24


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def submit(house, spec):
    with house.database.write() as session:
        run, _ = runs.add(session, spec=spec.model_dump(mode="json"))
        write_json(house.home.run(run.folder).create().spec, run.spec)
        return jobs.add(session, run=run.id, kind="train", device="cpu")


def curves(house, run: str) -> dict[str, tuple[list[int], bytes]]:
    with house.database.session() as session:
        found = series.read(session, run=run)
    repeatable = {name: curve for name, curve in found.items() if name.split("/")[0] not in NOT_REPEATABLE}
    return {name: (curve.steps.tolist(), curve.values.tobytes()) for name, curve in repeatable.items()}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_both_killed_during_training_and_nothing_is_lost(house, tmp_path) -> None:
    toy_store(house.home.datasets)
    spec = toy_spec(
        tiny_base(tmp_path / "base"),
        {"name": "mosld", "options": {"rank": 4, "experts": 3, "dropout": 0.2}},
        steps=STEPS,
        checkpoint_every=4,
        evaluate_every=8,
        routing_moments=3,
    )
    quiet, killed = submit(house, spec), submit(house, spec)
    dispatcher = house.dispatcher(real=True)
    house.until(quiet, "done", "failed", seconds=150)
    assert house.job(quiet).state == "done", house.job(quiet)

    pid = house.wait(lambda: (found := house.attempts(killed)) and found[-1].pid, seconds=120)
    checkpoints = house.home.run(killed.run).checkpoints  # the folder is quicker than what the dispatcher reads of it
    house.wait(lambda: any(checkpoints.glob("step-*")), seconds=120)
    os.kill(pid, signal.SIGSTOP)  # it would end while the dispatcher dies
    dispatcher.kill()
    dispatcher.wait()
    os.kill(pid, signal.SIGKILL)
    house.dispatcher(real=True)
    assert house.until(killed, "done", "failed", seconds=150).state == "done"

    first, second = house.attempts(killed)
    assert (first.outcome, second.outcome) == ("lost", "done") and 4 <= second.resumed_from < STEPS
    expected = curves(house, quiet.run)
    assert expected["loss"][0] == list(range(1, STEPS + 1))
    assert curves(house, killed.run) == expected
    with house.database.session() as session:
        marks = [
            [(s.task, s.model, s.metric, s.value) for s in scores.of_run(session, run=job.run)]
            for job in (quiet, killed)
        ]
        moments = [[m.moment for m in routing.moments(session, run=job.run)] for job in (quiet, killed)]
    assert marks[0] == marks[1] and marks[0] and moments[0] == moments[1] and moments[0]
    assert house.survivors() == [] and house.leases() == []
