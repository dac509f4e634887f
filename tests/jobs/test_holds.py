"""A device that the inference worker holds is free for a job as soon as the answers are done."""

import subprocess
import sys

import pytest

from core.jobs import holds as rules
from core.jobs.devices import Device
from core.jobs.dispatcher import Dispatcher
from core.jobs.executors import LocalExecutor
from core.jobs.processes import identify
from storage.queries import attempts, holds
from tests.jobs.stand_in_dispatcher import SHORT, WORKER, Limits

GPU = Device("cuda:0", "A GPU", visible="0")
CPU = Device("cpu", "CPU", visible="")


@pytest.fixture
def holder():
    """A process that leaves when asked, as the inference worker does."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield child
    child.kill()
    child.wait()


@pytest.fixture
def dispatcher(house):
    made = Dispatcher(house.home, executor=LocalExecutor(WORKER), limits=Limits(**SHORT), devices=lambda: [GPU, CPU])
    yield made
    made.database.close()


def take(house, child, device="cuda:0"):
    process = identify(child.pid)
    values = {"pid": process.pid, "process_start": process.start, "boot": process.boot}
    with house.database.write() as session:
        return holds.take(session, holder="w", device=device, title="chat on tessera-base", **values)


def held(house):
    with house.database.session() as session:
        return [hold.device for hold in holds.every(session)]


def test_a_waiting_job_gets_the_device_of_a_chat(house, dispatcher, holder) -> None:
    assert take(house, holder)
    with house.database.session() as session:
        assert rules.holder_of(session, "cuda:0") == "chat on tessera-base"
    job = house.submit(steps=2)
    dispatcher.step()
    assert house.job(job).state == "queued"
    assert holder.wait(10) != 0
    dispatcher.step()
    dispatcher.step()
    assert held(house) == []
    house.wait(lambda: dispatcher.step() is not None and house.job(job).state == "done")
    assert house.attempts(job)[0].device == "cuda:0"


def test_a_job_for_another_device_disturbs_nobody(house, dispatcher, holder) -> None:
    assert take(house, holder)
    job = house.submit(steps=2, device="cpu")
    house.wait(lambda: dispatcher.step() is not None and house.job(job).state == "done")
    assert holder.poll() is None and held(house) == ["cuda:0"]


def test_a_dead_holder_holds_nothing(house, dispatcher, holder) -> None:
    assert take(house, holder)
    holder.kill()
    holder.wait()
    with house.database.session() as session:
        assert rules.living(session) == []
    job = house.submit(steps=2)
    house.wait(lambda: dispatcher.step() is not None and house.job(job).state == "done")
    with house.database.session() as session:
        assert attempts.leased_shares(session) == {}
