"""Learned fusions on CUDA: as on the CPU in float32, and in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from learned_support import fuse, resumed, same, setting_for, stopping

from core.fusion.learned.adamerging import objective_of
from core.fusion.methods import options_of
from core.fusion.setting import Setting
from core.jobs.sinks import Cancelled

pytestmark = pytest.mark.gpu
METHODS = ("adamerging", "adamerging_pp", "concrete_task_arithmetic", "concrete_adamerging")


def on_gpu(setting: Setting, dtype: str) -> Setting:
    model = setting.spec.model.model_copy(update={"dtype": dtype})
    return replace(setting, spec=setting.spec.model_copy(update={"model": model}), device="cuda:0")


def setting_of(tmp_path, method: str, **rest) -> Setting:
    options = {"steps": 6, "evaluate_every": 3, "learning_rate": 0.01} | rest
    if method == "concrete_adamerging":
        options["coefficient_steps"] = 6
    return setting_for(tmp_path, method, tasks=("colour", "count"), **options)


@pytest.mark.parametrize("method", ["adamerging", "adamerging_pp"])
def test_coefficients_are_those_of_the_cpu_in_float32(tmp_path, method):
    here, there = setting_of(tmp_path, method), on_gpu(setting_of(tmp_path, method), "float32")
    expected, found = fuse(here).facts["coefficients"], fuse(there).facts["coefficients"]
    for name, values in expected.items():
        for a, b in zip(values, found[name], strict=True):
            assert a == b is None or a == pytest.approx(b, abs=5e-3)


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_in_bfloat16_and_keeps_its_result_in_float32_on_the_cpu(tmp_path, method):
    setting = on_gpu(setting_of(tmp_path, method, steps=20, learning_rate=0.02), "bfloat16")
    fused = fuse(setting)
    points = [event["values"]["loss"] for event in setting.sink.of("metrics")]
    assert min(points[1:]) < points[0]
    assert {(d.up.dtype, d.up.device.type) for d in fused.deltas.values()} == {(torch.float32, "cpu")}


@pytest.mark.parametrize("method", METHODS)
def test_cancelled_and_resumed_it_ends_as_if_nothing_had_happened(tmp_path, method):
    whole = fuse(on_gpu(setting_of(tmp_path / "whole", method), "float32"))
    setting = stopping(on_gpu(setting_of(tmp_path / "parts", method), "float32"), after=3)
    with pytest.raises(Cancelled):
        fuse(setting)
    again = fuse(resumed(setting))
    assert same(again, whole) or all(
        torch.allclose(delta.dense(), whole.deltas[path].dense(), atol=1e-5) for path, delta in again.deltas.items()
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_options_share_their_prompt_on_the_gpu_too(tmp_path, dtype):
    setting = on_gpu(setting_of(tmp_path, "adamerging"), dtype)
    assert objective_of(setting, options_of(setting.spec.method))._may_share


@pytest.mark.parametrize("loss", ["first_token", "options"])
def test_a_step_waits_for_the_device_no_more_often_with_more_tasks(tmp_path, loss):
    from core.fusion.learned.adamerging import CoefficientLearner, coefficients_of
    from core.fusion.learned.sums import parts_of

    setting = on_gpu(setting_of(tmp_path, "adamerging", loss=loss), "float32")
    options, parts = options_of(setting.spec.method), parts_of(setting.vectors, "cuda:0")
    learner = CoefficientLearner(
        parts, coefficients_of(setting, parts, options), objective_of(setting, options), learning_rate=1e-3
    )
    learner.advance(0)  # the first one builds what later ones reuse
    counts = []
    for tasks in (learner.objective.tasks[:1], learner.objective.tasks):
        learner.objective.tasks = tasks
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            learner.advance(1)
        counts.append(sum(event.name == "aten::_local_scalar_dense" for event in profile.events()))
    assert counts[0] == counts[1]  # none of a pass; what is left is Adam's, which reads its count of steps on the CPU
