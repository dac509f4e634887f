"""MTL-LoRA (Yang et al., arXiv 2410.09437): transforms and mixtures by task, symmetries, exact merging, counts."""

from __future__ import annotations

import pytest
import torch
from adapters_support import TASKS, Row, batch, made, tiny
from one_layer import counted, layer_of, on_tasks, one_layer, parts, site_of, tokens, update, warm
from torch.nn import functional

from core.adapters.cells import Linear, plan
from core.adapters.merging import merge_task
from core.adapters.methods import preset_named, resolve
from core.errors import ConfigurationError
from core.schema import MethodSpec
from tests.support.shapes import LLAMA2_7B, LLAMA31_8B, VL_BART, count

ALL_TASKS = 5


def layer(inputs: int = 16, outputs: int = 24, **options):
    """Three up matrices of rank 4 for five tasks, unless told otherwise."""
    given = {"rank": 4, "dropout": 0.0, "tasks": ALL_TASKS, **options}
    return one_layer("mtl_lora", inputs, outputs, **given)


def moved(**options):
    """As after training: every tensor away from its start."""
    built = warm(layer(**options))
    with torch.no_grad():
        for part in parts(built)[:2]:
            for parameter in part.parameters():
                parameter.add_(tokens(*parameter.shape, seed=parameter.numel()), alpha=0.3)
    return built


def mixtures(built, temperature: float = 0.1) -> torch.Tensor:
    return (parts(built)[1].weight / temperature).softmax(-1)


def delta(built, task: int, temperature: float = 0.1) -> torch.Tensor:
    """The update's weight on a task: scale * (sum of p_i B_i) Lambda A."""
    down, _, up = parts(built)
    own = down.transform[task]
    own = torch.diag(own) if own.dim() == 1 else own
    mixed = torch.einsum("i,ior->or", mixtures(built, temperature)[task], up.weight)
    return built.scaling["default"] * mixed @ own @ down.weight


@pytest.mark.parametrize(
    ("inputs", "outputs", "rank", "tasks", "diagonal", "expected"),
    [(64, 48, 4, 5, False, 927), (64, 48, 4, 5, True, 867), (6, 5, 3, 4, False, 111)],
)
def test_01_parameters_of_one_layer(inputs, outputs, rank, tasks, diagonal, expected):
    options = {"rank": rank, "tasks": tasks, "diagonal": diagonal}
    assert counted(layer(inputs, outputs, **options)) == expected
    assert site_of("mtl_lora", inputs, outputs, **options).parameters() == expected


def test_02_parameters_of_llama2_7b_in_the_language_setting():
    found = count("mtl_lora", LLAMA2_7B, tasks=8)
    assert found == 16_845_824 and 100 * found / LLAMA2_7B.parameters == pytest.approx(0.2500, abs=5e-5)


def test_02_parameters_of_the_other_settings():
    wide = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    found = count("mtl_lora", LLAMA2_7B, tasks=8, modules=wide)
    assert found == 28_135_168 and 100 * found / LLAMA2_7B.parameters == pytest.approx(0.4175, abs=5e-5)
    images = {"modules": ["q_proj", "v_proj"], "rank": 64, "experts": 2}
    assert count("mtl_lora", VL_BART, tasks=4, **images) == 5_898_528
    other = count("mtl_lora", LLAMA31_8B, tasks=9)
    assert other == 12_135_808 and 100 * other / LLAMA31_8B.parameters == pytest.approx(0.1511, abs=5e-5)
    assert site_of("mtl_lora", 4096, 4096, tasks=8).parameters() == 131_608
    four = ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert [count("lora", LLAMA2_7B, rank=rank, modules=four) for rank in (8, 16)] == [8_388_608, 16_777_216]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("training", [False, True])
def test_03_a_fresh_adapter_changes_nothing_on_any_task(seed: int, training: bool):
    built, x = layer(seed=seed).train(training), tokens(ALL_TASKS, 3, 16)
    assert torch.equal(on_tasks(built, *range(ALL_TASKS))(x), built.base_layer(x))


@pytest.mark.parametrize("diagonal", [False, True])
def test_03_transforms_start_as_identities(diagonal: bool):
    transform = parts(layer(diagonal=diagonal))[0].transform
    one = torch.ones(4) if diagonal else torch.eye(4)
    assert torch.equal(transform, one.to(transform).expand_as(transform))


def test_04_one_up_matrix_and_identities_are_plain_lora():
    built, x = warm(layer(experts=1)).train(), tokens(3, 4, 16)
    down, gate, up = parts(built)
    found = update(on_tasks(built, 0, 3, 4), x)
    assert torch.allclose(found, 4 * (x @ down.weight.T) @ up.weight[0].T, atol=1e-12)
    found.square().sum().backward()
    assert gate.weight.grad.abs().max() == 0


def test_05_a_row_of_logits_may_shift_and_experts_have_no_order():
    built, x = moved(), tokens(2, 4, 16)
    expected = on_tasks(built, 1, 4)(x)
    with torch.no_grad():
        parts(built)[1].weight[1] += 0.7
        assert torch.allclose(built(x), expected, atol=1e-12)
        order = torch.tensor([2, 0, 1])
        parts(built)[1].weight.copy_(parts(built)[1].weight[:, order])
        parts(built)[2].weight.copy_(parts(built)[2].weight[order])
    assert torch.allclose(built(x), expected, atol=1e-12)


def test_06_the_bottleneck_may_change_its_basis_on_either_side():
    built, x = moved(), tokens(2, 4, 16)
    expected = on_tasks(built, 1, 4)(x)
    down, _, up = parts(built)
    basis = torch.eye(4, dtype=torch.float64) + 0.3 * tokens(4, 4, seed=9)
    back = torch.linalg.inv(basis)
    with torch.no_grad():
        down.weight.copy_(basis @ down.weight)
        down.transform.copy_(down.transform @ back)
        assert torch.allclose(built(x), expected, atol=1e-10)
        down.transform.copy_(basis @ down.transform)
        up.weight.copy_(up.weight @ back)
    assert torch.allclose(built(x), expected, atol=1e-10)


@pytest.mark.parametrize("diagonal", [False, True])
def test_07_one_weight_equals_the_layer_on_each_task(diagonal: bool):
    built, x = moved(diagonal=diagonal).eval(), tokens(1, 4, 16)
    for task in range(ALL_TASKS):
        weights = parts(built)[1].of_task(task)
        merged = built.delta_weight("default", weights, task)
        assert torch.allclose(merged, delta(built, task), atol=1e-10)
        assert torch.allclose(update(on_tasks(built, task), x), x @ merged.T, atol=1e-10)


def test_07_a_model_merged_for_a_task_answers_as_on_that_task():
    row, data = Row("mtl_lora", "mtl_lora", {"rank": 4}), batch()
    plain = {key: data[key] for key in ("input_ids", "attention_mask")}
    merged = []
    for number, task in enumerate(TASKS):
        model = made(row, tiny().double(), warm=True).double().eval()
        expected = model(**plain, task_index=torch.full((4,), number)).logits
        merged.append(merge_task(model, task))
        assert not any("tessera" in name for name in merged[-1].state_dict())
        assert torch.allclose(merged[-1](**plain).logits, expected, atol=1e-10)
    assert not torch.allclose(merged[0](**plain).logits, merged[1](**plain).logits)


def test_07_a_plain_merge_names_the_one_by_task():
    with pytest.raises(ConfigurationError, match="merge_task"):
        made(Row("mtl_lora", "mtl_lora")).merge_and_unload()
    with pytest.raises(ConfigurationError, match="merge_task"):
        made(Row("one", "mtl_lora", {"experts": 1})).merge_and_unload()
    with pytest.raises(ConfigurationError, match="gamma.*It knows alpha, beta"):
        merge_task(made(Row("mtl_lora", "mtl_lora")), "gamma")
    model = made(Row("split", "split", cells=({"down": "task_transform", "gate": "token", "experts": 2},)))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(ConfigurationError, match="looks at more than the task"):
        merge_task(model, "alpha")
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_08_a_batch_of_several_tasks_equals_its_samples_one_by_one():
    built, x = moved(), tokens(4, 3, 16)
    for order in ([0, 3, 3, 1], [3, 1, 0, 3]):
        together = on_tasks(built, *order)(x)
        for row, task in enumerate(order):
            alone = on_tasks(built, task)(x[row : row + 1])
            assert torch.allclose(together[row], alone[0], atol=1e-12)


def test_09_first_gradients_reach_the_up_matrices_only():
    built = layer().train()
    on_tasks(built, 0, 2)(tokens(2, 4, 16)).square().sum().backward()
    down, gate, up = parts(built)
    assert up.weight.grad.abs().amax((1, 2)).min() > 0
    assert all(weight.grad.abs().max() == 0 for weight in (down.weight, down.transform, gate.weight))


def test_10_tasks_that_a_batch_lacks_get_no_gradient():
    built = moved().train()
    on_tasks(built, 0, 0)(tokens(2, 4, 16)).square().sum().backward()
    down, gate, _ = parts(built)
    for own in (down.transform, gate.weight):
        assert own.grad[0].abs().max() > 0 and own.grad[1:].abs().max() == 0
    assert down.weight.grad.abs().max() > 0


def trained(built):
    """Fifty steps of Adam towards another map for each task."""
    optimiser = torch.optim.Adam([p for p in built.parameters() if p.requires_grad], lr=0.05)
    x, target = tokens(ALL_TASKS, 8, 16), tokens(ALL_TASKS, 8, 24, seed=11)
    before = parts(built)[1].weight.detach().clone()
    for _ in range(50):
        optimiser.zero_grad()
        functional.mse_loss(on_tasks(built, *range(ALL_TASKS))(x), target).backward()
        optimiser.step()
    up = parts(built)[2].weight.detach()
    return (up - up[:1]).abs().max().item(), (parts(built)[1].weight.detach() - before).abs().max().item()


def test_11_equal_logits_would_keep_the_up_matrices_alike_and_the_default_start_does_not():
    built = layer()
    with torch.no_grad():
        parts(built)[1].weight.fill_(0.3)
    apart, changed = trained(built)
    assert apart == 0 and changed <= 1e-8
    apart, changed = trained(layer())
    assert apart > 0.1 and changed > 1e-3


def test_11_logits_start_random_within_the_bound_of_a_kaiming_uniform_table():
    weight = parts(layer(experts=3, tasks=200))[1].weight
    assert weight.abs().max().item() == pytest.approx(3**-0.5, rel=0.02) and weight.std() > 0.3
    peaks = mixtures(layer(experts=3, tasks=200)).max(-1).values
    assert peaks.mean() > 0.8  # at the published temperature the start is peaked already


@pytest.mark.parametrize("temperature", [1e-4, 1e4])
def test_12_the_temperature_chooses_one_up_matrix_or_averages_them(temperature: float):
    built, x = moved(temperature=temperature), tokens(ALL_TASKS, 3, 16)
    down, gate, up = parts(built)
    found = update(on_tasks(built, *range(ALL_TASKS)), x)
    chosen = up.weight[gate.weight.argmax(-1)] if temperature < 1 else up.weight.mean(0).expand(ALL_TASKS, -1, -1)
    expected = 4 * torch.einsum("tlr,tor->tlo", x @ down.weight.T @ down.transform.transpose(1, 2), chosen)
    assert (found - expected).abs().max() / expected.abs().max() < 1e-3


def test_13_mixtures_sum_to_one_in_float32_where_the_layer_runs_in_bfloat16():
    built = layer(dtype=torch.float32).to(torch.bfloat16)
    on_tasks(built, *range(ALL_TASKS))(tokens(ALL_TASKS, 3, 16).to(torch.bfloat16))
    weights = built.slots["default"].weights
    assert weights.dtype == torch.float32
    assert torch.allclose(weights.sum(-1), torch.ones(ALL_TASKS, 1), atol=1e-6)


def test_14_dropout_touches_the_adapter_alone():
    built, x = layer(dropout=0.5).train(), tokens(2, 3, 16)
    assert torch.equal(on_tasks(built, 0, 1)(x), built.base_layer(x))
    warm(built)
    assert not torch.equal(built(x), built(x))
    built.eval()
    assert torch.equal(built(x), built(x))


def test_the_published_settings_are_the_defaults():
    cell = resolve(MethodSpec(name="mtl_lora"))[0]
    assert (cell.rank, cell.alpha, cell.experts, cell.scaling) == (8, 16, 3, 2)
    assert (cell.gate.temperature, cell.down.dropout, cell.down.dropout_on) == (0.1, 0.05, "input")
    assert cell.modules == ["q_proj", "k_proj", "v_proj", "o_proj"] and preset_named("mtl_lora").badge


def test_an_unknown_task_is_an_error_that_names_the_tasks():
    model, data = made(Row("mtl_lora", "mtl_lora"), warm=True).eval(), batch()
    data.pop("task_index")
    with pytest.raises(ConfigurationError, match="which task each sample belongs to.*alpha, beta"):
        model(**data)
    with pytest.raises(ConfigurationError, match="alpha, beta.*names task 2"):
        model(**data, task_index=torch.tensor([0, 1, 2, 0]))
    with model.disable_adapter():
        model(**data)
    alone = Row("alone", "split", cells=({"down": "task_transform", "up": "shared"},))
    with pytest.raises(ConfigurationError, match="alpha, beta"):
        made(alone)(**data)
    cells = resolve(MethodSpec(name="mtl_lora"))
    with pytest.raises(ConfigurationError, match="Name tasks"):
        plan(cells, [Linear(f"layer.0.{name}", 16, 16) for name in cells[0].modules])


def test_a_projection_without_an_axis_of_samples_is_refused():
    built = layer_of(site_of("mtl_lora", 16, 24, tasks=2))
    with pytest.raises(ConfigurationError, match="needs \\(batch, tokens, features\\)"):
        on_tasks(built, 0, 1)(tokens(6, 16))
