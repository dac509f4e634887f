"""The thirteen checks of MoSLD (Zhao et al., arXiv 2412.08946), one test each, and its ablations."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from adapters_support import TASKS, batch, gradients, layers_of, made, tiny, warm_up
from adapters_support import Row as MatrixRow
from torch import nn
from torch.nn import functional

from core.adapters.attach import attach, load, save, tape_of
from core.adapters.cells import Cell, Linear, plan
from core.adapters.layer import MixtureLayer
from core.adapters.losses import balance_loss
from core.adapters.modules.gate import route
from core.adapters.tape import RoutingTape
from core.catalog import shapes, sites, trainable_parameters
from core.errors import ConfigurationError
from core.schema import MethodSpec, ModelSpec

LLAMA2_7B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
}  # fmt: skip


def mosld(**options) -> MethodSpec:
    return MethodSpec(name="mosld", options={"modules": ["q_proj", "v_proj"], "rank": 4, "experts": 3, **options})


def model_of(**options) -> nn.Module:
    return attach(tiny(), mosld(**options), tasks=TASKS)


def layer(inputs: int = 16, outputs: int = 24, **options) -> MixtureLayer:
    """One adapted linear layer by itself."""
    from core.adapters.methods import resolve

    cell = resolve(mosld(modules="all-linear", **options))
    torch.manual_seed(0)
    built = MixtureLayer(nn.Linear(inputs, outputs), RoutingTape())
    built._active_adapter = "default"
    built.update_layer("default", plan(cell, [Linear("layer.0.proj", inputs, outputs)])[0])
    return built


def warm(built: MixtureLayer) -> MixtureLayer:
    with torch.no_grad():
        built.tessera_up["default"].weight.normal_()
    return built


def test_01_parameters_of_one_layer():
    linear = [Linear("layer.0.proj", 16, 24)]
    shared = Cell(experts=3, rank=4, down="shared", gate="token")
    unique = Cell(experts=3, rank=4, down="unique", gate="token")
    assert (
        plan([shared], linear)[0].parameters()
        == 400
        == sum(p.numel() for name, p in layer().named_parameters() if "tessera_" in name)
    )
    assert plan([unique], linear)[0].parameters() == 528


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama2-7b")
    (folder / "config.json").write_text(json.dumps(LLAMA2_7B))
    return shapes(ModelSpec(base=str(folder)), folder / "cache")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("lora", {}, 4_194_304),
        ("molora", {"experts": [2, 4, 6, 8]}, 22_282_240),
        ("molora", {"experts": 5}, 22_282_240),
        ("mosld", {}, 13_893_632),
        ("mosld", {"experts": [8, 6, 4, 2]}, 13_893_632),
        ("mosld", {"experts": [5]}, 13_893_632),
        ("mola", {}, 22_282_240),
        ("mola", {"experts": [8, 6, 4, 2]}, 22_282_240),
        ("hydralora", {"experts": 3}, 64 * (8 * 4096 + 3 * 8 * 4096 + 3 * 4096)),
        ("hydralora", {"experts": 5}, 13_893_632),
    ],
)
def test_02_parameters_of_llama2_7b_from_its_config_alone(llama, name, options, expected):
    assert trainable_parameters(MethodSpec(name=name, options=options), llama) == expected


def test_02_the_published_allocation_gives_upper_layers_more_experts(llama):
    by_layer = {site.layer: site.experts for site in sites(MethodSpec(name="mosld"), llama)}
    assert [by_layer[layer] for layer in (0, 7, 8, 15, 16, 23, 24, 31)] == [2, 2, 4, 4, 6, 6, 8, 8]


def test_02_what_the_counts_say_of_each_other(llama):
    found = {name: trainable_parameters(MethodSpec(name=name), llama) for name in ("lora", "mola", "mosld")}
    assert 100 * found["mosld"] / llama.parameters == pytest.approx(0.206, abs=5e-4)
    assert found["mosld"] / found["mola"] == pytest.approx(0.624, abs=5e-4)
    assert found["mosld"] / found["lora"] == pytest.approx(3.31, abs=5e-3)
    routers = sum(site.gate.parameters(site) for site in sites(MethodSpec(name="mosld"), llama))
    assert routers == 1_310_720


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.9])
def test_03_a_fresh_adapter_equals_the_base(training: bool, dropout: float):
    built = layer(dropout=dropout).train(training)
    x = torch.randn(2, 5, 16)
    assert (built(x) - built.base_layer(x)).abs().max() == 0


def test_04_first_gradients_reach_the_selected_up_matrices_only():
    built = layer(experts=4, top_k=2, dropout=0.0).train()
    with torch.no_grad():
        built.tessera_gate["default"].weight[:2] = 0
        built.tessera_gate["default"].weight[2:] = -1  # inputs are positive: experts 2 and 3 are never chosen
    built(torch.rand(2, 5, 16)).square().sum().backward()
    up = built.tessera_up["default"].weight.grad
    assert (up[:2].abs().amax((1, 2)) > 0).all() and up[2:].abs().max() == 0
    assert built.tessera_down["default"].weight.grad.abs().max() == 0
    assert built.tessera_gate["default"].weight.grad.abs().max() == 0


def test_05_one_expert_is_plain_lora_and_its_router_learns_nothing():
    built = warm(layer(experts=1, top_k=1, dropout=0.0)).train()
    x = torch.randn(2, 5, 16)
    down, up = built.tessera_down["default"].weight, built.tessera_up["default"].weight[0]
    expected = built.base_layer(x) + (x @ down.T @ up.T) * (16 / 4)
    result = built(x)
    assert torch.allclose(result, expected, atol=1e-5)
    result.square().sum().backward()
    assert built.tessera_gate["default"].weight.grad.abs().max() == 0


def test_06_gates_are_a_softmax_over_the_selected_logits():
    built, x = layer(experts=2, top_k=2, dropout=0.0).eval(), torch.randn(2, 5, 16)
    built(x)
    expected = (x @ built.tessera_gate["default"].weight.T).softmax(-1)
    assert torch.allclose(built.slots["default"].weights, expected, atol=1e-6)
    logits = torch.randn(50, 6)
    routing, top = route(logits, 3), logits.topk(3)
    assert torch.allclose(routing.weights.gather(-1, top.indices), top.values.softmax(-1), atol=1e-6)


def test_07_exactly_k_gates_sum_to_one_and_experts_have_no_order():
    built, x = warm(layer(experts=5, top_k=2, dropout=0.0)).eval(), torch.randn(2, 5, 16)
    result = built(x)
    weights = built.slots["default"].weights
    assert (weights > 0).sum(-1).eq(2).all() and torch.allclose(weights.sum(-1), torch.ones(2, 5))
    assert (route(torch.tensor([[1e4, 0.0, -1e4]]), 2).weights > 0).sum() == 2  # even where a probability underflows
    order = torch.randperm(5)
    with torch.no_grad():
        for part in (built.tessera_gate["default"], built.tessera_up["default"]):
            part.weight.copy_(part.weight[order])
    assert torch.allclose(built(x), result, atol=1e-5)


def test_08_the_down_matrix_is_one_storage():
    built = warm(layer(experts=3, top_k=3, dropout=0.0)).eval()
    assert built.tessera_down["default"].weight.shape == (4, 16)
    assert built.tessera_up["default"].weight.shape == (3, 24, 4)
    x = torch.randn(1, 4, 16)
    for expert in range(3):
        alone = copy.deepcopy(built)
        with torch.no_grad():
            others = [index for index in range(3) if index != expert]
            alone.tessera_up["default"].weight[others] = 0
            before = alone(x)
            alone.tessera_down["default"].weight.mul_(2)
        assert not torch.allclose(alone(x), before)


def test_09_dropout_on_the_down_matrix_has_the_stated_mean_and_variance():
    built, p = warm(layer(inputs=32, dropout=0.1)).train(), 0.1
    down, x = built.tessera_down["default"], torch.randn(32)
    exact = down.weight.detach() @ x
    torch.manual_seed(0)
    draws = torch.stack([down.matrix().detach() @ x for _ in range(20_000)])
    assert (draws[:4000].mean(0) - exact).abs().max() <= 0.02 * exact.abs().max()
    variance = p / (1 - p) * (down.weight.detach().square() @ x.square())
    assert torch.allclose(draws.var(0) / variance, torch.ones(4), atol=0.05)
    kept = down.matrix()
    mask = kept != 0
    assert torch.allclose(kept[mask], down.weight[mask] / (1 - p), rtol=1e-6, atol=0)
    token = torch.randn(1, 1, 32).expand(2, 3, 32)
    first = built(token)
    assert torch.allclose(first, first[:1, :1].expand_as(first), atol=1e-6)
    assert not torch.allclose(built(token), first)
    built.eval()
    assert torch.equal(built(token), built(token))


def test_10_dropped_entries_get_no_gradient():
    built = warm(layer(inputs=4096, rank=8, dropout=0.1)).train()
    torch.manual_seed(0)
    built(torch.randn(1, 3, 4096)).square().sum().backward()
    gradient = built.tessera_down["default"].weight.grad
    torch.manual_seed(0)
    torch.randn(1, 3, 4096)
    dropped = functional.dropout(torch.ones_like(gradient), 0.1, True) == 0
    assert gradient[dropped].abs().max() == 0 and (gradient[~dropped] != 0).all()
    assert 0.09 <= dropped.float().mean() <= 0.11


def test_11_balance_loss_is_one_when_balanced_and_n_over_k_when_collapsed():
    experts, k = 8, 2
    weights = torch.zeros(1, 1, 8, experts)
    for token in range(8):
        weights[0, 0, token, [token, (token + 1) % 8]] = 0.5
    uniform = torch.full_like(weights, 1 / experts)
    assert balance_loss(uniform, weights).item() == pytest.approx(1.0)
    collapsed = torch.zeros_like(weights)
    collapsed[..., :k] = 1 / k
    assert balance_loss(collapsed, collapsed).item() == pytest.approx(experts / k)
    padded = torch.cat([weights, collapsed], 2), torch.cat([uniform, collapsed], 2)
    keep = torch.tensor([[True] * 8 + [False] * 8])
    assert balance_loss(padded[1], padded[0], keep).item() == pytest.approx(1.0)


def test_11_the_loss_on_the_tape_is_the_weighted_sum_over_projections():
    model = model_of(balance=0.5, dropout=0.0)
    warm_up(model)
    data = batch()
    model(**data)
    loss = tape_of(model).auxiliary_loss()
    keep = data["attention_mask"].bool()
    each = [balance_loss(slot.probs[None], slot.weights[None], keep)[0] for slot in tape_of(model).slots]
    assert len(each) == 6 and loss.item() == pytest.approx(0.5 * sum(each).item(), rel=1e-5)
    changed = {**data, "input_ids": torch.where(keep, data["input_ids"], 33)}
    model(**changed)
    assert tape_of(model).auxiliary_loss().item() == pytest.approx(loss.item(), rel=1e-6)
    loss = tape_of(model).auxiliary_loss()
    loss.backward()
    assert all(part.tessera_gate["default"].weight.grad.abs().max() > 0 for part in layers_of(model))


@pytest.mark.parametrize(("experts", "top_k"), [(3, 2), (4, 4)])
def test_12_the_folded_forward_equals_a_loop_over_experts(experts: int, top_k: int):
    built, x = warm(layer(experts=experts, top_k=top_k, dropout=0.0)).eval(), torch.randn(2, 5, 16)
    down, up = built.tessera_down["default"].weight, built.tessera_up["default"].weight
    probs = (x @ built.tessera_gate["default"].weight.T).softmax(-1)
    chosen = probs.topk(top_k, -1)
    gates = torch.zeros_like(probs).scatter(-1, chosen.indices, chosen.values / chosen.values.sum(-1, keepdim=True))
    expected = built.base_layer(x)
    for expert in range(experts):
        expected = expected + 4.0 * gates[..., expert : expert + 1] * (x @ down.T @ up[expert].T)
    assert torch.allclose(built(x), expected, atol=1e-5)
    if top_k == experts:  # the form of HydraLoRA
        assert torch.allclose(gates, probs)


def test_12_with_all_experts_and_no_dropout_it_is_hydralora():
    options = {"modules": ["q_proj", "v_proj"], "rank": 4, "experts": 4, "dropout": 0.0}
    hydra = made(MatrixRow("hydralora", "hydralora", options), warm=True).eval()
    same = made(MatrixRow("mosld", "mosld", {**options, "top_k": 4, "init": "kaiming"}), warm=True).eval()
    assert torch.equal(hydra(**batch()).logits, same(**batch()).logits)


def test_13_a_saved_adapter_comes_back_bit_by_bit(tmp_path):
    model = model_of().eval()
    warm_up(model)
    save(model, tmp_path)
    again = load(tiny(), tmp_path, name="default").eval()
    ours, theirs = model.state_dict(), again.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if ".tessera_" in key)
    assert torch.equal(model(**batch()).logits, again(**batch()).logits)


def test_13_merging_several_experts_is_refused():
    with pytest.raises(ConfigurationError, match="merge_mean_gates"):
        model_of().merge_and_unload()


def test_the_gaussian_start_has_the_variance_of_lora():
    weight = layer(inputs=4096, rank=8).tessera_down["default"].weight
    assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * 4096), rel=0.02)
    assert not (weight.abs() <= 1 / math.sqrt(4096)).all()  # a normal has tails that the uniform has not


def test_dropout_can_move_to_the_up_matrices_with_a_mask_for_each():
    built = warm(layer(dropout_on="up", dropout=0.5)).train()
    assert torch.equal(built.tessera_down["default"].matrix(), built.tessera_down["default"].weight)
    masks = built.tessera_up["default"].kept() != 0
    assert not torch.equal(masks[0], masks[1])
    without = warm(layer(dropout_on="none", dropout=0.5)).train()
    x = torch.randn(1, 3, 16)
    assert torch.equal(without(x), without.eval()(x))


def test_top_k_is_clamped_to_the_experts_of_a_layer():
    model = model_of(experts=[1, 2, 6], top_k=2)
    assert {slot.site.layer: slot.site.selected for slot in tape_of(model).slots} == {0: 1, 1: 2, 2: 2}
    model(**batch()).loss.backward()
    assert gradients(model)
