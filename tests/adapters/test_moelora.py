"""The fourteen checks of MoELoRA (Luo et al., arXiv 2402.12851)."""

from __future__ import annotations

import math
from typing import Any

import one_layer
import pytest
import torch
from adapters_support import TASKS, batch, gradients, layers_of, loss_of, made, tiny
from adapters_support import Row as MatrixRow
from one_layer import parts
from torch import Tensor
from torch.nn import functional

from core.adapters.attach import attach, tape_of
from core.adapters.cells import Cell, Linear, Site, plan
from core.adapters.layer import MixtureLayer
from core.adapters.losses import balance_loss
from core.adapters.modules.contrastive import contrastive_loss, draw
from core.adapters.tape import PAD, Addressing
from core.errors import ConfigurationError
from core.schema import MethodSpec
from tests.support.shapes import LLAMA2_7B, count


def site_of(d: int = 16, o: int = 12, experts: int = 8, rank: int = 4, top_k: int = 2, **up: Any) -> Site:
    gate = {"word": "token", "top_k": top_k, "init": "normal"}
    cell = Cell(experts=experts, rank=rank, alpha=2 * rank, gate=gate, up={"word": "contrastive", **up})
    return plan([cell], [Linear("layer.0.proj", d, o)])[0]


def layer_of(site: Site, warm: bool = True, seed: int = 0) -> MixtureLayer:
    built = one_layer.layer_of(site, seed)
    if warm:
        with torch.no_grad():
            built.tessera_up["default"].weight.normal_()
            built.tessera_gate["default"].weight.normal_()
    return built


def delta(built: MixtureLayer, x: Tensor) -> Tensor:
    return built(x) - built.base_layer(x)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def all_there(outputs: Tensor) -> Tensor:
    return torch.ones(outputs.shape[:2], dtype=torch.bool)


def test_01_counts():
    assert site_of(64, 48).parameters() == 4_096
    assert site_of(64, 48, experts=1).parameters() == 512
    assert sum(p.numel() for n, p in layer_of(site_of(64, 48)).named_parameters() if "tessera_" in n) == 4_096


@pytest.mark.parametrize(
    ("modules", "expected", "lora"),
    [
        (["q_proj", "v_proj"], 18_874_368, 18_874_368),
        (["q_proj", "k_proj", "v_proj", "o_proj"], 37_748_736, 37_748_736),
        ("all-linear", 89_063_424, 89_948_160),
    ],
)
def test_01_counts_on_llama_7b_beside_lora_of_rank_36(modules: Any, expected: int, lora: int):
    assert count("moelora", LLAMA2_7B, modules=modules) == expected
    assert count("lora", LLAMA2_7B, modules=modules, rank=36) == lora
    assert count("moelora", LLAMA2_7B) == 18_874_368  # q and v are the default
    assert 18_874_368 / LLAMA2_7B.parameters == pytest.approx(0.00280, abs=5e-6)


def test_02_zero_start(x: Tensor):
    built = layer_of(site_of(), warm=False)
    assert torch.equal(built(x), built.base_layer(x))


def test_03_one_expert_is_lora(x: Tensor):
    built = layer_of(site_of(experts=1, top_k=1))
    down, gate, up = parts(built)
    update = delta(built, x)
    assert (update - 2 * x @ down.weight[0].t() @ up.weight[0].t()).abs().max() <= 1e-12
    update.square().sum().backward()
    assert not gate.weight.grad.any()


@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_04_identical_experts_are_lora(top_k: int, x: Tensor):
    built = layer_of(site_of(top_k=top_k))
    down, _, up = parts(built)
    with torch.no_grad():
        down.weight.copy_(down.weight[:1].expand_as(down.weight))
        up.weight.copy_(up.weight[:1].expand_as(up.weight))
    expected = 2 * x @ down.weight[0].t() @ up.weight[0].t()
    assert torch.allclose(delta(built, x), expected, rtol=1e-6, atol=1e-6)  # gates are float32


def test_05_zero_router_with_all_experts_is_their_mean(x: Tensor):
    built = layer_of(site_of(top_k=8))
    down, gate, up = parts(built)
    with torch.no_grad():
        gate.weight.zero_()
    outputs = [2 * x @ down.weight[i].t() @ up.weight[i].t() for i in range(8)]
    assert torch.allclose(delta(built, x), torch.stack(outputs).mean(0), atol=1e-10)


def test_06_sparsity(x: Tensor):
    built = layer_of(site_of())
    update = delta(built, x)
    weights = built.slots["default"].weights
    assert ((weights != 0).sum(-1) == 2).all()
    assert torch.allclose(weights.sum(-1), torch.ones_like(weights.sum(-1)), atol=1e-6)
    update[0, 0].sum().backward()  # one token alone
    down, _, up = parts(built)
    unused = weights[0, 0] == 0
    assert not down.weight.grad[unused].any() and not up.weight.grad[unused].any()
    assert (up.weight.grad[~unused].abs().amax((1, 2)) > 0).all()


def test_07_load_balance():
    chosen = torch.stack([torch.arange(32) % 8, (torch.arange(32) + 1) % 8], 1)
    weights = torch.zeros(1, 1, 32, 8).scatter(-1, chosen.view(1, 1, 32, 2), 0.5)
    even = torch.full((1, 1, 32, 8), 1 / 8, requires_grad=True)
    value = balance_loss(even, weights)
    assert value.item() == pytest.approx(1.0) and (2 * value).item() == pytest.approx(2.0)
    first = torch.zeros(1, 1, 32, 8).scatter(-1, torch.tensor([0, 1]).expand(1, 1, 32, 2), 0.5)
    certain = torch.zeros(1, 1, 32, 8)
    certain[..., 0] = 1
    assert balance_loss(certain, first).item() == pytest.approx(4.0)
    needy = weights.clone().requires_grad_()
    balance_loss(even, needy).sum().backward()
    assert needy.grad is None and even.grad is not None


@pytest.mark.parametrize(
    ("temperature", "expected", "within"),
    [(1.0, 0.551445, 1e-6), (0.5, 0.239545, 1e-6), (0.1, 9.0796e-5, 1e-9), (0.07, 1.2497e-6, 1e-10)],
)
def test_08_contrastive_value(temperature: float, expected: float, within: float):
    """Two experts with two outputs each: equal within an expert, orthogonal between them."""
    outputs = torch.eye(2, dtype=torch.float64).repeat_interleave(2, 0).view(2, 2, 2) * 3
    value = contrastive_loss(outputs, all_there(outputs), temperature)
    assert value.item() == pytest.approx(expected, abs=within)
    one, negatives = math.exp(1 / temperature), 2
    assert value.item() == pytest.approx(-math.log(one / (one + negatives)), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("normalise", [True, False])
def test_09_equal_keys(value: float, normalise: bool):
    outputs = torch.full((2, 2, 4), value, dtype=torch.float64, requires_grad=True)
    loss = contrastive_loss(outputs, all_there(outputs), 0.1, normalise)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3), abs=1e-6) == pytest.approx(1.098612, abs=1e-6)
    assert torch.isfinite(outputs.grad).all()
    if value == 0:
        assert not outputs.grad.any()


def sample(seed: int = 0) -> Tensor:
    return torch.randn(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_10_invariances():
    outputs = sample()
    expected = contrastive_loss(outputs, all_there(outputs), positives="all")
    experts = outputs[torch.tensor([2, 0, 3, 1])]
    tokens = torch.stack([each[torch.randperm(6)] for each in outputs])
    scaled = outputs * (0.1 + 5 * torch.rand(4, 6, 1, dtype=torch.float64))
    for changed in (experts, tokens, scaled):
        assert torch.allclose(contrastive_loss(changed, all_there(changed), positives="all"), expected)
    bare = [contrastive_loss(o, all_there(o), normalise=False, positives="all") for o in (outputs, scaled)]
    assert not torch.allclose(*bare)


def test_10_one_drawn_positive_is_all_of_them_on_average():
    outputs = sample()
    torch.manual_seed(0)
    drawn = torch.stack([contrastive_loss(outputs, all_there(outputs), 1.0) for _ in range(2000)])
    assert drawn.std() > 0
    every = contrastive_loss(outputs, all_there(outputs), 1.0, positives="all")
    assert drawn.mean().item() == pytest.approx(every.item(), abs=4 * (drawn.std() / 2000**0.5).item())


def test_11_padding_changes_neither_loss(x: Tensor):
    built = layer_of(site_of(positives="all", weight=1.0)).train()
    values = []
    for columns in (5, 8):
        padded = torch.cat([x, 9 * torch.ones(3, columns - 5, 16, dtype=torch.float64)], 1)
        role = torch.ones(3, columns, dtype=torch.int8)
        role[:, 5:] = PAD
        built.tape.begin(Addressing(token_role=role))
        built(padded)
        slot = built.slots["default"]
        keep = role != PAD
        values.append((slot.losses["contrastive"], balance_loss(slot.probs[None], slot.weights[None], keep)))
    assert torch.allclose(values[0][0], values[1][0]) and torch.allclose(values[0][1], values[1][1])


def test_11_experts_with_one_token_are_left_out():
    outputs = sample().requires_grad_()
    counted = torch.zeros(4, 6, dtype=torch.bool)
    counted[0, :1], counted[1, :4], counted[2, :3] = True, True, True
    loss = contrastive_loss(outputs, counted, positives="all")
    loss.backward()
    assert torch.isfinite(outputs.grad).all() and not outputs.grad[[0, 3]].any()
    two = torch.stack([outputs.detach()[1], outputs.detach()[2]])
    assert torch.allclose(loss, contrastive_loss(two, counted[1:3], positives="all"))
    none = torch.zeros(4, 6, dtype=torch.bool)
    assert contrastive_loss(sample(), none).item() == 0
    alone = outputs.detach()[:1].requires_grad_()
    loss = contrastive_loss(alone, all_there(alone))
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(alone.grad).all()  # no negatives


def test_11_one_expert_has_no_contrastive_loss(x: Tensor):
    built = layer_of(site_of(experts=1, top_k=1, weight=1.0)).train()
    built(x)
    assert built.slots["default"].losses == {}


def cosines(outputs: Tensor) -> tuple[float, float]:
    """Mean cosine within experts and across them."""
    keys = functional.normalize(outputs.flatten(0, 1), dim=-1)
    alike = keys @ keys.t()
    owner = torch.arange(outputs.shape[0]).repeat_interleave(outputs.shape[1])
    own = owner[:, None] == owner
    off = ~torch.eye(len(own), dtype=torch.bool)
    return alike[own & off].mean().item(), alike[~own].mean().item()


def test_12_it_separates_experts():
    torch.manual_seed(0)
    down = torch.randn(4, 3, 16)
    up = (0.01 * torch.randn(4, 12, 3)).requires_grad_()
    tokens = torch.randn(4, 16, 16)

    def outputs() -> Tensor:
        return tokens @ down.transpose(1, 2) @ up.transpose(1, 2)

    within, across = cosines(outputs().detach())
    optimiser = torch.optim.Adam([up], lr=1e-3)
    for _ in range(200):
        contrastive_loss(outputs(), all_there(tokens)).backward()
        optimiser.step()
        optimiser.zero_grad()
    after = cosines(outputs().detach())
    assert after[0] > within + 0.02 and after[1] < across


def test_12_the_loss_of_a_layer_is_that_of_its_routed_outputs(x: Tensor):
    built = layer_of(site_of(positives="all", weight=0.5, samples=64)).train()
    built(x)
    slot, (down, _, up) = built.slots["default"], parts(built)
    tokens, routed = x.flatten(0, 1), (slot.weights != 0).flatten(0, 1)
    outputs = torch.zeros(8, 15, 12, dtype=torch.float64)
    counted = torch.zeros(8, 15, dtype=torch.bool)
    for expert in range(8):
        mine = tokens[routed[:, expert]] @ down.weight[expert].t() @ up.weight[expert].t()
        outputs[expert, : len(mine)], counted[expert, : len(mine)] = mine, True
    expected = 0.5 * contrastive_loss(outputs, counted, positives="all")
    assert torch.allclose(slot.losses["contrastive"], expected)


def test_12_tokens_are_drawn_without_replacement_and_evenly():
    torch.manual_seed(0)
    routed = torch.rand(50, 3) < 0.5
    routed[:, 2] = False
    routed[4, 2] = True
    seen = torch.zeros(50, 3)
    for _ in range(400):
        drawn, counted = draw(routed, 8)
        assert counted.tolist() == [[True] * 8, [True] * 8, [True] + [False] * 7]
        for expert in range(2):
            assert len(set(drawn[expert].tolist())) == 8 and routed[drawn[expert], expert].all()
            seen[drawn[expert], expert] += 1
    share = seen[routed[:, 0], 0] / 400
    assert share.mean().item() == pytest.approx(8 / routed[:, 0].sum().item()) and share.std() < 0.05


def row(**options: Any) -> MatrixRow:
    return MatrixRow("moelora", "moelora", {"experts": 3, "after": 0, **options})


def test_13_without_weights_gradients_are_those_of_the_plain_mixture():
    data, found = batch(), []
    plain = {"rank": 4, "alpha": 8, "experts": 3, "dropout": 0.05, "balance": 0.0}
    start = made(row(), warm=True).state_dict()
    for chosen in (row(balance=0, contrastive=0), MatrixRow("molora", "molora", plain)):
        model = made(chosen).train()
        model.load_state_dict(start)
        torch.manual_seed(0)
        loss_of(model, data).backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


def test_13_before_its_step_the_loss_is_silent():
    data, found = batch(), []
    late, never = row(after=100, dropout=0), row(contrastive=0, dropout=0)  # its draws would move those of dropout
    for step, chosen in ((99, late), (0, never), (100, late)):
        model = made(chosen, warm=True).train()
        tape_of(model).step = step
        torch.manual_seed(0)
        loss_of(model, data).backward()
        found.append((gradients(model), set(tape_of(model).auxiliary_losses())))
    assert [names for _, names in found] == [{"balance"}, {"balance"}, {"balance", "contrastive"}]
    assert all(torch.equal(gradient, found[1][0][name]) for name, gradient in found[0][0].items())
    assert any(not torch.equal(gradient, found[1][0][name]) for name, gradient in found[2][0].items())


def test_losses_are_means_over_projections():
    model = made(row(balance=0.1, contrastive=0.2, samples=64, positives="all"), warm=True).train()
    model(**batch())
    tape = tape_of(model)
    losses = tape.auxiliary_losses()
    keep = batch()["token_role"] != PAD
    balances = [balance_loss(slot.probs[None], slot.weights[None], keep) for slot in tape.slots]
    assert losses["balance"].item() == pytest.approx(0.1 * torch.stack(balances).mean().item(), rel=1e-5)
    own = torch.stack([slot.losses["contrastive"] for slot in tape.slots])
    assert losses["contrastive"].item() == pytest.approx(own.mean().item(), rel=1e-6) and own.std() > 0
    assert len(own) == 6


def test_14_evaluation_is_deterministic_and_knows_no_losses():
    data = batch()
    model = made(row(contrastive=0.5), warm=True).eval()
    first = model(**data).logits
    assert set(tape_of(model).auxiliary_losses()) == {"balance"}
    assert torch.equal(model(**data).logits, first)
    without = made(row(contrastive=0), warm=True).eval()
    assert torch.equal(without(**data).logits, first)


def test_experts_start_apart():
    weight = layers_of(made(row()))[0].tessera_down["default"].weight
    assert not torch.equal(weight[0], weight[1]) and not torch.equal(weight[1], weight[2])


def test_it_needs_a_token_gate():
    cell = {"experts": 2, "up": "contrastive", "gate": "task", "modules": ["q_proj"]}
    with pytest.raises(ConfigurationError, match="a token gate"):
        attach(tiny(), MethodSpec(name="split", cells=[cell]), tasks=TASKS)


def test_nothing_saved_is_larger_than_tokens_times_experts_times_rank(x: Tensor):
    built = layer_of(site_of(samples=2, positives="all")).train()
    own = {p.data_ptr() for p in built.parameters()}
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (sizes.append(t.numel() * (t.data_ptr() not in own)), t)[1], lambda t: t
    ):
        built(x)
    # the matrices of all experts stand together for the products
    assert 0 < max(sizes) <= max(15 * max(12, 8 * 4), (8 * 4 + 8) * 16)
