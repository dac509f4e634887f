"""On CUDA, combining and saving give what they give on the CPU; DARE draws there what it says it draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from merging_support import apart, factors, read, setting

from core.fusion.delta import Delta, TaskVector
from core.fusion.methods import fusion_method, options_of
from core.fusion.save import save, truncated
from tests.support.tiny import tiny_base

pytestmark = pytest.mark.gpu


def on(device: str, vectors: list[TaskVector], method: str, **rest: object) -> dict[str, torch.Tensor]:
    job = setting(vectors, method, **rest)
    job.device = device
    fused = fusion_method(method).fuse(job, options_of(job.spec.method))
    assert {delta.up.device.type for delta in fused.deltas.values()} == {"cpu"}
    return {path: delta.dense() for path, delta in fused.deltas.items()}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("average", {}),
        ("task_arithmetic", {}),
        ("ties", {"trim": "tensor"}),
        ("ties", {"trim": "model", "merge": "sum"}),
        ("ties", {"majority_sign": "frequency"}),
        ("magnitude_prune", {}),
        ("magnitude_prune", {"trim": "model"}),
    ],
)
def test_combining_on_cuda_is_combining_on_the_cpu(method: str, options: dict):
    vectors = [TaskVector(v.name, {p: Delta(d.dense()) for p, d in v.deltas.items()}) for v in factors(3)]
    assert apart(on("cuda:0", vectors, method, **options), on("cpu", vectors, method, **options)) < 1e-5


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_on_cuda_follows_the_seed_and_leaves_the_random_state(method: str):
    vectors = factors(2, shape=(200, 300))
    state = torch.cuda.get_rng_state()
    first = on("cuda:0", vectors, method, seed=1)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert apart(on("cuda:0", vectors, method, seed=1), first) == 0
    assert apart(on("cuda:0", vectors, method, seed=2), first) > 0.1


def test_dare_on_cuda_keeps_its_share_and_rescales():
    tau = torch.randn(400, 500, generator=torch.Generator().manual_seed(0))
    found = on("cuda:0", [TaskVector("run-1", {"x": Delta(tau)})], "dare_linear", density=0.2)["x"]
    kept = found != 0
    assert kept.float().mean().item() == pytest.approx(0.2, abs=0.003)
    torch.testing.assert_close(found[kept] / tau[kept], torch.full_like(tau[kept], 5))


@pytest.mark.parametrize("low_rank", [True, False])
def test_the_svd_on_cuda_loses_no_more_than_on_the_cpu(low_rank: bool):
    delta = factors(1, rank=64, shape=(512, 768))[0].deltas["x"]
    delta = delta if low_rank else Delta(delta.dense())
    whole = delta.dense().double()
    errors = [(truncated(delta.to(place), 16).dense().cpu().double() - whole).norm() for place in ("cuda:0", "cpu")]
    assert errors[0].item() == pytest.approx(errors[1].item(), rel=1e-4)


@pytest.mark.parametrize("form", ["svd", "dense"])
def test_what_is_saved_from_cuda_is_read_on_the_cpu(form: str, tmp_path: Path):
    base = tiny_base(tmp_path / "base", layers=1)
    chance = torch.Generator().manual_seed(0)
    vectors = [
        TaskVector(name, {"model.layers.0.self_attn.q_proj": Delta(torch.randn(32, 32, generator=chance))})
        for name in ("run-1", "run-2")
    ]
    job = setting(vectors, "average", tmp_path, str(base), form=form, rank=32)
    job.device = "cuda:0"
    options = options_of(job.spec.method)
    fused = fusion_method("average").fuse(job, options)
    save(fused, job, options)
    wanted = {path: delta.dense() for path, delta in fused.deltas.items()}
    assert apart(read(tmp_path / "adapter", str(base)), wanted) < 1e-5
