"""Resilient fusion on CUDA: the same energies as on the CPU, noise drawn by seed, a sweep in bfloat16."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.fusion.delta import TaskVector
from core.fusion.methods import options_of
from core.fusion.resilient.channel import Channel
from core.fusion.resilient.protection import Shield
from core.fusion.resilient.resilience import Resilience
from core.fusion.setting import Setting
from tests.fusion.resilient_support import fuse, setting, small_store, sweep_table, trained_vectors
from tests.support.tiny import tiny_base

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("resilient")
    base, store = tiny_base(folder / "base"), small_store(folder / "rows")
    return base, store, trained_vectors(base, store, steps=30)


def on_gpu(given: Setting, dtype: str = "bfloat16") -> Setting:
    model = given.spec.model.model_copy(update={"dtype": dtype})
    return replace(given, spec=given.spec.model_copy(update={"model": model}), device="cuda:0")


@pytest.mark.parametrize("transmission", ["delta", "factors"])
@pytest.mark.parametrize("attack", ["awgn", "worst_sum", "worst_strongest"])
def test_variances_and_energies_are_those_of_the_cpu(parts, tmp_path: Path, transmission: str, attack: str):
    base, store, vectors = parts
    here = setting(base, store, vectors, tmp_path, transmission=transmission)
    labs = [Resilience(one, options_of(one.spec.method)) for one in (here, on_gpu(here))]
    channel = Channel(5.0, attack, transmission)
    (_, cpu), (_, gpu) = (lab.transmission.variances(channel, Shield()) for lab in labs)
    assert list(cpu.values()) == pytest.approx(list(gpu.values()), rel=1e-4)
    first, second = (lab.send(channel, Shield()) for lab in labs)
    assert first.injected == pytest.approx(second.injected, rel=0.1)  # other draws of the same power
    again = labs[1].send(channel, Shield())
    assert all(torch.equal(delta.up, again.deltas[path].up) for path, delta in second.deltas.items())


@pytest.mark.parametrize("transmission", ["delta", "factors"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_sweep_and_a_realigned_model_in_bfloat16(parts, tmp_path: Path, transmission: str, whole: bool):
    base, store, vectors = parts
    if whole and transmission == "factors":
        pytest.skip("whole updates have no factors")
    if whole:
        vectors = [
            TaskVector(v.name, {path: replace(d, up=d.dense(), down=None) for path, d in v.deltas.items()}, v.tasks)
            for v in vectors
        ]
    arms = {"sweep_protections": ["none", "realign", "layer_aware"], "sweep_snr": [10, -10], "budget": 0.3}
    options = arms | {"sweep_seeds": 2, "sweep_rows": 16, "steps": 20, "learning_rate": 1e-3}
    given = on_gpu(setting(base, store, vectors, tmp_path, transmission=transmission, **options))
    fused = fuse(given)
    rows = sweep_table(given)
    assert len(rows) == 3 * (3 + 3 * 2 * 2 * 3)
    mse = {row["snr"]: row["relative_mse"] for row in rows if row["protection"] == "none" and row["attack"] == "awgn"}
    assert mse[10] < mse[-10]
    assert all(torch.isfinite(delta.dense()).all() for delta in fused.deltas.values())
    losses = [event["values"] for event in given.sink.of("metrics")]
    assert losses and all(values["loss"] == values["loss"] for values in losses)  # no NaN


def test_a_resumed_sweep_goes_on_from_its_points(parts, tmp_path: Path):
    base, store, vectors = parts
    options = {"sweep_snr": [0], "sweep_protections": ["none"], "sweep_seeds": 1, "realign": False, "sweep_rows": 8}
    first = on_gpu(setting(base, store, vectors, tmp_path, **options))
    fuse(first)
    again = on_gpu(setting(base, store, vectors, tmp_path, resume=True, **options))
    fuse(again)
    assert sweep_table(again) == sweep_table(first)
