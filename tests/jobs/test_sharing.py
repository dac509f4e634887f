"""Several jobs on one device: who starts beside whom, who waits, and what becomes of a job that took too much."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from core.jobs.devices import Device
from core.jobs.dispatcher import Dispatcher
from core.jobs.executors import LocalExecutor
from core.jobs.needs import memory_key
from core.jobs.placing import fits
from core.units import GIB
from storage.queries import jobs, logs, runs
from tests.jobs.conftest import SPEC
from tests.jobs.stand_in_dispatcher import SHORT, WORKER, Limits

GPU = Device("cuda:0", "A GPU", visible="0", slots=4, memory_gib=100.0, free_gib=100.0)
CPU = Device("cpu", "CPU", visible="")
HOLD = {"steps": 3, "hold": {"1": 2, "2": 2}}


@pytest.fixture
def dispatching(house):
    """Makes dispatchers over given devices, in this process."""
    made = []

    def make(*devices: Device) -> Dispatcher:
        limits = Limits(**{**SHORT, "memory_refresh": 0.0})
        made.append(
            Dispatcher(house.home, executor=LocalExecutor(WORKER), limits=limits, devices=lambda: [*devices, CPU])
        )
        return made[-1]

    yield make
    for one in made:
        one.database.close()


def submit(house, gib: float | None, *, method: str = "lora", kind: str = "train", device: str = "auto", **arguments):
    """A job whose training was estimated to take so much; None: nobody knows."""
    with house.database.write() as session:
        run, _ = runs.add(session, spec={**SPEC, "method": {"name": method}})
        runs.set_parameters(session, run_id=run.number, trainable=10, total=100)
        runs.set_memory(session, run_id=run.number, estimate=None if gib is None else int(gib * GIB))
        return jobs.add(session, run=run.id, kind=kind, arguments=arguments, device=device)


def shares(house) -> dict[str, float]:
    return {lease["run"]: round(lease["share"], 2) for lease in house.leases()}


def pass_until(house, dispatcher: Dispatcher, check: Callable[[], object]) -> None:
    house.wait(lambda: dispatcher.step() is not None and check())


def test_small_jobs_share_a_device_and_the_next_waits(house, dispatching) -> None:
    first, second, third = (submit(house, 3, **HOLD) for _ in range(3))
    dispatcher = dispatching(replace(GPU, slots=2))
    dispatcher.step()
    assert shares(house) == {first.run: 0.5, second.run: 0.5}
    pass_until(house, dispatcher, lambda: house.job(second).state == "running")
    assert house.job(third).state == "queued"
    house.let_go(first)
    pass_until(house, dispatcher, lambda: house.job(third).state in ("starting", "running"))
    assert house.job(first).state == "done" and shares(house) == {second.run: 0.5, third.run: 0.5}


def test_a_job_gets_what_it_needs_of_the_memory(house, dispatching) -> None:
    large, small, other = submit(house, 47.53, **HOLD), submit(house, 3, **HOLD), submit(house, 20, **HOLD)
    dispatcher = dispatching(GPU)
    dispatcher.step()
    assert shares(house) == {large.run: 0.6, small.run: 0.25}  # 60 GiB with head-room; at least a slot
    assert house.job(other).state == "queued"


def test_a_large_job_is_not_overtaken_for_ever(house, dispatching) -> None:
    first = submit(house, 3, **HOLD)
    dispatcher = dispatching(GPU)
    dispatcher.step()
    large, late = submit(house, 78, **HOLD), submit(house, 3, **HOLD)
    for _ in range(3):
        dispatcher.step()
    assert shares(house) == {first.run: 0.25}  # there is room for the late one, but it would hold up the large one
    house.let_go(first)
    pass_until(house, dispatcher, lambda: house.job(large).state == "running")
    assert house.job(late).state == "queued"
    house.let_go(large)
    pass_until(house, dispatcher, lambda: house.job(late).state == "running")


def test_a_waiting_job_keeps_one_device_only(house, dispatching) -> None:
    dispatcher = dispatching(GPU, replace(GPU, name="cuda:1", visible="1"))
    small = [submit(house, 30, **HOLD), submit(house, 3, **HOLD)]
    dispatcher.step()
    assert {lease["device"] for lease in house.leases()} == {"cuda:0", "cuda:1"}  # the emptier one first
    large, late, on_cpu = submit(house, 78, **HOLD), submit(house, 3, **HOLD), submit(house, 3, device="cpu", **HOLD)
    dispatcher.step()
    assert shares(house) == {small[0].run: 0.38, small[1].run: 0.25, late.run: 0.25, on_cpu.run: 1.0}
    assert [lease["device"] for lease in house.leases() if lease["run"] in (small[0].run, late.run)] == ["cuda:0"] * 2
    assert house.job(large).state == "queued"


def test_nobody_joins_a_job_of_unknown_need(house, dispatching) -> None:
    unknown, small = submit(house, None, **HOLD), submit(house, 3, **HOLD)
    dispatcher = dispatching(GPU)
    dispatcher.step()
    dispatcher.step()
    assert shares(house) == {unknown.run: 1.0} and house.job(small).state == "queued"


def test_an_unknown_need_is_measured_once(house, dispatching) -> None:
    first, second, third = (submit(house, None, steps=2, peak=10 * GIB) for _ in range(3))
    other = submit(house, None, method="mosld", steps=2, peak=10 * GIB)
    dispatcher = dispatching(GPU)
    dispatcher.step()
    assert shares(house) == {first.run: 1.0}
    pass_until(house, dispatcher, lambda: house.job(first).state == "done")
    assert shares(house) == {second.run: 0.25, third.run: 0.25} and house.job(other).state == "queued"


def test_a_measured_peak_counts_more_than_an_estimate(house, dispatching) -> None:
    first = submit(house, 10, steps=2, peak=50 * GIB)
    dispatcher = dispatching(GPU)
    pass_until(house, dispatcher, lambda: house.job(first).state == "done")
    again = submit(house, 10, steps=2, peak=50 * GIB)
    dispatcher.step()
    assert shares(house) == {again.run: 0.56}  # a tenth of head-room and the context


def test_memory_that_other_programs_hold_is_not_given_away(house, dispatching) -> None:
    first, second = submit(house, 3, **HOLD), submit(house, 3, **HOLD)
    dispatcher = dispatching(replace(GPU, free_gib=20.0))
    dispatcher.step()
    dispatcher.step()
    assert shares(house) == {first.run: 0.25} and house.job(second).state == "queued"


def test_a_job_that_took_too_much_beside_others_has_the_device_alone(house, dispatching) -> None:
    greedy = submit(house, 3, least_share=1.0, steps=3)
    dispatcher = dispatching(GPU)
    pass_until(house, dispatcher, lambda: house.job(greedy).state == "done")
    first, second = house.attempts(greedy)
    assert (first.outcome, second.outcome, first.exit_code) == ("failed", "done", 1)
    with house.database.session() as session:
        said = [line.message for line in logs.of_run(session, run=greedy.run, level="warning")]
    assert len(said) == 1 and "alone" in said[0]
    assert house.job(greedy).failure is None


def test_jobs_like_one_that_took_too_much_run_alone_until_it_is_measured(house, dispatching) -> None:
    greedy, waits = (submit(house, 3, least_share=1.0, peak=40 * GIB, **HOLD) for _ in range(2))
    dispatcher = dispatching(replace(GPU, slots=1))
    with house.database.write() as session:  # as if the first had shared the device
        jobs.row(session, job=greedy.id).alone = True
    pass_until(house, dispatcher, lambda: house.job(greedy).state == "running")
    late = dispatching(GPU)
    with house.database.write() as session:
        jobs.cancel(session, job=waits.id)
    like = submit(house, 3, least_share=1.0, peak=40 * GIB, **HOLD)
    house.let_go(greedy)
    pass_until(house, late, lambda: house.job(greedy).state == "done" and house.job(like).state != "queued")
    assert shares(house) == {like.run: 0.45}


def test_out_of_memory_alone_is_a_failure(house, dispatching) -> None:
    never = submit(house, 3, least_share=1.5)
    dispatcher = dispatching(GPU)
    pass_until(house, dispatcher, lambda: house.job(never).state == "failed")
    failed = house.job(never)
    assert failed.failure == "memory" and failed.message == "The device ran out of memory."
    assert len(house.attempts(never)) == 2 and house.leases() == []


def test_a_cancelled_job_that_runs_out_of_memory_stays_cancelled(house, dispatching) -> None:
    job = submit(house, 3, least_share=1.0)
    dispatcher = dispatching(GPU)
    dispatcher.step()
    with house.database.write() as session:
        jobs.cancel(session, job=job.id)
    pass_until(house, dispatcher, lambda: house.job(job).state not in ("cancelling", "starting", "running"))
    assert house.job(job).state in ("cancelled", "failed") and len(house.attempts(job)) == 1


def test_the_next_dispatcher_knows_the_shares(house, dispatching) -> None:
    held = [submit(house, 30, **HOLD), submit(house, 30, **HOLD)]
    first = dispatching(GPU)
    first.step()
    assert shares(house) == {held[0].run: 0.38, held[1].run: 0.38}
    small, late = submit(house, 3, **HOLD), submit(house, 3, **HOLD)
    second = dispatching(GPU)
    for _ in range(2):
        second.step()
    assert house.job(small).state == "queued" and house.job(late).state == "queued"  # 0.24 is not a slot
    house.let_go(held[0])
    pass_until(house, second, lambda: house.job(held[0]).state == "done")
    assert shares(house) == {held[1].run: 0.38, small.run: 0.25, late.run: 0.25}


def test_shares_by_device() -> None:
    assert GPU.share_for(30 * GIB) == pytest.approx(0.3) and GPU.share_for(GIB) == 0.25
    assert GPU.share_for(None) == GPU.share_for(300 * GIB) == 1.0
    assert replace(GPU, slots=1).share_for(GIB) == 1.0 and replace(GPU, memory_gib=None).share_for(GIB) == 1.0
    assert replace(CPU, slots=2).share_for(None) == 0.5
    assert fits(replace(GPU, free_gib=0.1), 0.25, 1.0)  # an idle device takes a job whatever others do
    assert not fits(replace(GPU, free_gib=None), 0.25, 0.5)


def test_what_shapes_the_memory_and_what_does_not() -> None:
    spec = {**SPEC, "train": {"batch_size": 8, "learning_rate": 1e-3}}
    key = memory_key(spec, "train", {})
    alike = {**spec, "seed": 7, "name": "x", "train": {"batch_size": 8, "learning_rate": 1e-4}}
    assert memory_key(alike, "train", {}) == key
    assert memory_key(spec, "train", {"experts": ["run-1"]}) == key
    others = [
        {"train": {"batch_size": 16, "learning_rate": 1e-3}},
        {"model": {"base": "c"}},
        {"method": {"name": "mosld"}},
    ]
    found = {memory_key({**spec, **other}, "train", {}) for other in others} | {memory_key(spec, "score", {}), key}
    assert len(found) == 5
