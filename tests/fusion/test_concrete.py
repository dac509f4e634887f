"""Concrete Task Arithmetic and Concrete AdaMerging; numbers of the specification by their check."""

from __future__ import annotations

import math

import pytest
import torch
from learned_support import Unlabelled, base_folder, fuse, resumed, same, setting_for, stopping

from core.errors import ConfigurationError
from core.fusion.combine import weighted_sum
from core.fusion.delta import Delta, TaskVector
from core.fusion.learned.adamerging import coefficients_of, objective_of
from core.fusion.learned.concrete import Inner, MaskLearner
from core.fusion.learned.masks import Masks, StructuredMasks, logit_gradient, rescaled, sample
from core.fusion.learned.objective import pull
from core.fusion.learned.sums import Coefficients, parts_of
from core.fusion.methods import options_of
from core.jobs.sinks import Cancelled
from core.models import load_base

METHODS = ("concrete_task_arithmetic", "concrete_adamerging")
FEW = {"steps": 3, "evaluate_every": 3, "learning_rate": 0.1}


def options_for(method: str, **rest) -> dict:
    more = {"coefficient_steps": 3, "coefficient_learning_rate": 0.05} if method == "concrete_adamerging" else {}
    return FEW | more | rest


def draws(logit: float, temperature: float = 0.5, count: int = 1_000_000) -> torch.Tensor:
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0))
    return sample(torch.full((count,), logit), uniform, temperature)


def learner_of(setting, *, inner: bool = False, fixed_start: float = 0.3) -> MaskLearner:
    options, parts = options_of(setting.spec.method), parts_of(setting.vectors, "cpu")
    kind = StructuredMasks if options.mask == "structured" else Masks
    if inner:
        weights = coefficients_of(setting, parts, options)
        lower = Inner(weights, options.base_learning_rate, options.stale_inner)
    else:
        weights, lower = Coefficients(parts, setting.names, "task", fixed_start, "none"), None
        weights.values.requires_grad_(False)
    masks = kind(parts, options.temperature, setting.seed)
    return MaskLearner(parts, masks, weights, objective_of(setting, options), options, lower)


def test_concrete_check_1_mask_rescaling_and_merged_weights_of_known_noise():
    mask = sample(torch.tensor([0.0, 1, -1, 2]), torch.tensor([0.1, 0.5, 0.9, 0.25]), 0.5)
    assert mask.tolist() == pytest.approx([0.012195, 0.880797, 0.916403, 0.858486], abs=1e-5)
    assert float(mask.mean()) == pytest.approx(0.666970, abs=1e-5)
    scaled = rescaled(mask)
    assert scaled.tolist() == pytest.approx([0.018284, 1.320594, 1.373979, 1.287143], abs=1e-5)
    merged = 0.3 * torch.tensor([1, -2, 3, 0.5]) * scaled
    assert merged.tolist() == pytest.approx([0.005485, -0.792356, 1.236581, 0.193071], abs=1e-5)


@pytest.mark.parametrize(("logit", "mean", "share"), [(0, 0.5, 0.5), (2, 0.851, 0.881), (-2, 0.149, 0.119)])
def test_concrete_check_2_statistics_of_the_sampler(logit, mean, share):
    mask = draws(logit)
    assert float(mask.mean()) == pytest.approx(mean, abs=0.003)
    assert float((mask > 0.5).float().mean()) == pytest.approx(share, abs=0.003)
    if logit == 0:
        assert float(mask.std()) == pytest.approx(math.sqrt(math.pi / 8 - 0.25), abs=0.003)


def test_concrete_check_2_the_drawn_masks_have_the_samplers_statistics():
    parts = parts_of([TaskVector("run-1", {"w": Delta(torch.ones(1000, 1000))})], "cpu")
    masks = Masks(parts, 0.5, seed=0)
    masks.logits["w"].data.fill_(2)
    masks.draw("step 0")
    assert float(masks.current["w"].mean()) == pytest.approx(0.851, abs=0.003)
    mean, ((path, own_mean, above),) = masks.density()
    assert (path, mean) == ("w", pytest.approx(own_mean)) and above == pytest.approx(0.881, abs=0.003)
    masks.draw("final 0", "discrete")
    assert set(masks.current["w"].unique().tolist()) == {0.0, 1.0}
    assert float(masks.current["w"].mean()) == pytest.approx(0.881, abs=0.003)
    masks.draw("final 0", "expected")
    assert masks.current["w"].unique().tolist() == pytest.approx([0.880797], abs=1e-5)


def test_concrete_check_3_root_mean_square_and_range_of_the_rescaled_mask_at_zero():
    scaled = rescaled(draws(0))
    assert float(scaled.square().mean().sqrt()) == pytest.approx(math.sqrt(math.pi / 2), abs=0.005)
    assert float(scaled.min()) >= 0 and float(scaled.max()) <= 2.005


@pytest.mark.parametrize("kind", [Masks, StructuredMasks])
def test_concrete_check_4_rescaled_masks_have_mean_one_and_constant_ones_change_nothing(tmp_path, kind):
    setting = setting_for(tmp_path, "concrete_task_arithmetic")
    parts = parts_of(setting.vectors, "cpu")
    masks = kind(parts, 0.5, seed=0)
    masks.draw("step 0")
    for mask in masks.current.values():
        assert float(rescaled(mask).mean()) == pytest.approx(1, abs=1e-6)
    expected = weighted_sum(setting.vectors, [0.3, 0.3])
    for constant in (0.01, 0.5, 1.0):
        masks.current = {name: torch.full_like(mask, constant) for name, mask in masks.current.items()}
        for path, part in parts.items():
            found = masks.apply(path, part.weighted(torch.full((len(part.runs),), 0.3)))
            assert (found.dense() - expected[path].dense()).abs().max() < 1e-6


def test_concrete_check_5_the_loss_does_not_depend_on_the_scale_of_the_mask():
    chance = torch.Generator().manual_seed(0)
    mask = torch.rand(20, 10, generator=chance, dtype=torch.float64).requires_grad_()
    weights = torch.randn(20, 10, generator=chance, dtype=torch.float64)
    (rescaled(mask) * weights).square().sum().backward()
    products = mask * mask.grad
    assert products.sum().abs() < 1e-4 * products.abs().sum()
    detached = mask.detach().requires_grad_()
    (detached / detached.detach().mean() * weights).square().sum().backward()
    products = detached * detached.grad
    assert products.sum().abs() > 1e-4 * products.abs().sum()


def test_the_closed_form_of_the_logits_gradient_is_that_of_autograd():
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 10, generator=chance).requires_grad_()
    uniform, given = (torch.rand(20, 10, generator=chance) for _ in range(2))
    mask = sample(logits, uniform, 0.5)
    rescaled(mask).backward(given)
    assert torch.allclose(logit_gradient(given.clone(), mask.detach(), 0.5), logits.grad, atol=1e-6)


def test_concrete_check_6_all_tasks_have_the_same_mask(tmp_path):
    setting = setting_for(tmp_path, "concrete_task_arithmetic")
    parts = parts_of(setting.vectors, "cpu")
    masks = Masks(parts, 0.5, seed=0)
    masks.draw("step 0")
    path = next(path for path, part in parts.items() if len(part.runs) == 2)
    each = [
        masks.apply(path, parts[path].weighted(weights)).dense() / parts[path].weighted(weights).dense()
        for weights in (torch.tensor([1.0, 0]), torch.tensor([0.0, 1]))
    ]
    assert torch.allclose(*each, rtol=1e-4)


@pytest.mark.parametrize("rate", [1.0, 1e-3])
def test_concrete_check_7_the_inner_step_moves_each_coefficient_by_its_learning_rate(tmp_path, rate):
    setting = setting_for(
        tmp_path, "concrete_adamerging", base_learning_rate=rate, clamp="none", granularity="task", **FEW
    )
    learner = learner_of(setting, inner=True)
    learner.advance(0)
    moved = (learner.coefficients.values - 0.3).abs()
    assert moved.flatten().tolist() == pytest.approx([rate] * 2, rel=1e-3)


def test_concrete_check_8_only_the_logits_change_in_concrete_task_arithmetic(tmp_path):
    setting = setting_for(tmp_path, "concrete_task_arithmetic", **FEW)
    before = {name: value.clone() for name, value in load_base(setting.spec.model, "cpu").state_dict().items()}
    learner = learner_of(setting)
    start = learner.coefficients.values.clone()
    for step in range(2):
        learner.advance(step)
    after = {name.replace(".base.", "."): value for name, value in setting.candidate.model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(learner.coefficients.values, start)
    assert all((logits != 0).any() for logits in learner.masks.logits.values())
    assert learner.masks.logits.keys() == {path for v in setting.vectors for path in v.deltas}


@pytest.mark.parametrize("mask", ["dense", "structured"])
def test_concrete_check_9_the_outer_gradient_is_that_at_fixed_coefficients_noise_and_batch(tmp_path, mask):
    setting = setting_for(tmp_path, "concrete_adamerging", mask=mask, **FEW)
    learner = learner_of(setting, inner=True)
    masks, objective = learner.masks, learner.objective
    for logits in masks.logits.values():
        logits.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    masks.draw("step 0")
    learner.inner.step(learner.parts, masks, objective, 0)
    held = learner.coefficients.values.detach().clone()
    made = _detached(learner)
    for delta in made.values():
        for tensor in (delta.up, delta.down):
            if tensor is not None:
                tensor.requires_grad_()
    gradients = objective.gradients(made, [1])
    for path, part in learner.parts.items():
        masks.learn_from(path, learner._sum(path, part), gradients[path])
    direction = {name: logits.grad.sign() for name, logits in masks.logits.items()}
    expected = sum(float((logits.grad * direction[name]).sum()) for name, logits in masks.logits.items())
    losses = []
    for sign in (1, -1):
        for name, logits in masks.logits.items():
            logits.data.add_(direction[name], alpha=sign * 5e-3)
        masks.draw("step 0")
        losses.append(_batch_loss(learner, 1))
        for name, logits in masks.logits.items():
            logits.data.sub_(direction[name], alpha=sign * 5e-3)
    assert (losses[0] - losses[1]) / 1e-2 == pytest.approx(expected, rel=1e-2)
    assert torch.equal(learner.coefficients.values, held)


def _detached(learner: MaskLearner) -> dict[str, Delta]:
    with torch.no_grad():
        return learner._made()


@torch.no_grad()
def _batch_loss(learner: MaskLearner, draw: int) -> float:
    objective, total = learner.objective, 0.0
    with objective.candidate.using(_detached(learner)):
        for task in objective.tasks:
            for question in objective._questions(task, task.batch(draw, objective.batch_size)):
                total += float(question.ask(objective.candidate).entropy.double().sum()) / question.prompts
    return total


def test_concrete_check_9_coefficients_start_anew_after_the_first_phase(tmp_path):
    setting = setting_for(tmp_path, "concrete_adamerging", **options_for("concrete_adamerging"), granularity="task")
    fuse(setting)
    tables = {event["step"]: event["rows"] for event in setting.sink.of("table") if event["name"] == "coefficients"}
    assert sorted(tables) == [0, 3, 6]
    moved = [abs(values[1] - 0.3) for values in tables[6]]
    assert max(moved) <= 3 * 0.05 + 1e-4  # three steps of Adam from 0.3, whatever the first phase left
    assert min(moved) > 0


def test_concrete_check_10_a_structured_mask_folds_into_the_factors():
    chance = torch.Generator().manual_seed(0)
    vector = TaskVector("run-1", {"w": Delta(torch.randn(7, 2, generator=chance), torch.randn(2, 5, generator=chance))})
    parts = parts_of([vector], "cpu")
    masks = StructuredMasks(parts, 0.5, seed=0)
    masks.draw("step 0")
    found = masks.apply("w", parts["w"].weighted(torch.ones(1)))
    outputs, inputs = masks._sides("w")
    assert found.low_rank and found.up.shape == (7, 2)
    assert (found.dense() - torch.outer(outputs, inputs) * vector.deltas["w"].dense()).abs().max() < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_concrete_check_11_without_labels_the_result_is_identical(tmp_path, method):
    labelled = setting_for(tmp_path, method, **options_for(method))
    bare = setting_for(tmp_path, method, **options_for(method))
    bare.tasks = [Unlabelled(task) for task in bare.tasks]
    assert same(fuse(labelled), fuse(bare))


@pytest.mark.parametrize("method", METHODS)
def test_concrete_check_12_a_seed_decides_the_mask_and_the_weights(tmp_path, method):
    first, again, other = (fuse(setting_for(tmp_path, method, seed=seed, **options_for(method))) for seed in (0, 0, 1))
    assert same(first, again) and not same(first, other)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mask", ["dense", "structured"])
def test_the_result_has_the_form_of_its_mask_and_its_label(tmp_path, method, mask):
    setting = setting_for(tmp_path, method, **options_for(method, mask=mask))
    fused = fuse(setting)
    assert {delta.low_rank for delta in fused.deltas.values()} == {mask == "structured"}
    assert ("not the published method" in fused.facts["mask"]) == (mask == "structured")
    tables = [event for event in setting.sink.of("table") if event["name"] == "mask_density"]
    assert tables[0]["columns"] == ["path", "mean", "above_half"]
    assert setting.sink.of("metrics")[0]["values"]["mask_density"] == pytest.approx(0.5, abs=0.05)
    assert [event for event in setting.sink.of("log") if "draws of the final mask" in event["message"]]


@pytest.mark.parametrize(("method", "after"), [(METHODS[0], 2), (METHODS[1], 2), (METHODS[1], 6)])
def test_cancelled_and_resumed_it_ends_as_if_nothing_had_happened(tmp_path, method, after):
    options = options_for(method, steps=4, evaluate_every=1)
    whole = fuse(setting_for(tmp_path / "whole", method, **options))
    setting = stopping(setting_for(tmp_path / "parts", method, **options), after=after)
    with pytest.raises(Cancelled) as stop:
        fuse(setting)
    assert stop.value.step == after  # in the second phase where it is past the fourth
    assert same(fuse(resumed(setting)), whole)


def test_a_stale_inner_gradient_is_that_of_the_step_before(tmp_path):
    options = {"base_learning_rate": 0.2, "clamp": "none", **FEW}
    fresh, stale = (
        learner_of(setting_for(tmp_path, "concrete_adamerging", stale_inner=is_stale, **options), inner=True)
        for is_stale in (False, True)
    )
    for learner in (fresh, stale):
        learner.advance(0)
    assert torch.equal(fresh.coefficients.values, stale.coefficients.values)  # nothing is stale at first
    for learner in (fresh, stale):
        learner.masks.draw("step 1")
        learner.inner.step(learner.parts, learner.masks, learner.objective, 2)
    assert not torch.equal(fresh.coefficients.values.grad, stale.coefficients.values.grad)


def test_the_lower_level_gets_the_gradient_of_the_masked_sum(tmp_path):
    setting = setting_for(tmp_path, "concrete_adamerging", **FEW)
    learner = learner_of(setting, inner=True)
    learner.masks.draw("step 0")
    weights = learner.coefficients
    made = {p: learner.masks.apply(p, part.weighted(weights.of(p, part))) for p, part in learner.parts.items()}
    pull(made, learner.objective.gradients(made, [0]))
    found = weights.values.grad.clone()
    weights.values.grad = None
    learner.inner.step(learner.parts, learner.masks, learner.objective, 0)
    assert torch.equal(found, weights.values.grad)


def test_factors_are_refused_before_anything_is_learned(tmp_path):
    base_folder(tmp_path)
    setting = setting_for(tmp_path, "concrete_task_arithmetic", form="concatenated", **FEW)
    with pytest.raises(ConfigurationError, match="single entries"):
        fuse(setting)
    assert not setting.sink.of("metrics")
    assert fuse(setting_for(tmp_path, "concrete_task_arithmetic", form="concatenated", mask="structured", **FEW))
