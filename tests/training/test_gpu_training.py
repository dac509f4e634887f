"""Training on CUDA: bfloat16, resuming, recomputed activations, and a device that is full."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.data.store import DatasetStore
from core.home import RunFolder, read_json
from core.jobs.sinks import ListSink
from core.jobs.worker import run_job
from core.schema import RunSpec
from core.training.run import train_adapter
from tests.support.training import LORA, MOSLD, curve, points, toy_job, toy_spec

pytestmark = pytest.mark.gpu


def on_gpu(spec: RunSpec) -> RunSpec:
    return spec.model_copy(update={"device": "cuda"})


def run(spec: RunSpec, store: DatasetStore, folder: Path, *, resume: bool = False) -> ListSink:
    sink = ListSink()
    train_adapter(spec, RunFolder(folder).create(), store, sink, device="cuda:0", resume=resume)
    return sink


@pytest.mark.parametrize("method", [LORA, MOSLD], ids=["lora", "mosld"])
def test_bfloat16_training_follows_float32(base: Path, store: DatasetStore, tmp_path: Path, method: dict):
    """Same rows, same start; dropout off, since the two devices draw other masks."""
    method = method if method is LORA else {**MOSLD, "options": MOSLD["options"] | {"dropout": 0.0}}
    spec = toy_spec(base, method, steps=40, learning_rate=0.005)
    low = run(on_gpu(spec), store, tmp_path / "gpu")
    sink = ListSink()
    train_adapter(spec, RunFolder(tmp_path / "cpu").create(), store, sink, device="cpu", resume=False)
    assert low.of("started")[0]["device"] == "cuda:0"
    assert low.of("metrics")[-2]["values"]["memory_gib"] > 0
    assert curve(low.events) == pytest.approx(curve(sink.events), rel=0.03)
    assert curve(low.events)[-1] < curve(low.events)[0] - 0.3


@pytest.mark.parametrize("method", [LORA, MOSLD], ids=["lora", "mosld"])
def test_a_resumed_run_follows_the_uninterrupted_one(base: Path, store: DatasetStore, tmp_path: Path, method: dict):
    class Broken(ListSink):
        def emit(self, kind: str, **fields: object) -> None:
            super().emit(kind, **fields)
            if kind == "metrics" and fields["step"] == 14:
                raise KeyboardInterrupt

    spec = on_gpu(toy_spec(base, method, steps=30, gradient_accumulation=2, log_every=2, checkpoint_every=5))
    whole = run(spec, store, tmp_path / "whole")
    first, folder = Broken(), RunFolder(tmp_path / "broken").create()
    with pytest.raises(KeyboardInterrupt):
        train_adapter(spec, folder, store, first, device="cuda:0", resume=False)
    second = run(spec, store, folder.root, resume=True)
    assert second.of("started")[0]["step"] == 10
    losses = {key: value for key, value in points([*first.events, *second.events]).items() if "loss" in key[1]}
    expected = {key: value for key, value in points(whole.events).items() if "loss" in key[1]}
    assert losses == pytest.approx(expected, rel=1e-3)


def test_recomputed_activations_change_nothing(base: Path, store: DatasetStore, tmp_path: Path):
    curves = [
        curve(run(on_gpu(toy_spec(base, MOSLD, activation_checkpointing=on)), store, tmp_path / str(on)).events)
        for on in (False, True)
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_a_worker_trains_and_scores_on_the_gpu(base: Path, home: Path, store: DatasetStore, tmp_path: Path):
    sink = ListSink()
    job = read_json(toy_job(RunFolder(tmp_path), home, on_gpu(toy_spec(base, MOSLD, routing_moments=2))))
    assert run_job(job, sink) == 0, sink.of("failed")
    assert sink.events[-1]["kind"] == "finished"
    assert len(sink.of("routing")) == 3
    assert {event["task"] for event in sink.of("score")} == {"colour", "count"}


def test_a_full_device_is_explained(base: Path, home: Path, store: DatasetStore, tmp_path: Path):
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_allocated() + 2**26) / total))
    try:
        sink = ListSink()
        spec = on_gpu(toy_spec(base, batch_size=4096))
        assert run_job(read_json(toy_job(RunFolder(tmp_path), home, spec)), sink) == 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    failed = sink.of("failed")[0]
    assert failed["failure"] == "memory" and "train.batch_size" in failed["hint"]
