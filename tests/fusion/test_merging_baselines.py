"""The twelve numeric checks of the merging baselines: PEFT's own combinations, and what the studio does instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from merging_support import adapters, apart, dense, factors, fused, ratio, read, saved, summed, toy
from peft.utils.merge_utils import dare_linear as peft_dare_linear
from peft.utils.merge_utils import task_arithmetic as peft_task_arithmetic
from peft.utils.merge_utils import ties as peft_ties

from core.adapters.attach import load
from core.adapters.folders import read_config
from core.errors import ConfigurationError, DataError
from core.fusion.delta import Delta, TaskVector
from core.fusion.methods import options_of
from core.fusion.read import Source, read_vectors
from core.models import load_base
from core.schema import MethodSpec, ModelSpec
from tests.support.tiny import tiny_base

SIX = ((3, -1, 0.5, 2, 0, 4), (-1, -2, 0.4, 2, 1, -5), (2, 0.1, -0.3, -3, 0, 0))
PLAIN = {"r": 4, "lora_alpha": 16}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_base(tmp_path_factory.mktemp("merging") / "base", layers=1))


def ranks(folder: Path) -> set[tuple[int, float]]:
    return {(cell["rank"], cell["alpha"] / cell["rank"]) for cell in read_config(folder)["cells"]}


def test_check_1_concatenation_is_the_weighted_sum_at_the_sum_of_the_ranks(base: str, tmp_path: Path):
    two = adapters(base, tmp_path / "two", PLAIN, {"r": 2, "lora_alpha": 2})
    wanted = summed(two.vectors(), [0.3, 0.3])
    assert apart(two.by_peft([0.3, 0.3], "cat"), wanted) < 1e-6
    assert two.ranks_and_scalings("cat") == {(6, 1.0)}
    rows = saved(two.vectors(), "task_arithmetic", tmp_path / "run", base, coefficient=0.3)
    assert apart(read(tmp_path / "run" / "adapter", base), wanted) < 1e-6
    assert ranks(tmp_path / "run" / "adapter") == {(6, 1.0)}
    assert {(row.rank, row.relative_error) for row in rows} == {(6, 0.0)}


def test_check_2_svd_of_all_ranks_is_exact_and_what_a_smaller_rank_loses_is_said(base: str, tmp_path: Path):
    two = adapters(base, tmp_path / "two", PLAIN, PLAIN)
    wanted = summed(two.vectors(), [0.5, 0.5])
    assert apart(two.by_peft([0.5, 0.5], "svd", svd_rank=8, svd_full_matrices=False), wanted) < 1e-5
    two.model.delete_adapter("svd")
    assert (
        0.2 < apart(two.by_peft([0.5, 0.5], "svd", svd_full_matrices=False), wanted) < 0.5
    )  # the largest of the ranks
    rows = saved(two.vectors(), "average", tmp_path / "all", base, form="svd")
    assert apart(read(tmp_path / "all" / "adapter", base), wanted) < 1e-5
    assert all(row.rank == 8 and row.relative_error < 1e-5 for row in rows)
    for row in saved(two.vectors(), "average", tmp_path / "half", base, form="svd", rank=4):
        values = torch.linalg.svdvals(wanted[row.path])
        assert row.rank == 4
        assert 0.1 < row.relative_error == pytest.approx((values[4:].norm() / values.norm()).item(), rel=1e-4)


def test_check_3_linear_doubles_two_equal_adapters_and_averaging_here_does_not(base: str, tmp_path: Path):
    two = adapters(base, tmp_path / "two", PLAIN, PLAIN, same=True)
    wanted = two.updates("adapter-1")
    half = [0.5, 0.5]
    assert ratio(two.by_peft(half, "linear"), wanted) == pytest.approx(2.0, abs=1e-4)
    assert ratio(two.by_peft(half, "cat"), wanted) == pytest.approx(1.0, abs=1e-5)
    assert ratio(two.by_peft(half, "svd", svd_full_matrices=False), wanted) == pytest.approx(1.0, abs=1e-5)
    for form in ("concatenated", "svd", "dense"):
        saved(two.vectors(), "average", tmp_path / form, base, form=form)
        assert apart(read(tmp_path / form / "adapter", base), wanted) < 1e-5


def test_check_4_one_adapter_of_weight_1_stays_itself_and_rslora_is_repaired(base: str, tmp_path: Path):
    plain = adapters(base, tmp_path / "plain", PLAIN)
    own = plain.updates("adapter-1")
    for kind in ("cat", "linear", "svd"):
        assert apart(plain.by_peft([1.0], kind), own) < 1e-5
    for form in ("concatenated", "svd", "dense"):
        saved(plain.vectors(), "task_arithmetic", tmp_path / form, base, form=form)
        assert apart(read(tmp_path / form / "adapter", base), own) < 1e-5
    rslora = adapters(base, tmp_path / "rslora", PLAIN | {"use_rslora": True})
    own = rslora.updates("adapter-1")
    assert ratio(rslora.by_peft([1.0], "cat"), own) == pytest.approx(2.0, abs=1e-4)  # sqrt(rank) too large
    saved(rslora.vectors(), "task_arithmetic", tmp_path / "repaired", base)
    assert apart(read(tmp_path / "repaired" / "adapter", base), own) < 1e-5


def test_check_5_a_negative_weight_subtracts(base: str, tmp_path: Path):
    two = adapters(base, tmp_path / "two", PLAIN, PLAIN)
    wanted = {
        path: two.updates("adapter-1")[path] - two.updates("adapter-2")[path] for path in two.updates("adapter-1")
    }
    assert apart(two.by_peft([1.0, -1.0], "cat"), wanted) < 1e-6
    saved(two.vectors(), "task_arithmetic", tmp_path / "run", base, weights=[1.0, -1.0])
    assert apart(read(tmp_path / "run" / "adapter", base), wanted) < 1e-6


def test_check_6_the_scaling_is_applied_once(base: str, tmp_path: Path):
    two = adapters(base, tmp_path / "two", PLAIN, PLAIN)
    wanted = summed(two.vectors(), [0.5, 0.5])
    by_peft = two.by_peft([0.5, 0.5], "svd", svd_rank=8, svd_full_matrices=False)
    assert ratio(by_peft, wanted) == pytest.approx(1.0, abs=1e-5)  # 4.0: a PEFT before 0.21
    saved(two.vectors(), "average", tmp_path / "run", base, form="svd", rank=8)
    assert ratio(read(tmp_path / "run" / "adapter", base), wanted) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("trim", ["tensor", "model"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"density": 1.0}, (2.5, -1.5, 0.45, 2, 1, -5)),
        ({"density": 0.5}, (2.5, -2, -0.3, 2, 0, -5)),
        ({"density": 0.5, "majority_sign": "frequency"}, (2.5, -2, -0.3, 2, 0, 4)),
        ({"density": 0.5, "merge": "sum", "coefficient": 1.0}, (5, -2, -0.3, 4, 0, -5)),
    ],
)
def test_check_7_ties_on_six_numbers(options: dict, expected: tuple, trim: str):
    found = dense(toy(SIX), "ties", trim=trim, **options)["x"]
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_check_7_and_8_peft_gives_the_same_numbers():
    tasks = [torch.tensor(values, dtype=torch.float32) for values in SIX]
    ones, three_tenths = torch.ones(3), torch.full((3,), 0.3)
    close = torch.testing.assert_close
    close(peft_ties(tasks, ones, 0.5), torch.tensor([2.5, -2, -0.3, 2, 0, -5]))
    close(peft_ties(tasks, ones, 0.5, "frequency"), torch.tensor([2.5, -2, -0.3, 2, 0, 4]))
    close(peft_ties(tasks, three_tenths, 0.5), torch.tensor([0.75, -0.6, -0.09, 0.6, 0, -1.5]))
    close(peft_task_arithmetic(tasks, three_tenths), torch.tensor([1.2, -0.87, 0.18, 0.3, 0.3, -0.3]))


def test_check_8_task_arithmetic_and_weighted_ties_on_six_numbers():
    close = torch.testing.assert_close
    close(
        dense(toy(SIX), "task_arithmetic", coefficient=0.3)["x"],
        torch.tensor([[1.2, -0.87, 0.18, 0.3, 0.3, -0.3]]),
    )
    close(
        dense(toy(SIX), "ties", density=0.5, weights=[0.3, 0.3, 0.3])["x"],
        torch.tensor([[0.75, -0.6, -0.09, 0.6, 0, -1.5]]),
    )


def test_check_9_dare_keeps_a_fifth_and_scales_it_by_five():
    tau = torch.randn(400, 500, generator=torch.Generator().manual_seed(0))
    run = [TaskVector("run-1", {"x": Delta(tau)})]
    found = dense(run, "dare_linear", density=0.2)["x"]
    kept = found != 0
    assert kept.float().mean().item() == pytest.approx(0.2, abs=0.003)
    torch.testing.assert_close(found[kept] / tau[kept], torch.full_like(tau[kept], 5))


def test_check_9_the_mean_of_two_hundred_seeds_is_the_task_vector():
    tau = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    run = [TaskVector("run-1", {"x": Delta(tau)})]
    mean = sum(dense(run, "dare_linear", density=0.2, seed=seed)["x"] for seed in range(200)) / 200
    assert torch.nn.functional.cosine_similarity(mean.flatten(), tau.flatten(), dim=0) > 0.97
    assert ratio({"x": mean}, {"x": tau}) == pytest.approx(1, abs=0.02)


def test_check_9_one_seed_draws_what_peft_draws():
    tau = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        wanted = peft_dare_linear([tau], torch.ones(1), 0.2)
    assert torch.equal(dense([TaskVector("run-1", {"x": Delta(tau)})], "dare_linear", density=0.2, seed=3)["x"], wanted)


def test_check_10_averaging_is_task_arithmetic_with_1_over_k():
    three = factors(3)
    assert apart(dense(three, "average"), dense(three, "task_arithmetic", coefficient=1 / 3)) < 1e-6
    assert all(not update.any() for update in dense(three, "task_arithmetic", coefficient=0.0).values())
    (one,) = factors(1)
    assert apart(dense([one], "task_arithmetic", coefficient=1.0), summed([one], [1])) < 1e-6


@pytest.mark.parametrize(
    ("method", "options"),
    [("task_arithmetic", {}), ("ties", {"trim": "tensor"}), ("ties", {"trim": "model", "merge": "sum"})],
)
@pytest.mark.parametrize("form", ["svd", "dense"])
def test_check_11_the_order_of_the_runs_does_not_matter(
    method: str, options: dict, form: str, base: str, tmp_path: Path
):
    three = adapters(base, tmp_path / "three", PLAIN, PLAIN, {"r": 2, "lora_alpha": 4}).vectors()
    weights, order = [0.2, 0.5, 0.9], [2, 0, 1]
    saved(three, method, tmp_path / "one", base, weights=weights, form=form, **options)
    turned = {"weights": [weights[i] for i in order], "form": form, **options}
    saved([three[i] for i in order], method, tmp_path / "other", base, **turned)
    one, other = (read(tmp_path / name / "adapter", base) for name in ("one", "other"))
    assert apart(one, other) < 1e-5


def test_check_11_the_order_of_concatenated_runs_does_not_matter():
    three, weights = factors(3), [0.2, 0.5, 0.9]
    one = dense(three, "task_arithmetic", weights=weights)
    assert apart(one, dense(three[::-1], "task_arithmetic", weights=weights[::-1])) < 1e-5


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
@pytest.mark.parametrize("density", [None, 0, 1.5])
def test_check_12_a_density_that_is_missing_or_none_is_refused_by_name(method: str, density: float | None):
    assert 0 < options_of(MethodSpec(name=method)).density < 1  # left out: the method's own
    with pytest.raises(ConfigurationError, match=r"method\.options\.density"):
        fused(toy(SIX), method, density=density)


def test_check_12_a_missing_density_is_a_type_error_in_peft(base: str, tmp_path: Path):
    two = adapters(base, tmp_path / "two", PLAIN, PLAIN)
    with pytest.raises(TypeError):
        two.by_peft([1.0, 1.0], "ties")


def test_check_12_an_adapter_name_that_exists_is_refused_and_a_run_is_replaced_as_a_whole(base: str, tmp_path: Path):
    two = adapters(base, tmp_path / "two", PLAIN, PLAIN)
    before = two.updates("adapter-1")
    two.model.add_weighted_adapter(two.names, [1.0, 1.0], "adapter-1", combination_type="cat")
    assert apart(two.updates("adapter-1"), before) == 0  # PEFT says nothing and does nothing
    saved(two.vectors(), "average", tmp_path / "run", base)
    saved(two.vectors(), "task_arithmetic", tmp_path / "run", base, coefficient=2.0)
    assert apart(read(tmp_path / "run" / "adapter", base), summed(two.vectors(), [2.0, 2.0])) < 1e-6
    model = load(load_base(ModelSpec(base=base), "cpu"), tmp_path / "run" / "adapter", name="fused")
    with pytest.raises(ConfigurationError, match="already has an adapter"):
        load(model, tmp_path / "run" / "adapter", name="fused")


def test_check_12_dora_is_refused(base: str, tmp_path: Path):
    with pytest.raises(ConfigurationError, match="no sum of matrices"):
        adapters(base, tmp_path / "dora", PLAIN | {"use_dora": True}).vectors()


def test_check_12_biases_and_whole_modules_are_refused(base: str, tmp_path: Path):
    with pytest.raises(ConfigurationError, match="trains biases"):
        adapters(base, tmp_path / "bias", PLAIN | {"lora_bias": True}).vectors()
    with pytest.raises(ConfigurationError, match="trains whole modules"):
        adapters(base, tmp_path / "modules", PLAIN | {"modules_to_save": ["lm_head"]}).vectors()


def test_check_12_an_adapter_of_another_base_is_refused(base: str, tmp_path: Path):
    one = adapters(base, tmp_path / "one", PLAIN)
    other = tiny_base(tmp_path / "other", layers=1, hidden=64)
    with pytest.raises(DataError, match="trained on the same base"):
        read_vectors([Source("adapter-1", one.folder / "adapter-1")], ModelSpec(base=str(other)))
