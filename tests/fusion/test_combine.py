"""Trimming, dropping, electing: against their definitions and against PEFT's own functions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging_support import dense, factors, fused, setting, toy
from peft.utils import merge_utils

from core.errors import ConfigurationError
from core.fusion.combine import default_coefficient
from core.fusion.delta import Delta, TaskVector
from core.fusion.methods import fusion_method, fusion_methods, options_of
from core.fusion.trimming import magnitude_at
from core.jobs.sinks import Cancelled
from core.schema import MethodSpec

OWN = ("average", "task_arithmetic", "ties", "dare_linear", "dare_ties", "magnitude_prune")
BY_ENTRY = ("ties", "dare_linear", "dare_ties", "magnitude_prune")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[path], other[path]) for path in one.keys() | other.keys())


def test_every_method_is_known():
    assert set(OWN) <= set(fusion_methods())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False, width=32), min_size=1, max_size=60
    ),
    st.data(),
)
def test_the_threshold_is_the_one_of_a_sort(values: list[float], data: st.DataObject):
    whole = torch.tensor(values)
    keep = data.draw(st.integers(1, len(values)))
    cut = data.draw(st.integers(0, len(values)))
    found = magnitude_at(lambda: (part for part in (whole[:cut], whole[cut:])), keep)
    assert found == whole.abs().sort(descending=True).values[keep - 1].item()


def test_the_threshold_is_right_for_numbers_that_share_their_upper_bits():
    whole = 1 + torch.arange(5000) * 2.0**-23
    assert magnitude_at(lambda: [whole], 1234) == whole.flip(0)[1233].item()


def test_trimming_the_model_takes_the_largest_of_all_projections_and_trimming_tensors_of_each():
    run = [TaskVector("run-1", {"big": Delta(torch.full((2, 5), 9.0)), "small": Delta(torch.full((2, 5), 0.1))})]
    whole = dense(run, "ties", density=0.5, trim="model")
    assert whole["big"].all() and not whole["small"].any()
    each = dense(run, "ties", density=0.5, trim="tensor")
    assert each["big"].count_nonzero() == each["small"].count_nonzero() == 5


def test_global_trimming_equals_trimming_the_flattened_model():
    runs, weights = factors(3, seed=4), [1.0, 0.5, 2.0]
    flat = [torch.cat([vector.deltas[path].dense().flatten() for path in ("x", "y")]) for vector in runs]
    kept = []
    for tensor in flat:
        limit = tensor.abs().kthvalue(len(tensor) - int(0.2 * len(tensor)) + 1).values
        kept.append(torch.where(tensor.abs() >= limit, tensor, 0))
    stacked = torch.stack(kept)
    sign = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agree = stacked.sign() == sign
    added = (stacked * torch.tensor(weights)[:, None] * agree).sum(0)
    for merge, wanted in (("sum", added), ("mean", added / agree.sum(0).clamp(min=1))):
        found = dense(runs, "ties", weights=weights, merge=merge)
        torch.testing.assert_close(torch.cat([found[path].flatten() for path in ("x", "y")]), wanted)


@pytest.mark.parametrize("majority", ["total", "frequency"])
def test_by_tensor_the_result_is_that_of_peft(majority: str):
    runs, weights = factors(3), torch.tensor([0.7, 1.0, 1.3])
    tensors = [vector.deltas["x"].dense() for vector in runs]
    given = {"weights": weights.tolist()}
    ties = dense(runs, "ties", trim="tensor", majority_sign=majority, **given)["x"]
    torch.testing.assert_close(ties, merge_utils.ties(tensors, weights, 0.2, majority))
    pruned = dense(runs, "magnitude_prune", **given)["x"]
    torch.testing.assert_close(pruned, merge_utils.magnitude_prune(tensors, weights, 0.2))


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_draws_what_peft_draws_from_the_seed(method: str):
    runs = [TaskVector(vector.name, {"x": vector.deltas["x"]}) for vector in factors(3)]
    tensors, weights = [vector.deltas["x"].dense() for vector in runs], torch.full((3,), 0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        wanted = getattr(merge_utils, method)(tensors, weights, 0.5)
    torch.testing.assert_close(dense(runs, method, seed=11, coefficient=0.5)["x"], wanted)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_follows_the_seed_alone_and_leaves_the_random_state(method: str):
    runs = factors(2)
    state = torch.random.get_rng_state()
    first = dense(runs, method, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert same(dense(runs, method, seed=1), first)
    assert not same(dense(runs, method, seed=2), first)


def test_full_density_trims_and_drops_nothing():
    runs = factors(2)
    wanted = dense(runs, "task_arithmetic", coefficient=0.4)
    for method in ("dare_linear", "magnitude_prune"):
        found = dense(runs, method, density=1.0, coefficient=0.4)
        for path in wanted:
            torch.testing.assert_close(found[path], wanted[path])


def test_coefficients_are_the_methods_own_where_none_is_given():
    one, other = toy([[2.0, 4.0]])[0], TaskVector("run-2", {"x": Delta(torch.tensor([[2.0, 4.0]]))})
    pair, whole = [one, other], {"density": 1.0}
    expected = {
        ("average", ()): 1.0,
        ("task_arithmetic", ()): 2 * 0.5,
        ("dare_linear", ("density",)): 2 * 0.5,
        ("magnitude_prune", ("density",)): 2 * 0.5,
        ("ties", ("density",)): 1.0,
        ("dare_ties", ("density",)): 1.0,
    }
    for (method, needs), factor in expected.items():
        found = dense(pair, method, **{name: whole[name] for name in needs})["x"]
        torch.testing.assert_close(found, torch.tensor([[2.0, 4.0]]) * factor)
    for method in ("ties", "dare_ties"):
        found = dense(pair, method, merge="sum", **whole)["x"]
        torch.testing.assert_close(found, torch.tensor([[4.0, 8.0]]) * 0.3)
    assert [default_coefficient(runs) for runs in (1, 2, 3, 4, 8)] == [1.0, 0.5, 0.4, 0.3, 0.3]


@pytest.mark.parametrize("method", OWN)
def test_a_projection_that_a_run_does_not_touch_counts_as_zeros(method: str):
    one, other = factors(2)
    partial = TaskVector("run-2", {"y": other.deltas["y"]})
    filled = TaskVector("run-2", {"x": Delta(torch.zeros(other.deltas["x"].shape)), "y": other.deltas["y"]})
    found, wanted = dense([one, partial], method, seed=5), dense([one, filled], method, seed=5)
    assert found.keys() == {"x", "y"}
    for path in found:
        torch.testing.assert_close(found[path], wanted[path])


def test_weighted_sums_of_adapters_stay_factors_and_anything_else_is_a_matrix():
    runs = factors(3, rank=4)
    for method in ("average", "task_arithmetic"):
        assert all(delta.up.shape[1] == 12 and delta.low_rank for delta in fused(runs, method).deltas.values())
    for method in BY_ENTRY:
        assert not any(delta.low_rank for delta in fused(runs, method).deltas.values())
    full = TaskVector("run-4", {"x": Delta(torch.ones(40, 48))})
    mixed = fused([*runs, full], "average")
    assert not mixed.deltas["x"].low_rank and mixed.deltas["y"].low_rank
    alone = sum(vector.deltas["x"].dense() for vector in runs)
    torch.testing.assert_close(mixed.deltas["x"].dense(), (alone + 1) / 4)


def test_the_weights_of_weighted_sums_are_said_as_coefficients():
    for method, said in (("task_arithmetic", True), ("dare_linear", True), ("ties", False)):
        job = setting(factors(2), method, weights=[0.25, 0.75])
        result = fusion_method(method).fuse(job, options_of(job.spec.method))
        tables = [event for event in job.sink.of("table") if event["name"] == "coefficients"]
        assert bool(tables) is said
        assert result.facts["weights"] == [0.25, 0.75]
        if said:
            assert tables[0]["rows"] == [["run-1", 0.25], ["run-2", 0.75]]


@pytest.mark.parametrize("method", OWN)
def test_every_method_stops_when_asked(method: str):
    job = setting(factors(2), method)
    job.sink.stop = True
    with pytest.raises(Cancelled):
        fusion_method(method).fuse(job, options_of(job.spec.method))


def test_progress_counts_the_projections():
    job = setting(factors(2), "ties")
    fusion_method("ties").fuse(job, options_of(job.spec.method))
    assert [(event["step"], event["total"]) for event in job.sink.of("progress")] == [(1, 2), (2, 2)]


@pytest.mark.parametrize("method", ["task_arithmetic", *BY_ENTRY])
def test_weights_for_another_number_of_runs_are_refused_before_anything_is_queued(method: str):
    options = options_of(MethodSpec(name=method, options={"weights": [1.0, 2.0]}))
    fusion_method(method).check(options, ["run-1", "run-2"], [])
    with pytest.raises(ConfigurationError, match="2 weights for 3 runs"):
        fusion_method(method).check(options, ["run-1", "run-2", "run-3"], [])


@pytest.mark.parametrize("method", BY_ENTRY)
def test_methods_that_change_entries_refuse_factors_before_anything_is_queued(method: str):
    options = options_of(MethodSpec(name=method, options={"form": "concatenated"}))
    with pytest.raises(ConfigurationError, match="no sum of the runs' factors"):
        fusion_method(method).check(options, ["run-1", "run-2"], [])
