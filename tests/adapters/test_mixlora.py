"""The checks of Conditional MixLoRA (Shen et al., arXiv 2402.15896) that concern text."""

from __future__ import annotations

from typing import Any

import one_layer
import pytest
import torch
from adapters_support import TASKS, batch, layers_of, made, tiny
from adapters_support import Row as MatrixRow
from one_layer import parts
from torch import Tensor

from core.adapters.attach import attach, tape_of
from core.adapters.cells import Cell, Linear, Site, plan
from core.adapters.layer import MixtureLayer
from core.adapters.tape import Addressing
from core.errors import ConfigurationError
from core.evaluation.view import select
from core.schema import MethodSpec
from tests.support.shapes import LLAMA2_7B, count

MODES = ["conditional", "input", "shared", "random"]
GATES = ["straight_through", "hard"]
modes = pytest.mark.parametrize("mode", MODES)


def site_of(d: int = 16, o: int = 12, experts: int = 6, rank: int = 3, alpha: float = 6, **gate: Any) -> Site:
    parts = {"down": "pool", "up": "pool", "gate": {"word": "conditional", **gate}}
    return plan([Cell(experts=experts, rank=rank, alpha=alpha, **parts)], [Linear("layer.0.proj", d, o)])[0]


def layer_of(site: Site, warm: bool = True, seed: int = 0) -> MixtureLayer:
    """One adapted linear layer in float64; ``warm``: its up pool is away from zero."""
    built = one_layer.layer_of(site, seed)
    if warm:
        with torch.no_grad():
            built.tessera_up["default"].weight.normal_()
    return built


def delta(built: MixtureLayer, x: Tensor) -> Tensor:
    built.tape.addressing = Addressing(shape=tuple(x.shape[:2]))
    return built(x) - built.base_layer(x)


def inputs(rows: int = 5, d: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(rows, 4, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def meetings(built: MixtureLayer) -> Tensor:
    """(batch, experts, experts): which down factor meets which up factor."""
    return built.slots["default"].routing.folded.squeeze(1)


def test_01_counts():
    full = site_of(64, 48, 16, 4)
    assert full.parameters() == 7_936
    assert site_of(64, 48, 16, 4, mode="input").parameters() == 3_840
    assert sum(p.numel() for n, p in layer_of(full).named_parameters() if "tessera_" in n) == 7_936


@pytest.mark.parametrize(
    ("experts", "rank", "full", "independent", "pools", "active"),
    [
        (16, 2, 112_852_992, 76_414_976, 39_976_960, 4_997_120),
        (16, 4, 149_291_008, 76_414_976, 39_976_960, 9_994_240),
        (32, 4, 298_582_016, 152_829_952, 79_953_920, 9_994_240),
        (32, 8, 444_334_080, 152_829_952, 79_953_920, 19_988_480),
    ],
)
def test_01_counts_on_llama_7b(experts: int, rank: int, full: int, independent: int, pools: int, active: int):
    sizes = {"experts": experts, "rank": rank}
    assert count("mixlora", LLAMA2_7B, **sizes) == full
    assert count("mixlora", LLAMA2_7B, mode="input", **sizes) == independent
    assert count("mixlora", LLAMA2_7B, mode="random", **sizes) == pools
    assert count("lora", LLAMA2_7B, modules="all-linear", rank=rank) == active
    assert count("lora", LLAMA2_7B, modules="all-linear", rank=experts) == pools  # the fair partner by size


def test_01_shares_of_the_base():
    shares = [count("mixlora", LLAMA2_7B, experts=e, rank=r) / LLAMA2_7B.parameters
              for e, r in ((16, 2), (16, 4), (32, 4), (32, 8))]  # fmt: skip
    assert shares == pytest.approx([0.0167, 0.0222, 0.0443, 0.0659], abs=6e-5)


@modes
@pytest.mark.parametrize("gate", GATES)
def test_02_zero_start(mode: str, gate: str):
    built, x = layer_of(site_of(mode=mode, gate=gate), warm=False), inputs()
    assert not delta(built, x).any()


def test_03_shared_mode_with_all_factors_is_lora():
    built, x = layer_of(site_of(experts=3, rank=3, alpha=7, mode="shared")), inputs()
    down, _, up = parts(built)
    assert (delta(built, x) - 7 / 3 * x @ down.weight.t() @ up.weight.t()).abs().max() <= 1e-12


def test_03_other_orders_are_another_update():
    built = layer_of(site_of(experts=3, rank=3, alpha=3))
    down, gate, up = parts(built)
    lists = (torch.tensor([[2, 0, 1]]), torch.tensor([[1, 2, 0]]))
    even = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    routing = gate._routing(even, lists[0], even, lists[1])
    x = inputs(1)
    hidden = down.hidden(x @ down.weight.t(), Addressing())
    update = up.fold(hidden, routing.mixing, 1.0) @ up.weight.t()
    expected = sum(torch.outer(up.weight[:, j], down.weight[i]) for i, j in ((2, 1), (0, 2), (1, 0)))
    assert (update - x @ expected.t()).abs().max() <= 1e-12
    assert (update - x @ down.weight.t() @ up.weight.t()).abs().max() > 0.5


@modes
def test_04_one_factor_is_rank_one_lora(mode: str):
    built, x = layer_of(site_of(experts=1, rank=1, alpha=2, mode=mode)), inputs()
    down, _, up = parts(built)
    assert (delta(built, x) - 2 * x @ down.weight.t() @ up.weight.t()).abs().max() <= 1e-12
    assert torch.allclose(built.delta_weight("default").double(), 2 * up.weight @ down.weight, atol=1e-6)


@modes
def test_05_hard_routers_learn_nothing_and_only_picked_factors_learn(mode: str):
    built, x = layer_of(site_of(mode=mode, gate="hard")), inputs(1)
    delta(built, x).square().sum().backward()
    down, gate, up = parts(built)
    assert all(p.grad is None or not p.grad.any() for p in gate.parameters())
    picked = meetings(built)[0] != 0
    assert torch.equal(down.weight.grad.abs().sum(1) > 0, picked.any(1))
    assert torch.equal(up.weight.grad.abs().sum(0) > 0, picked.any(0))


@pytest.mark.parametrize("mode", MODES[:3])
def test_05_straight_through_routers_learn_and_the_forward_is_the_same(mode: str):
    x = inputs()
    hard, soft = (layer_of(site_of(mode=mode, gate=gate)) for gate in ("hard", "straight_through"))
    soft.load_state_dict(hard.state_dict())
    assert torch.equal(delta(hard, x), delta(soft, x))
    delta(soft, x).square().sum().backward()
    assert all(p.grad.any() for p in parts(soft)[1].parameters())
    start = layer_of(site_of(mode=mode), warm=False)
    delta(start, x).sum().backward()
    assert not any(p.grad.any() for p in parts(start)[1].parameters())


@modes
def test_06_first_step_moves_only_picked_up_factors(mode: str):
    built, x = layer_of(site_of(mode=mode, experts=12, rank=2), warm=False), inputs(2)
    delta(built, x).sum().backward()
    down, _, up = parts(built)
    assert not down.weight.grad.any()
    picked = (meetings(built) != 0).any(0).any(0)
    assert torch.equal(up.weight.grad.abs().sum(0) > 0, picked) and not picked.all()


def test_07_conditional_scores():
    site = site_of(experts=8, rank=3)
    built = layer_of(site)
    down, gate, _ = parts(built)
    with torch.no_grad():
        gate.pairing.mul_(20)
    downs = torch.stack([torch.randperm(8)[:3] for _ in range(10)])
    c, probs = gate.conditional(down.weight, downs)
    assert torch.allclose(c.sum(-1), torch.full((10,), 3.0, dtype=c.dtype))
    assert torch.allclose(probs.sum(-1), torch.ones(10, dtype=c.dtype))
    ratio = probs.amax(-1) / probs.amin(-1)
    assert (ratio <= torch.e**3).all() and ratio.max() > 1.5
    expected = sum((gate.pairing[i] @ down.weight[downs[0, i]]).softmax(-1) for i in range(3))
    assert torch.allclose(c[0], expected)


def test_08_without_its_weight_the_conditional_score_picks_nothing():
    x = inputs(20)
    independent = layer_of(site_of(mode="input"))
    for condition, same in ((0.0, True), (50.0, False)):
        built = layer_of(site_of(condition=condition))
        built.load_state_dict({**built.state_dict(), **independent.state_dict()})
        with torch.no_grad():
            parts(built)[1].pairing.mul_(20)
        delta(built, x)
        delta(independent, x)
        assert torch.equal(meetings(built), meetings(independent)) is same


ROW = MatrixRow("mixlora", "mixlora", {"rank": 2, "experts": 4})


def padded(data: dict[str, Tensor], columns: int = 4) -> dict[str, Tensor]:
    result = dict(data)
    for key in ("input_ids", "attention_mask", "token_role"):
        result[key] = torch.cat([data[key], torch.zeros(len(data[key]), columns, dtype=data[key].dtype)], 1)
    return result


def test_09_samples_do_not_see_their_company():
    model, data = made(ROW, warm=True).eval(), batch()
    data.pop("labels")
    expected = model(**data).logits
    order = torch.tensor([2, 0, 3, 1])
    shuffled = model(**{key: value[order] for key, value in data.items()}).logits
    assert torch.allclose(shuffled, expected[order], atol=1e-5)
    alone = model(**{key: value[2:3] for key, value in data.items()}).logits
    assert torch.allclose(alone, expected[2:3], atol=1e-5)
    assert torch.allclose(model(**padded(data)).logits[:, :12], expected, atol=1e-5)


def test_09_pooling_over_everything_as_released_sees_padding_and_answers():
    row = MatrixRow("all", "mixlora", {**ROW.options, "pool_over": "all"})
    model, data = made(row, warm=True).eval(), batch()
    data.pop("labels")
    expected = model(**data).logits
    picked = [slot.routing.folded for slot in tape_of(model).slots]
    model(**padded(data))
    assert any(not torch.equal(a, slot.routing.folded) for a, slot in zip(picked, tape_of(model).slots, strict=True))
    assert not torch.allclose(model(**padded(data)).logits[:, :12], expected, atol=1e-3)


@modes
def test_10_every_factor_is_picked_once(mode: str):
    built, x = layer_of(site_of(experts=7, rank=4, mode=mode)), inputs(9)
    delta(built, x)
    meeting, routing = meetings(built), built.slots["default"].routing
    assert meeting.shape == (9, 7, 7) and set(meeting.unique().tolist()) == {0.0, 1.0}
    for axis in (1, 2):
        assert (meeting.sum(axis) <= 1).all() and (meeting.sum(axis).sum(-1) == 4).all()
    assert routing.weights.shape == routing.probs.shape == (9, 1, 2, 7)
    assert torch.equal(routing.weights[:, 0, 0] > 0, meeting.any(2))
    assert torch.equal(routing.weights[:, 0, 1] > 0, meeting.any(1))
    for values in (routing.weights, routing.probs):
        assert torch.allclose(values.sum(-1), torch.ones_like(values.sum(-1)))


def test_11_shifted_and_scaled_scores_pick_the_same():
    built = layer_of(site_of())
    down, gate, _ = parts(built)
    pooled = torch.randn(10, 12, dtype=torch.float64)
    first = gate._picked(pooled, down.weight)
    shifted = gate._picked(pooled + torch.tensor([3.0] * 6 + [-2.0] * 6), down.weight)
    assert torch.equal(first[1], shifted[1]) and torch.equal(first[3], shifted[3])
    x = inputs()
    delta(built, x)
    before = built.slots["default"].weights[:, 0, 0]
    with torch.no_grad():
        gate.weight[:6] *= 7
    delta(built, x)
    assert torch.equal(built.slots["default"].weights[:, 0, 0], before)


def test_12_rank_of_the_updates():
    built, x = layer_of(site_of(d=16, o=16, experts=8, rank=2)), inputs(8)
    delta(built, x)
    down, _, up = parts(built)
    updates = [up.weight @ meeting.t() @ down.weight for meeting in meetings(built)]
    assert {int(torch.linalg.matrix_rank(update)) for update in updates} == {2}
    assert torch.linalg.matrix_rank(torch.cat(updates)) > 2


def test_13_decisions_are_frozen_after_the_prompt():
    """The matrix compares cached with full decoding; here the decision itself is followed."""
    model, data = made(ROW, warm=True).eval(), batch()
    with torch.no_grad():
        out = model(input_ids=data["input_ids"][:, :7], use_cache=True)
        decided = [slot.routing.folded.clone() for slot in tape_of(model).slots]
        rows = torch.tensor([3, 1])
        cache = select(out.past_key_values, rows)
        model(input_ids=data["input_ids"][rows, 7:9], past_key_values=cache, token_role=torch.full((2, 2), 2))
    for before, slot in zip(decided, tape_of(model).slots, strict=True):
        assert torch.equal(slot.routing.folded, before[rows])


def test_13_as_released_every_token_decides_anew():
    row = MatrixRow("all", "mixlora", {**ROW.options, "pool_over": "all"})
    model, data = made(row, warm=True).eval(), batch()
    with torch.no_grad():
        out = model(input_ids=data["input_ids"][:, :7], use_cache=True)
        decided = [slot.routing.folded.clone() for slot in tape_of(model).slots]
        model(input_ids=data["input_ids"][:, 7:8], past_key_values=out.past_key_values)
    assert any(not torch.equal(a, slot.routing.folded) for a, slot in zip(decided, tape_of(model).slots, strict=True))


def test_scale_is_twice_the_pool_over_the_rank_unless_said():
    assert layers_of(made(MatrixRow("a", "mixlora", {"rank": 4})))[0].scaling["default"] == 8
    control = made(MatrixRow("b", "mixlora", {"rank": 4, "alpha": 8}))
    assert layers_of(control)[0].scaling["default"] == 2


def test_noise_only_shakes_training():
    built, x = layer_of(site_of(noise=100.0, experts=8)), inputs(20)
    built.eval()
    assert torch.equal(delta(built, x), delta(built, x))
    built.train()
    assert not torch.equal(delta(built, x), delta(built, x))


def test_merging_is_refused():
    model = made(ROW, warm=True)
    with pytest.raises(ConfigurationError, match="weighs its experts anew for each sample"):
        model.merge_adapter()
    with pytest.raises(ConfigurationError, match="pairs other factors"):
        layers_of(model)[0].delta_weight("default", torch.ones(4))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"down": "unique", "up": "unique"}, "down and up must both be 'pool'"),
        ({"rank": 5}, "5 factors cannot be picked from a pool of 4"),
        ({"up": {"word": "pool", "vectors": 3}}, "these are 4, 3 and 4"),
    ],
)
def test_what_does_not_go_together_is_explained(cell: dict, message: str):
    words = {"experts": 4, "rank": 2, "down": "pool", "up": "pool", "gate": "conditional", "modules": ["q_proj"]}
    with pytest.raises(ConfigurationError, match=message):
        attach(tiny(), MethodSpec(name="split", cells=[{**words, **cell}]), tasks=TASKS)


def test_nothing_saved_is_larger_than_tokens_times_factors():
    built, x = layer_of(site_of(d=8, o=12, experts=6, rank=3)), inputs(6, d=8)
    own = {p.data_ptr() for p in built.parameters()}
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (sizes.append(t.numel() * (t.data_ptr() not in own)), t)[1], lambda t: t
    ):
        built(x)
    assert 0 < max(sizes) <= 24 * max(12, 6 * 3)
