"""MALoRA (Wang et al., arXiv 2410.22782): its initialisation, its routing and its counts, and what it reduces to."""

from __future__ import annotations

import math

import pytest
import torch
from adapters_support import TASKS, tiny
from one_layer import counted, one_layer, parts, site_of, tokens, update, warm
from torch.nn import functional

from core.adapters.attach import attach
from core.adapters.cells import Linear, plan
from core.adapters.methods import resolve
from core.catalog import sites, trainable_parameters
from core.errors import ConfigurationError
from core.schema import MethodSpec
from tests.support.shapes import LLAMA2_7B, count

SIX = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
SMALL = {"share": 1 / 3, "enlarge_rank": False}


def layer(inputs: int = 16, outputs: int = 24, **options):
    """Four experts of rank 6 in eight dimensions, unless told otherwise."""
    given = {"experts": 4, "rank": 4, "share": 0.5, "dropout": 0.0, **options}
    return one_layer("malora", inputs, outputs, **given)


def draws(experts: int, size: int, inputs: int) -> list[torch.Tensor]:
    """The Kaiming-uniform draws that a layer of ``one_layer`` begins with, after its base's own."""
    bound = 1 / math.sqrt(inputs)
    return [torch.empty(size, inputs, dtype=torch.float64).uniform_(-bound, bound) for _ in range(experts)]


def products(built) -> torch.Tensor:
    return parts(built)[0].experts().detach()


def test_01_parameters_of_one_layer():
    built = layer()
    down, gate, up = parts(built)
    assert [down.shared.numel(), down.own.numel(), up.weight.numel(), gate.weight.numel()] == [128, 192, 576, 64]
    assert counted(built) == site_of("malora", 16, 24, experts=4, rank=4).parameters() == 960


@pytest.mark.parametrize(
    ("name", "options", "expected", "percent"),
    [
        ("lora", {"rank": 64}, 143_130_624, 2.124),
        ("molora", {"rank": 8, "experts": 8}, 151_191_552, 2.244),
        ("malora", {}, 158_859_264, 2.358),
        ("malora", SMALL, 109_142_016, 1.620),
        ("molora", {"rank": 12, "experts": 8}, 222_756_864, 3.306),
        ("malora", {"share": 1.0}, 151_977_984, 2.255),
        ("molora", {"rank": 16, "experts": 8}, 294_322_176, 4.368),
    ],
)
def test_01_parameters_of_llama2_7b(name, options, expected, percent):
    found = count(name, LLAMA2_7B, modules=SIX, **options)
    assert found == expected and 100 * found / LLAMA2_7B.parameters == pytest.approx(percent, abs=5e-4)


def split(**cell) -> int:
    method = MethodSpec(name="split", cells=[{"modules": SIX, "experts": 8, **cell}])
    return trainable_parameters(method, LLAMA2_7B)


def test_01_ablations_of_llama2_7b_with_a_frozen_part():
    down = {"word": "subspace", "share": 32 / (8 * 16), "trained": False}
    assert split(rank=16, down=down, gate="token") == 166_133_760
    frozen = {"word": "unique", "trained": False}
    assert split(rank=128, experts=1, down=frozen) == 157_286_400  # AsyLoRA


def test_01_shares_of_the_count_that_the_paper_names():
    malora, own = count("malora", LLAMA2_7B), 6 * 32 * 8 * 12 * 32
    assert own / malora < 0.01 and 100 * own / malora == pytest.approx(0.37, abs=5e-3)
    assert malora / (malora + LLAMA2_7B.parameters) == pytest.approx(0.02303, abs=5e-6)
    against = {rank: 1 - malora / count("molora", LLAMA2_7B, modules=SIX, experts=8, rank=rank) for rank in (8, 12, 16)}
    assert [round(100 * against[rank], 1) for rank in (8, 12, 16)] == [-5.1, 28.7, 46.0]


def test_02_a_fresh_adapter_changes_nothing_and_only_selected_up_matrices_get_gradient():
    built, x = layer().train(), tokens(2, 5, 16).abs()
    down, gate, up = parts(built)
    with torch.no_grad():
        gate.weight[:2], gate.weight[2:] = 0, -1  # inputs are positive: experts 2 and 3 are never chosen
    result = built(x)
    assert torch.equal(result, built.base_layer(x))
    result.square().sum().backward()
    assert (up.weight.grad[:2].abs().amax((1, 2)) > 0).all() and up.weight.grad[2:].abs().max() == 0
    assert all(weight.grad.abs().max() == 0 for weight in (down.shared, down.own, gate.weight))


def test_03_the_start_is_the_decomposition_of_kaiming_draws():
    inputs, size, rank, beta = 64, 8, 6, 1.25
    built = layer(inputs, beta=beta)
    down = parts(built)[0]
    torch.manual_seed(0)
    torch.nn.Linear(inputs, 24, dtype=torch.float64)  # the base draws first
    drawn = draws(4, size, inputs)
    found = products(built)
    for product, draw in zip(found, drawn, strict=True):
        assert torch.allclose(product.norm(dim=-1), draw[:rank].norm(dim=-1), rtol=1e-12, atol=0)
    assert torch.allclose(found[0], drawn[0][:rank], atol=1e-12)
    assert not torch.allclose(found[1], drawn[1][:rank], atol=1e-3)  # turned into the span of the first
    assert torch.allclose(down.shared @ down.shared.T, beta**2 * torch.eye(size, dtype=torch.float64), atol=1e-12)


def test_03_rows_at_the_start_have_the_size_of_a_lora_row():
    found = products(one_layer("malora", 1024, 8, experts=8, rank=8, dtype=torch.float32))
    assert found.norm(dim=-1).mean().item() == pytest.approx(1 / math.sqrt(3), rel=0.01)
    assert found.std().item() == pytest.approx(1 / math.sqrt(3 * 1024), rel=0.02)
    turned = found[1:]
    kurtosis = (turned**4).mean() / (turned**2).mean() ** 2
    assert kurtosis.item() > 2.5  # nearly normal, where a uniform has 1.8


def test_04_beta_changes_neither_products_nor_outputs():
    one, other = layer(beta=1.0), layer(beta=1.25)
    assert torch.allclose(products(one), products(other), atol=1e-12)
    assert not torch.allclose(parts(one)[0].shared, parts(other)[0].shared)
    x = tokens(2, 5, 16)
    assert torch.allclose(warm(one)(x), warm(other)(x), atol=1e-12)


def test_05_beta_balances_the_gradients_of_the_shared_and_the_own_part():
    grown = []
    for beta in (1.0, 1.25):
        built = warm(layer(beta=beta)).train()
        built(tokens(2, 5, 16)).square().sum().backward()
        down = parts(built)[0]
        grown.append((down.shared.grad.norm(), down.own.grad.norm()))
    assert (grown[1][0] / grown[0][0]).item() == pytest.approx(0.8, rel=1e-10)
    assert (grown[1][1] / grown[0][1]).item() == pytest.approx(1.25, rel=1e-10)


def test_06_ranks_of_one_expert_and_of_all_of_them():
    built = warm(one_layer("malora", 128, 48))
    up, found = parts(built)[2].weight, products(built)
    assert all(torch.linalg.matrix_rank(up[e] @ found[e]) == 12 for e in range(8))
    assert torch.linalg.matrix_rank(found.flatten(0, 1)) == 32 and len(found.flatten(0, 1)) == 96


def test_07_one_expert_is_plain_lora():
    built, x = warm(layer(experts=1, share=1.0, top_k=1)), tokens(2, 5, 16)
    _, gate, up = parts(built)
    scale = 2  # alpha over the experts' rank
    assert torch.allclose(update(built, x), scale * (x @ products(built)[0].T) @ up.weight[0].T, atol=1e-12)
    update(built.train(), x).square().sum().backward()
    assert gate.weight.grad.abs().max() == 0


def test_08_with_a_subspace_as_wide_as_all_ranks_it_reproduces_any_molora():
    options = {"experts": 3, "rank": 4, "top_k": 2, "dropout": 0.0}
    built = warm(one_layer("malora", share=1.0, balance=0.0, alpha=16, **options))
    other = warm(one_layer("molora", alpha=16, renormalise=False, seed=5, **options))
    with torch.no_grad():
        parts(built)[0].shared.copy_(parts(other)[0].weight.flatten(0, 1))
        parts(built)[0].own.copy_(torch.eye(12, dtype=torch.float64).view(3, 4, 12))
        parts(built)[1].weight.copy_(parts(other)[1].weight)
    x = tokens(2, 5, 16)
    assert torch.allclose(update(built, x), update(other, x), atol=1e-12)


@pytest.mark.parametrize("renormalise", [False, True])
def test_09_k_gates_are_as_they_were_or_sum_to_one(renormalise: bool):
    built = layer(renormalise=renormalise)
    built(tokens(3, 5, 16))
    routing = built.slots["default"]
    assert (routing.weights > 0).sum(-1).eq(2).all()
    expected = torch.ones(3, 5, dtype=torch.float64) if renormalise else routing.probs.topk(2).values.sum(-1)
    assert torch.allclose(routing.weights.sum(-1), expected, atol=1e-12)
    dense = layer(renormalise=renormalise, top_k=4)
    dense(tokens(3, 5, 16))
    assert torch.equal(dense.slots["default"].weights, dense.slots["default"].probs)


@pytest.mark.parametrize(("share", "size", "rank"), [(0.25, 16, 14), (0.5, 32, 12), (0.75, 48, 10), (1.0, 64, 8)])
def test_10_what_is_shared_enlarges_the_rank(share: float, size: int, rank: int):
    found = site_of("malora", 128, 128, share=share)
    assert (found.down.size(found), found.rank, found.scaling) == (size, rank, 2)


def test_10_the_small_form_saves_what_it_shares():
    found = site_of("malora", 128, 128, **SMALL)
    assert (found.down.size(found), found.rank, found.scaling) == (22, 8, 2)
    assert {one.projection for one in sites(MethodSpec(name="malora"), LLAMA2_7B)} == set(SIX)


def test_11_the_shared_matrix_is_one_and_learns_from_every_selected_expert():
    built, x = warm(layer()).train(), tokens(2, 5, 16).abs()
    down, gate, up = parts(built)
    assert down.shared.shape == (8, 16)
    with torch.no_grad():
        gate.weight[:2], gate.weight[2:] = 0, -1
    built(x).square().sum().backward()
    assert (down.own.grad[:2].abs().amax((1, 2)) > 0).all() and down.own.grad[2:].abs().max() == 0
    assert up.weight.grad[2:].abs().max() == 0
    whole = down.shared.grad.clone()
    single = []
    for expert in (0, 1):
        alone = warm(layer()).train()
        with torch.no_grad():
            parts(alone)[1].weight.copy_(gate.weight)
            parts(alone)[2].weight[1 - expert] = 0
        added = update(alone, x)
        added.backward(gradient=2 * built(x).detach())
        single.append(parts(alone)[0].shared.grad)
    assert torch.allclose(single[0] + single[1], whole, atol=1e-9)


def test_12_the_folded_forward_equals_expert_by_expert():
    built, x = warm(layer()).eval(), tokens(2, 5, 16)
    down, gate, up = parts(built)
    probs = (x @ gate.weight.T).softmax(-1)
    chosen = probs.topk(2, -1)
    gates = torch.zeros_like(probs).scatter(-1, chosen.indices, chosen.values)
    inside = x @ down.shared.T
    expected = sum(2 * gates[..., e : e + 1] * (inside @ down.own[e].T @ up.weight[e].T) for e in range(4))
    assert torch.allclose(update(built, x), expected, atol=1e-12)
    single = layer(dtype=torch.float32).eval()
    single.load_state_dict(built.state_dict())
    assert torch.allclose(update(single, x.float()), expected.float(), atol=1e-5)
    assert torch.equal(built(x), built(x))


def test_12_merging_several_experts_is_refused():
    model = attach(tiny(), MethodSpec(name="malora", options={"rank": 2, "experts": 4}), tasks=TASKS)
    with pytest.raises(ConfigurationError, match="merge_mean_gates"):
        model.merge_and_unload()


def test_one_draw_of_dropout_feeds_all_experts_and_the_router_sees_the_whole_input():
    built, x = warm(layer(dropout=0.5, top_k=4)).train(), tokens(2, 5, 16)
    down, gate, up = parts(built)
    torch.manual_seed(3)
    found = update(built, x)
    assert torch.allclose(built.slots["default"].probs, (x @ gate.weight.T).softmax(-1), atol=1e-12)
    torch.manual_seed(3)
    inside = functional.dropout(x, 0.5, True) @ down.shared.T
    gates = (x @ gate.weight.T).softmax(-1)
    expected = sum(2 * gates[..., e : e + 1] * (inside @ down.own[e].T @ up.weight[e].T) for e in range(4))
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(("inputs", "options"), [(16, {"experts": 8}), (64, {"experts": 1})])
def test_a_subspace_that_cannot_hold_an_expert_or_exceeds_the_input_is_refused(inputs: int, options: dict):
    cells = resolve(MethodSpec(name="malora", options={"modules": "all-linear", **options}))
    with pytest.raises(ConfigurationError, match="Cell 1, layer.0.proj: the subspace would have"):
        plan(cells, [Linear("layer.0.proj", inputs, 32)])
