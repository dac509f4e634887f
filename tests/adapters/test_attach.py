"""Attaching, naming, copying and merging adapters; other bases; what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from adapters_support import (
    ALL,
    MATRIX,
    TASKS,
    batch,
    layers_of,
    made,
    tiny,
    tiny_gpt2,
    tiny_qwen,
    trainable,
    warm_up,
)

from core.adapters.attach import attach, tape_of
from core.adapters.merging import merge_mean_gates
from core.errors import ConfigurationError
from core.routing.recorder import RoutingRecorder
from core.schema import MethodSpec

BY_ID = {row.id: row for row in MATRIX}


@pytest.mark.parametrize("base", [tiny_qwen, tiny_gpt2])
@pytest.mark.parametrize("row", [BY_ID["mosld"], BY_ID["molora"], BY_ID["split-sequence"]], ids=lambda row: row.id)
def test_other_architectures(base, row):
    data = {key: value for key, value in batch().items() if key != "labels"}
    expected = base().eval()(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits
    model = made(row, base()).eval()
    assert torch.equal(model(**data).logits, expected)
    warm_up(model)
    logits = model(**data).logits
    assert torch.isfinite(logits).all() and not torch.allclose(logits, expected)


def test_the_draw_depends_on_the_seed_alone():
    base = tiny()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = made(BY_ID["mosld"], base, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    second, other = made(BY_ID["mosld"], seed=3), made(BY_ID["mosld"], seed=4)
    for name, parameter in trainable(first).items():
        assert torch.equal(parameter, trainable(second)[name])
    assert any(not torch.equal(p, trainable(other)[n]) for n, p in trainable(first).items())


@pytest.mark.parametrize("name", ["mlp", "q_proj", "layers", "a.b", "", "__base__", "tessera_up"])
def test_names_that_would_lose_tensors_are_refused(name):
    with pytest.raises(ConfigurationError):
        attach(made(BY_ID["lora"]), MethodSpec(name="lora"), tasks=[], name=name)


def test_a_second_adapter_of_the_same_name_is_refused():
    with pytest.raises(ConfigurationError, match="already has"):
        attach(made(BY_ID["lora"]), MethodSpec(name="lora"), tasks=[])


def test_a_model_that_ran_can_be_copied():
    model = made(BY_ID["mosld"], warm=True)
    model(**batch()).loss.backward()
    twin = copy.deepcopy(model).eval()
    assert tape_of(twin) is not tape_of(model)
    assert all(layer.tape is tape_of(twin) for layer in layers_of(twin))
    assert all(layer.slots["default"] in tape_of(twin).slots for layer in layers_of(twin))
    assert torch.equal(twin(**batch()).logits, model.eval()(**batch()).logits)


def test_two_active_adapters_add_up():
    model = made(BY_ID["mosld"], warm=True).eval()
    attach(model, BY_ID["lora"].spec, tasks=TASKS, name="second")
    warm_up(model, "second")
    layer, x = layers_of(model)[0], torch.randn(1, 4, 32)
    base = layer.base_layer(x)
    parts = []
    for active in ("default", "second", ["default", "second"]):
        model.base_model.set_adapter(active)
        parts.append(layer(x) - base)
    assert torch.allclose(parts[0] + parts[1], parts[2], atol=1e-6)


def test_experts_that_are_only_added_up_merge_exactly_and_back():
    model = made(BY_ID["split-sum"], warm=True).eval()
    data = batch()
    expected, weight = model(**data).logits, layers_of(model)[0].base_layer.weight.clone()
    model.merge_adapter()
    assert torch.allclose(model(**data).logits, expected, atol=1e-5)
    model.unmerge_adapter()
    assert torch.allclose(layers_of(model)[0].base_layer.weight, weight, atol=1e-6)
    assert torch.allclose(model(**data).logits, expected, atol=1e-5)


def test_mean_gates_merge_to_the_update_with_constant_gates():
    model = made(BY_ID["hydralora"], warm=True).eval()
    data = batch()
    recorder = RoutingRecorder(tape_of(model), TASKS)
    model(**data)
    recorder.update()
    with torch.no_grad():  # routers that ignore their input give constant gates: the merge is then exact
        for layer in layers_of(model):
            layer.tessera_gate["default"].weight.zero_()
    expected = model(**data).logits
    recorder = RoutingRecorder(tape_of(model), TASKS)
    recorder.update()
    merged = merge_mean_gates(model, recorder.snapshot())
    assert not any("tessera" in name for name in merged.state_dict())
    plain = {key: data[key] for key in ("input_ids", "attention_mask")}
    assert torch.allclose(merged(**plain).logits, expected, atol=1e-5)


def test_a_task_gate_needs_the_task_and_knows_its_tasks():
    model = made(BY_ID["split-task"]).eval()
    data = batch()
    data.pop("task_index")
    with pytest.raises(ConfigurationError, match="task_index"):
        model(**data)
    with pytest.raises(ConfigurationError, match="tasks"):
        attach(tiny(), BY_ID["split-task"].spec, tasks=[])
    with pytest.raises(ConfigurationError, match="2 tasks"):
        model(**data, task_index=torch.tensor([0, 1, 2, 0]))
    with pytest.raises(ConfigurationError, match="task_index has 3 rows"):
        model(**data, task_index=torch.tensor([0, 1, 1]))


def test_a_sequence_gate_refuses_to_decide_from_the_middle():
    model = made(BY_ID["split-sequence"]).eval()
    with model.disable_adapter():
        cache = model(input_ids=batch()["input_ids"], use_cache=True).past_key_values
    with pytest.raises(ConfigurationError, match="cache"):
        model(input_ids=batch()["input_ids"][:, :1], past_key_values=cache)


@torch.no_grad()
def test_a_sequence_decision_stays_with_its_cache():
    model = made(BY_ID["split-sequence"], warm=True).eval()
    ids = torch.randint(3, 64, (2, 9))
    first = model(input_ids=ids[:, :6], use_cache=True)
    decision = [slot.weights.clone() for slot in tape_of(model).slots]
    model(input_ids=torch.randint(3, 64, (2, 9)))  # another text in between
    last = model(input_ids=ids[:, 6:], past_key_values=copy.deepcopy(first.past_key_values))
    assert all(torch.equal(slot.weights, w) for slot, w in zip(tape_of(model).slots, decision, strict=True))
    role = torch.tensor([1] * 6 + [2] * 3).expand(2, -1)
    full = model(input_ids=ids, token_role=role)
    assert torch.allclose(last.logits, full.logits[:, 6:], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rnk": 4}, "rnk is not a setting.*Did you mean rank"),
        ({"top_k": 0}, "top_k"),
        ({"experts": []}, "experts"),
        ({"modules": ["q_porj"]}, "q_porj|q_proj"),
        ({"layers": ["2-9"]}, "layer 9.*last layer of the base is 2"),
        ({"layers": ["two"]}, "two"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ConfigurationError, match=message):
        attach(tiny(), MethodSpec(name="mosld", options=options), tasks=TASKS)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"down": "shred"}, "did you mean 'shared'"),
        ({"gate": {"word": "token", "topk": 2}}, "topk"),
        ({"gate": "sometimes"}, "the words are"),
        ({"modules": "([", "down": "shared"}, "regular expression"),
        ({"modules": ["lm_heads"]}, "no projection|matches no"),
        ({"ranks": 3}, "ranks.*Did you mean rank"),
    ],
)
def test_wrong_cells_are_explained(cell, message):
    with pytest.raises(ConfigurationError, match=message):
        attach(tiny(), MethodSpec(name="split", cells=[cell]), tasks=TASKS)


def test_a_cell_that_can_match_nothing_any_more_is_named():
    cells = [{"modules": ALL}, {"modules": ["q_proj"]}]
    with pytest.raises(ConfigurationError, match="Cell 2 comes after"):
        attach(tiny(), MethodSpec(name="split", cells=cells), tasks=TASKS)


def test_an_unknown_method_is_named_with_its_neighbour():
    with pytest.raises(ConfigurationError, match="Did you mean mosld"):
        attach(tiny(), MethodSpec(name="mosl"), tasks=TASKS)
    with pytest.raises(ConfigurationError, match="adapts nothing"):
        attach(tiny(), MethodSpec(name="base"), tasks=TASKS)
