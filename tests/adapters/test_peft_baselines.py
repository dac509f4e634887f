"""The baselines that PEFT computes: what holds for every method holds for them, on a base of their own."""

from __future__ import annotations

import pytest
import torch
from adapters_support import (
    MATRIX,
    PEFT_ROWS,
    TASKS,
    Row,
    batch,
    gradients,
    loss_of,
    made,
    tiny,
    tiny_gpt2,
    trainable,
    warm_up,
)
from peft import LoraConfig, PeftModel, PolyConfig, get_peft_model

from core import catalog
from core.adapters.attach import attach, load, save, tape_of
from core.adapters.export import export
from core.adapters.peft_lora import export_peft_lora
from core.adapters.peft_methods import BaselineModel
from core.errors import ConfigurationError, DataError
from core.routing.recorder import RoutingRecorder
from core.schema import MethodSpec, ModelSpec
from tests.support.bases import DECODERS

rows = pytest.mark.parametrize("row", PEFT_ROWS, ids=lambda row: row.id)
PLAIN = ("input_ids", "attention_mask")


def plain(data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: data[key] for key in PLAIN}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny().config.save_pretrained(folder)
    return catalog.shapes(ModelSpec(base=str(folder)), folder / "cache")


@rows
def test_the_count_before_launch_equals_the_built_model(shapes, row: Row):
    built = sum(parameter.numel() for parameter in trainable(made(row)).values())
    assert catalog.trainable_parameters(row.spec, shapes, len(TASKS)) == built > 0


@rows
def test_a_fresh_adapter_changes_nothing(row: Row):
    data = batch()
    data.pop("labels")
    assert torch.equal(made(row).eval()(**data).logits, tiny().eval()(**plain(data)).logits)


@rows
def test_only_the_adapter_trains_and_every_tensor_moves(row: Row):
    model = made(row).train()
    mine, before = set(trainable(model)), {name: value.detach().clone() for name, value in model.named_parameters()}
    optimiser = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    for step in range(5):
        loss_of(model, batch(seed=step)).backward()
        optimiser.step()
        optimiser.zero_grad()
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter) is not (name in mine), name


@rows
def test_the_same_seed_gives_the_same_adapter(row: Row):
    first, again, other = made(row, seed=1), made(row, seed=1), made(row, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@rows
def test_saved_and_loaded_logits_are_identical(row: Row, tmp_path):
    model, data = made(row, warm=True).eval(), batch()
    expected = model(**data).logits
    save(model, tmp_path)
    loaded = load(tiny(), tmp_path, name="again").eval()
    assert torch.equal(loaded(**data).logits, expected)
    assert not trainable(loaded)
    config = loaded.peft_config["again"]
    assert (config.method, config.options, config.tasks) == (row.name, row.options, TASKS)
    with pytest.warns(UserWarning, match="method.*options.*tasks"):  # PEFT passes over what is the studio's
        theirs = PeftModel.from_pretrained(tiny(), tmp_path).eval()
    extra = {"task_ids": data["task_index"]} if row.name == "poly" else {}
    assert torch.equal(theirs(**plain(data), **extra).logits, expected)


@rows
def test_a_loaded_adapter_trains_on(row: Row, tmp_path):
    save(made(row, warm=True), tmp_path)
    model = load(tiny(), tmp_path, name="again", trainable=True).train()
    loss_of(model, batch()).backward()
    assert set(gradients(model)) == set(trainable(model)) != set()


@rows
def test_the_tape_is_empty(row: Row):
    model = made(row, warm=True).eval()
    recorder = RoutingRecorder(tape_of(model), TASKS)
    model(**batch())
    recorder.update()
    assert recorder.snapshot().sites == [] and tape_of(model).auxiliary_loss() is None


@rows
def test_activation_checkpointing_is_exact(row: Row):
    data, results = batch(), []
    for checkpointing in (False, True):
        model = made(row, warm=True).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        loss = loss_of(model, data)
        loss.backward()
        results.append((loss.item(), gradients(model)))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    for name, gradient in results[0][1].items():
        assert torch.allclose(gradient, results[1][1][name], atol=1e-6), name


@rows
def test_adapters_of_a_bfloat16_base_are_float32(row: Row):
    model = made(row, tiny().to(torch.bfloat16), warm=True).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, batch())
    loss.backward()
    assert {p.grad.dtype for p in trainable(model).values()} == {torch.float32}
    assert model(**batch()).logits.dtype == torch.bfloat16


@rows
def test_cached_decoding_equals_the_full_forward(row: Row):
    model, data = made(row, warm=True).eval(), batch(prompt=12)
    data["attention_mask"][1], data["input_ids"][1] = 1, data["input_ids"][0]
    inputs = {key: data[key] for key in (*PLAIN, "task_index")}
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
    out = model.generate(**inputs, **settings, output_logits=True)
    full = model(input_ids=out.sequences, task_index=data["task_index"]).logits
    for step, logits in enumerate(out.logits):
        assert torch.allclose(full[:, 11 + step], logits, atol=1e-5)
    assert torch.equal(model.generate(**inputs, **settings, use_cache=False).sequences, out.sequences)
    beams = model.generate(**inputs, num_beams=2, max_new_tokens=3, do_sample=False)
    alone = {key: value[2:3] for key, value in inputs.items()}
    assert torch.equal(model.generate(**alone, num_beams=2, max_new_tokens=3, do_sample=False)[0], beams[2])


@rows
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_padding_changes_nothing(row: Row, left: bool):
    model, data = made(row, warm=True).eval(), batch(rows=1, tokens=8, prompt=5)
    data.pop("labels")
    expected = model(**data).logits
    for key in (*PLAIN, "token_role"):
        pad = torch.zeros(1, 4, dtype=data[key].dtype)
        data[key] = torch.cat([pad, data[key]] if left else [data[key], pad], 1)
    logits = model(**data, position_ids=(data["attention_mask"].cumsum(-1) - 1).clamp_min(0)).logits
    assert torch.allclose(logits[:, 4:] if left else logits[:, :8], expected, atol=1e-5)


@rows
def test_rows_of_the_base_stand_beside_rows_of_the_adapter(row: Row):
    model, data = made(row, warm=True).eval(), batch()
    data.pop("labels")
    mixed = model(**data, adapter_names=["default", "__base__", "__base__", "default"]).logits
    adapted = model(**data).logits
    with model.disable_adapter():
        base = model(**data).logits
    assert torch.equal(base, tiny().eval()(**plain(data)).logits)
    assert torch.allclose(mixed[[0, 3]], adapted[[0, 3]], atol=1e-6)
    assert torch.allclose(mixed[[1, 2]], base[[1, 2]], atol=1e-6)
    with pytest.raises(ConfigurationError, match="no adapter 'other'"):
        model(**data, adapter_names=["default"] * 3 + ["other"])


@rows
def test_one_baseline_to_a_base(row: Row, tmp_path):
    save(made(row), tmp_path)
    with pytest.raises(ConfigurationError, match=f"{row.name} cannot share a base with mine"):
        load(made(MATRIX[0], name="mine"), tmp_path, name="second")
    with pytest.raises(ConfigurationError, match="cannot share a base with default"):
        attach(made(row), MATRIX[0].spec, tasks=TASKS, name="second")
    with pytest.raises(ConfigurationError, match="cannot share a base"):
        attach(made(row), row.spec, tasks=TASKS, name="second")


@rows
def test_unloading_leaves_the_base(row: Row):
    model = made(row, warm=True).eval()
    base = model.unload()
    assert not isinstance(base, BaselineModel)
    assert torch.equal(base(**plain(batch())).logits, tiny().eval()(**plain(batch())).logits)


@rows
def test_what_asks_for_experts_is_refused(row: Row, tmp_path):
    with pytest.raises(ConfigurationError, match=f"{row.name} is computed by PEFT's own layers"):
        export_peft_lora(made(row), tmp_path)


@rows
def test_a_folder_of_another_base_is_refused(row: Row, tmp_path):
    save(made(row), tmp_path)
    with pytest.raises((DataError, ConfigurationError), match="base"):
        load(tiny(hidden_size=64), tmp_path, name="x")


@rows
def test_an_exported_folder_loads_by_its_own_code(row: Row, tmp_path):
    """In a process that sees none of this checkout but the exported folder."""
    import subprocess
    import sys

    model, data = made(row, warm=True).eval(), batch()
    export(model, tmp_path / "out")
    torch.save((data, model(**data).logits), tmp_path / "expected.pt")
    tiny().save_pretrained(tmp_path / "base")
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1] + '/out'); from tessera_adapter import load; "
        "data, expected = torch.load(sys.argv[1] + '/expected.pt'); "
        "model = load(sys.argv[1] + '/base', dtype=torch.float32).eval(); "
        "assert torch.allclose(model(**data).logits, expected, atol=1e-6)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_dora_is_that_of_peft(tmp_path):
    torch.manual_seed(0)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    theirs = get_peft_model(tiny(), LoraConfig(**settings, use_dora=True)).eval()
    warm_up(theirs)
    theirs.save_pretrained(str(tmp_path))
    ours = load(tiny(), tmp_path, name="imported").eval()
    assert torch.equal(ours(**batch()).logits, theirs(**plain(batch())).logits)
    assert ours.peft_config["imported"].method == "dora"
    merged = ours.merge_and_unload()
    assert torch.allclose(merged(**plain(batch())).logits, theirs(**plain(batch())).logits, atol=1e-5)


def test_poly_takes_our_task_numbers(tmp_path):
    torch.manual_seed(0)
    config = PolyConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], n_tasks=2, n_skills=3)
    theirs = get_peft_model(tiny(), config).eval()
    warm_up(theirs)
    theirs.save_pretrained(str(tmp_path))
    ours, data = load(tiny(), tmp_path, name="imported").eval(), batch()
    expected = theirs(**plain(data), task_ids=data["task_index"]).logits
    assert torch.equal(ours(**data).logits, expected)
    swapped = ours(**{**data, "task_index": 1 - data["task_index"]}).logits
    assert not torch.allclose(swapped, expected, atol=1e-4)
    assert ours.peft_config["imported"].tasks == ["task 0", "task 1"]


def test_poly_names_what_is_wrong_with_the_task():
    model, data = made(PEFT_ROWS[1]).eval(), batch()
    with pytest.raises(ConfigurationError, match="does not say which task"):
        model(**plain(data))
    with pytest.raises(ConfigurationError, match="2 tasks, counted from 0 .alpha, beta., but the batch names task 5"):
        model(**plain(data), task_index=torch.tensor([0, 1, 5, 0]))
    with pytest.raises(ConfigurationError, match="no tasks"):
        attach(tiny(), PEFT_ROWS[1].spec, tasks=[])


def test_dora_stands_on_transposed_projections_and_poly_says_that_it_does_not(tmp_path):
    model, data = made(PEFT_ROWS[0], tiny_gpt2()).eval(), batch()
    warm_up(model)
    save(model, tmp_path)
    assert torch.equal(load(tiny_gpt2(), tmp_path, name="x").eval()(**data).logits, model(**data).logits)
    with pytest.raises(ConfigurationError, match="this projection is a Conv1D"):
        made(PEFT_ROWS[1], tiny_gpt2())
    tiny_gpt2().config.save_pretrained(tmp_path / "base")
    shapes = catalog.shapes(ModelSpec(base=str(tmp_path / "base")), tmp_path / "cache")
    with pytest.raises(ConfigurationError, match="this projection is a Conv1D"):  # before launch
        catalog.trainable_parameters(PEFT_ROWS[1].spec, shapes, len(TASKS))


def test_poly_says_where_the_axis_of_samples_is_missing():
    opt = next(base for base in DECODERS if base.id == "opt").made()
    model, data = attach(opt, PEFT_ROWS[1].spec, tasks=TASKS), batch()
    with pytest.raises(ConfigurationError, match=r"Poly needs \(batch, tokens, features\), but \S+fc1 sees"):
        model(**data)


def test_rslora_is_that_of_peft(tmp_path):
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    torch.manual_seed(1)
    theirs = get_peft_model(tiny(), LoraConfig(**settings, use_rslora=True)).eval()
    warm_up(theirs)
    ours = attach(tiny(), MethodSpec(name="rslora", options={"rank": 4, "alpha": 6}), tasks=TASKS).eval()
    names = {"lora_A": "tessera_down", "lora_B": "tessera_up"}
    own, expected = dict(ours.named_parameters()), theirs(**plain(batch())).logits
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora_" in name:
                kind = next(kind for kind in names if kind in name)
                own[name.replace(kind, names[kind])][0].copy_(value)
    assert torch.allclose(ours(**batch()).logits, expected, atol=1e-6)
    plain_lora = attach(tiny(), MethodSpec(name="lora", options={"rank": 4, "alpha": 6}), tasks=TASKS).eval()
    assert plain_lora.get_nb_trainable_parameters() == ours.get_nb_trainable_parameters()
