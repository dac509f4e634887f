"""MoDE (Ning et al., arXiv 2408.01505): a router for every block of ranks; symmetries, special cases, counts."""

from __future__ import annotations

import copy

import pytest
import torch
from adapters_support import TASKS, Row, batch, made, tiny
from one_layer import counted, one_layer, parts, site_of, tokens, update, warm
from torch.nn import functional

from core.adapters.attach import attach, tape_of
from core.adapters.cells import Linear, plan
from core.adapters.losses import balance_loss
from core.adapters.merging import merge_mean_gates
from core.adapters.methods import resolve
from core.adapters.tape import Addressing
from core.errors import ConfigurationError
from core.routing.recorder import RoutingRecorder
from core.schema import MethodSpec
from tests.support.shapes import GEMMA_2B, count


def layer(inputs: int = 16, outputs: int = 24, **options):
    """Three experts behind four ranks, unless told otherwise."""
    return one_layer("mode", inputs, outputs, **{"experts": 3, "rank": 4, **options})


def moved(size: float = 1.0, **options):
    """Up matrices and routers away from their start."""
    built = warm(layer(**options))
    with torch.no_grad():
        gate = parts(built)[1]
        gate.weight.copy_(tokens(*gate.weight.shape, seed=5) * size)
    return built


def shares(built, x: torch.Tensor) -> torch.Tensor:
    """(..., ranks, experts): each block's softmax, repeated for its ranks."""
    router = parts(built)[1].weight
    return torch.einsum("...n,gen->...ge", x, router).softmax(-1).repeat_interleave(4 // len(router), -2)


@pytest.mark.parametrize(("expert_rank", "expected"), [(1, 1600), (2, 1216), (4, 1024)])
def test_01_parameters_of_one_layer(expert_rank: int, expected: int):
    options = {"experts": 3, "rank": 4, "expert_rank": expert_rank}
    assert site_of("mode", 64, 48, **options).parameters() == counted(layer(64, 48, **options)) == expected


FOUR = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.mark.parametrize(
    ("name", "options", "expected", "percent"),
    [
        ("lora", {"rank": 64}, 14_745_600, 0.744),
        ("molora", {"experts": 16, "rank": 4}, 17_104_896, 0.863),
        ("mode", {"experts": 16, "expert_rank": 4}, 8_257_536, 0.417),
        ("mode", {"experts": 16}, 15_335_424, 0.774),
        ("mode", {"experts": 6}, 6_119_424, 0.309),
        ("lora", {"rank": 60}, 13_824_000, 0.698),
    ],
)
def test_02_parameters_of_gemma_2b(name, options, expected, percent):
    found = count(name, GEMMA_2B, modules=FOUR, **options)
    assert found == expected and 100 * found / GEMMA_2B.parameters == pytest.approx(percent, abs=5e-4)


def test_02_the_shared_down_matrix_with_one_router_is_hydralora_in_size():
    options = {"modules": FOUR, "experts": 16, "rank": 4}
    assert count("hydralora", GEMMA_2B, **options) == count("mode", GEMMA_2B, expert_rank=4, **options)


@pytest.mark.parametrize("training", [False, True])
def test_03_a_fresh_adapter_changes_nothing(training: bool):
    built, x = layer().train(training), tokens(2, 5, 16)
    assert torch.equal(built(x), built.base_layer(x))


def test_04_one_expert_is_plain_lora_whatever_its_routers_hold():
    built, x = moved(experts=1).train(), tokens(2, 5, 16)
    down, gate, up = parts(built)
    found = update(built, x)
    assert torch.allclose(found, (x @ down.weight.T) @ up.weight[0].T, atol=1e-12)
    found.square().sum().backward()
    assert gate.weight.grad.abs().max() == 0


def test_05_one_router_for_all_ranks_is_a_dense_mixture_behind_one_down_matrix():
    built, x = moved(), tokens(2, 5, 16)
    one = moved(expert_rank=4)
    with torch.no_grad():
        parts(built)[1].weight.copy_(parts(one)[1].weight.expand(4, -1, -1))
    assert parts(one)[1].weight.shape == (1, 3, 16)
    hydra = warm(one_layer("hydralora", 16, 24, experts=3, rank=4, alpha=4, dropout=0.0))
    with torch.no_grad():
        parts(hydra)[0].weight.copy_(parts(one)[0].weight)
        parts(hydra)[1].weight.copy_(parts(one)[1].weight[0])
    expected = update(hydra, x)
    assert torch.allclose(update(one, x), expected, atol=1e-12)
    assert torch.allclose(update(built, x), expected, atol=1e-12)


def test_06_equal_experts_need_no_router_and_silent_routers_average():
    built, x = moved(), tokens(2, 5, 16)
    down, gate, up = parts(built)
    same = copy.deepcopy(built)
    with torch.no_grad():
        parts(same)[2].weight.copy_(up.weight[:1].expand(3, -1, -1))
        first = update(same, x)
        parts(same)[1].weight.copy_(tokens(*gate.weight.shape, seed=8))
    assert torch.allclose(update(same, x), first, atol=1e-12)
    with torch.no_grad():
        gate.weight.zero_()
    assert torch.allclose(update(built, x), (x @ down.weight.T) @ up.weight.mean(0).T, atol=1e-12)


@pytest.mark.parametrize("expert_rank", [1, 2, 4])
def test_07_the_folded_forward_is_the_double_sum_over_ranks_and_experts(expert_rank: int):
    built, x = moved(expert_rank=expert_rank), tokens(2, 5, 16)
    down, _, up = parts(built)
    hidden, share = x @ down.weight.T, shares(built, x)
    expected = torch.zeros(2, 5, 24, dtype=torch.float64)
    for rank in range(4):
        for expert in range(3):
            expected += (hidden[..., rank] * share[..., rank, expert]).unsqueeze(-1) * up.weight[expert, :, rank]
    assert torch.allclose(update(built, x), expected, atol=1e-12)


def test_08_experts_have_no_order_in_all_ranks_or_in_one_block_alone():
    built, x, order = moved(expert_rank=2), tokens(2, 5, 16), torch.tensor([2, 0, 1])
    expected = built(x)
    _, gate, up = parts(built)
    with torch.no_grad():
        gate.weight.copy_(gate.weight[:, order])
        up.weight.copy_(up.weight[order])
    assert torch.allclose(built(x), expected, atol=1e-12)
    with torch.no_grad():  # the second block: ranks 2 and 3
        gate.weight[1] = gate.weight[1, order]
        up.weight[:, :, 2:] = up.weight[order][:, :, 2:]
    assert torch.allclose(built(x), expected, atol=1e-12)
    with torch.no_grad():
        up.weight[:, :, :2] = up.weight[order][:, :, :2]  # without its router
    assert not torch.allclose(built(x), expected, atol=1e-3)


def test_09_the_logits_of_a_block_may_shift_by_any_function_of_the_token():
    built, x = moved(expert_rank=2), tokens(2, 5, 16)
    expected = built(x)
    with torch.no_grad():
        parts(built)[1].weight[1] += tokens(16, seed=12)  # adds one number for each token to all logits of the block
    assert torch.allclose(built(x), expected, atol=1e-12)


def test_10_a_token_changes_its_own_update_alone():
    built, x = moved(), tokens(1, 6, 16)
    other = x.clone()
    other[0, 3] += 1
    changed = (update(built, x) - update(built, other)).abs().amax(-1)[0]
    assert changed[3] > 0 and changed[[0, 1, 2, 4, 5]].max() < 1e-12


def trained(built) -> float:
    """How far apart the experts are after fifty steps of Adam."""
    optimiser = torch.optim.Adam([p for p in built.parameters() if p.requires_grad], lr=0.05)
    x, target = tokens(4, 8, 16), tokens(4, 8, 24, seed=11)
    for _ in range(50):
        optimiser.zero_grad()
        functional.mse_loss(built(x), target).backward()
        optimiser.step()
    up = parts(built)[2].weight.detach()
    return (up - up[:1]).abs().max().item()


def test_11_silent_routers_would_keep_the_experts_alike_and_the_default_start_does_not():
    built = layer()
    with torch.no_grad():
        parts(built)[1].weight.zero_()
    assert trained(built) == 0
    assert 0.1 <= trained(layer()) < 10


def test_11_the_down_matrix_and_the_routers_start_small_and_normal():
    down, gate, _ = parts(layer(inputs=4096))
    assert down.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert gate.weight.std().item() == pytest.approx(0.01, rel=0.05)


# The adapted widths of one layer that the paper's percentages imply, over its 18 layers.
IMPLIED = [Linear(f"layer.{number}.proj", 90_112, 18_432) for number in range(18)]
MAIN = [("lora", 64, 1, 1, 6.31), ("molora", 16, 4, 4, 7.62), ("mode", 16, 4, 4, 2.71), ("mode", 16, 4, 1, 6.64)]
MAIN += [("mode", 6, 4, 1, 2.69)]
BY_BLOCK = [(4, 16, 16, 2.71), (4, 16, 8, 3.04), (4, 16, 4, 3.69), (4, 16, 2, 5.00), (4, 16, 1, 7.62)]
BY_BLOCK += [(16, 4, 4, 2.71), (16, 4, 2, 4.02), (16, 4, 1, 6.64)]
OF_EQUAL_SIZE = [(42, 4, 4, 6.58), (27, 4, 2, 6.55), (16, 4, 1, 6.64), (27, 8, 8, 6.48), (20, 8, 4, 6.61)]
OF_EQUAL_SIZE += [(12, 8, 2, 6.19), (7, 8, 1, 6.18), (15, 16, 16, 6.55), (12, 16, 8, 6.49), (8, 16, 4, 6.07)]
OF_EQUAL_SIZE += [(5, 16, 2, 5.92), (3, 16, 1, 6.04)]


@pytest.mark.parametrize(
    ("name", "experts", "rank", "expert_rank", "percent"),
    [*MAIN, *(("mode", *row) for row in BY_BLOCK), *(("mode", *row) for row in OF_EQUAL_SIZE)],
)
def test_12_the_printed_percentages_follow_from_the_formulas(name, experts, rank, expert_rank, percent):
    options = {"lora": {"rank": experts}, "molora": {"experts": experts, "rank": rank}}.get(name)
    options = options or {"experts": experts, "rank": rank, "expert_rank": expert_rank}
    cells = resolve(MethodSpec(name=name, options={"modules": "all-linear", **options}))
    found = sum(site.parameters() for site in plan(cells, IMPLIED))
    assert 100 * found / GEMMA_2B.parameters == pytest.approx(percent, abs=0.005)


def test_12_the_case_study_has_the_size_of_fifteen_loras():
    cells = resolve(MethodSpec(name="lora", options={"modules": "all-linear", "rank": 60}))
    found = sum(site.parameters() for site in plan(cells, IMPLIED))
    assert found / 1e6 == pytest.approx(117.2, abs=0.05) and 100 * found / GEMMA_2B.parameters < 6


def test_13_merging_several_experts_is_refused_and_mean_gates_merge_where_they_are_constant():
    row = Row("mode", "mode", {"rank": 4, "experts": 3, "expert_rank": 2})
    with pytest.raises(ConfigurationError, match="merge_mean_gates"):
        made(row).merge_and_unload()
    made(Row("one", "mode", {"experts": 1}), warm=True).merge_and_unload()
    model, data = made(row, warm=True).eval(), batch()
    for name, parameter in model.named_parameters():
        if "tessera_gate" in name:  # constant gates
            torch.nn.init.zeros_(parameter)
    recorder = RoutingRecorder(tape_of(model), TASKS)
    expected = model(**data).logits
    recorder.update()
    merged = merge_mean_gates(model, recorder.snapshot())
    plain = {key: data[key] for key in ("input_ids", "attention_mask")}
    assert torch.allclose(merged(**plain).logits, expected, atol=1e-5)


def test_a_constant_gate_for_each_block_merges_into_one_weight():
    built, x = moved().eval(), tokens(1, 3, 16)
    built.tape.begin(Addressing())
    built(x)
    fixed = built.slots["default"].weights[0, 0]
    assert fixed.shape == (4, 3)
    merged = built.delta_weight("default", fixed)
    assert torch.allclose(update(built, x)[0, 0], x[0, 0] @ merged.T, atol=1e-12)


def test_the_balance_loss_is_a_mean_over_the_blocks():
    cells = [{"modules": ["q_proj"], "rank": 4, "experts": 3, "gate": {"word": "rank", "expert_rank": 2, "top_k": 2}}]
    cells[0]["gate"]["balance"] = 0.5
    model, data = attach(tiny(), MethodSpec(name="split", cells=cells), tasks=TASKS), batch()
    model(**data)
    slots, keep = tape_of(model).slots, data["attention_mask"].bool()
    assert slots[0].probs.shape == (4, 12, 2, 3)
    each = [
        balance_loss(slot.probs[None, :, :, part], slot.weights[None, :, :, part], keep)[0]
        for slot in slots
        for part in range(2)
    ]
    loss = tape_of(model).auxiliary_loss().item()
    assert loss == pytest.approx(0.5 * sum(each).item() / 2, rel=1e-5)


def test_blocks_that_do_not_divide_the_rank_are_refused_at_their_cell():
    cells = resolve(MethodSpec(name="mode", options={"modules": "all-linear", "rank": 4, "expert_rank": 3}))
    with pytest.raises(ConfigurationError, match="Cell 1, layer.0.proj: blocks of 3 ranks do not divide the rank 4"):
        plan(cells, [Linear("layer.0.proj", 16, 16)])


def test_the_published_settings_are_the_defaults():
    cell = resolve(MethodSpec(name="mode"))[0]
    assert (cell.experts, cell.rank, cell.gate.expert_rank, cell.scaling) == (6, 4, 1, 1.0)
    assert (cell.down.dropout, cell.gate.top_k, cell.modules) == (0.0, None, FOUR)
    assert resolve(MethodSpec(name="mode", options={"rank": 8}))[0].scaling == 1.0
