"""A worker that is killed in the middle: what it wrote, and that the curve goes on as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.data.store import DatasetStore
from core.home import PROJECT, RunFolder, read_json
from core.jobs.sinks import FileSink, ListSink
from core.jobs.worker import run_job
from core.schema import RunSpec
from core.training import checkpoints
from core.training.run import train_adapter
from tests.support.training import LORA, MOSLD, points, toy_job, toy_spec

STEPS = 120


def events_of(folder: RunFolder) -> list[dict[str, Any]]:
    """Whole lines only, as every reader must take them."""
    text = folder.events.read_text() if folder.events.exists() else ""
    found = []
    for line in text.split("\n"):
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def start_worker(job: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"TESSERA_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    with (job.parent / "worker.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "core.jobs.worker", str(job)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for(folder: RunFolder, worker: subprocess.Popen[bytes], seen: Callable[[dict[str, Any]], bool]) -> None:
    deadline = time.monotonic() + 120
    while not any(seen(event) for event in events_of(folder)):
        assert worker.poll() is None, (folder.jobs / "worker.log").read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def resume(folder: RunFolder, home: Path, spec: RunSpec) -> int:
    job = read_json(toy_job(folder, home, spec, attempt=2, resume=True))
    sink = FileSink(folder.events, run=job["run"], job=job["job"], attempt=2)
    try:
        return run_job(job, sink)
    finally:
        sink.close()


@pytest.mark.slow
@pytest.mark.parametrize("method", [LORA | {"options": {"rank": 4, "dropout": 0.1}}, MOSLD], ids=["lora", "mosld"])
def test_after_kill_9_the_curve_equals_the_uninterrupted_one(
    base: Path, home: Path, store: DatasetStore, tmp_path: Path, method: dict
):
    """Bitwise, with dropout and two micro-batches a step; checkpoints fall between the points of the curve."""
    settings = {
        "steps": STEPS,
        "gradient_accumulation": 2,
        "log_every": 3,
        "checkpoint_every": 10,
        "evaluate_every": 35,
        "early_stopping": 1000,
    }
    spec = toy_spec(base, method, **settings)
    whole = ListSink()
    train_adapter(spec, RunFolder(tmp_path / "whole").create(), store, whole, device="cpu", resume=False)

    folder = RunFolder(tmp_path / "killed")
    worker = start_worker(toy_job(folder, home, spec))
    wait_for(folder, worker, lambda event: event["kind"] == "metrics" and event["step"] >= 27)
    os.killpg(worker.pid, signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    reached = max(event["step"] for event in events_of(folder) if event["kind"] == "metrics")
    assert reached < STEPS, "the worker was done before it was killed"

    assert resume(folder, home, spec) == 0
    events = events_of(folder)
    resumed = [event["step"] for event in events if event["kind"] == "started"][1]
    assert 20 <= resumed <= reached + 10 and resumed % 10 == 0
    assert points(events) == points(whole.events)
    assert adapter(folder) == adapter(RunFolder(tmp_path / "whole"))
    assert events[-1]["kind"] == "finished" and events[-1]["step"] == STEPS
    assert {event["task"] for event in events if event["kind"] == "score"} == {"colour", "count"}


def adapter(folder: RunFolder) -> bytes:
    return (folder.adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_terminated_worker_writes_a_checkpoint_first(base: Path, home: Path, store: DatasetStore, tmp_path: Path):
    spec = toy_spec(base, steps=2000, log_every=5, checkpoint_every=2000, evaluate_every=2000)
    folder = RunFolder(tmp_path / "run")
    worker = start_worker(toy_job(folder, home, spec))
    wait_for(folder, worker, lambda event: event["kind"] == "metrics" and event["step"] >= 5)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 3
    last = events_of(folder)[-1]
    assert last["kind"] == "cancelled" and 5 <= last["step"] < 2000
    (step, path), *others = checkpoints.found(folder.checkpoints)
    assert step == last["step"] and not others and not checkpoints.defect(path)


def test_a_damaged_checkpoint_is_passed_over(base: Path, store: DatasetStore, tmp_path: Path):
    spec = toy_spec(base, MOSLD, steps=12, checkpoint_every=3, checkpoints_kept=3)
    folder, whole, again = RunFolder(tmp_path).create(), ListSink(), ListSink()
    train_adapter(spec, folder, store, whole, device="cpu", resume=False)
    assert [step for step, _ in checkpoints.found(folder.checkpoints)] == [6, 9, 12]
    os.truncate(folder.checkpoints / "step-12" / "state.pt", 1000)
    content = bytearray((folder.checkpoints / "step-9" / "adapter.safetensors").read_bytes())
    content[-1] ^= 1
    (folder.checkpoints / "step-9" / "adapter.safetensors").write_bytes(content)

    train_adapter(spec, folder, store, again, device="cpu", resume=True)
    warnings = [event["message"] for event in again.of("log")]
    assert len(warnings) == 2 and "step-12" in warnings[0] and "step-9" in warnings[1]
    assert again.of("started")[0]["step"] == 6
    assert points([*whole.events, *again.events]) == points(whole.events)
    assert [step for step, path in checkpoints.found(folder.checkpoints) if not checkpoints.defect(path)] == [6, 9, 12]


def test_without_a_whole_checkpoint_the_run_starts_anew(base: Path, store: DatasetStore, tmp_path: Path):
    spec = toy_spec(base, steps=6, checkpoints_kept=1)
    folder, sink = RunFolder(tmp_path).create(), ListSink()
    train_adapter(spec, folder, store, ListSink(), device="cpu", resume=False)
    (folder.checkpoints / "step-6" / checkpoints.MANIFEST).unlink()
    train_adapter(spec, folder, store, sink, device="cpu", resume=True)
    assert sink.of("started")[0]["step"] == 0 and "step-6" in sink.of("log")[0]["message"]
