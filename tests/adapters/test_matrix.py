"""What holds for every method: a preset or a split is one row of ``adapters_support``."""

from __future__ import annotations

import pytest
import torch
from adapters_support import (
    MATRIX,
    PEFT_ROWS,
    PRESETS,
    TASKS,
    Row,
    batch,
    gradients,
    layers_of,
    loss_of,
    made,
    tiny,
    trainable,
    warm_up,
)  # fmt: skip
from peft import PeftModel

from core.adapters.attach import attach, load, save, tape_of
from core.adapters.methods import presets
from core.errors import ConfigurationError
from core.routing.recorder import RoutingRecorder

rows = pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.id)


def test_every_preset_has_a_row():
    assert {row.name for row in (*MATRIX, *PEFT_ROWS)} == set(presets())


@rows
@pytest.mark.parametrize("training", [True, False])
def test_a_fresh_adapter_changes_nothing(row: Row, training: bool):
    data = batch()
    data.pop("labels")
    plain = {key: data[key] for key in ("input_ids", "attention_mask")}
    model = made(row).train(training)
    assert torch.equal(model(**data).logits, tiny().train(training)(**plain).logits)


@rows
def test_only_the_adapter_trains_and_every_tensor_moves(row: Row):
    model = made(row).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    for step in range(5):
        loss_of(model, batch(seed=step)).backward()
        optimiser.step()
        optimiser.zero_grad()
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter) is not (".tessera_" in name), name


@rows
def test_saved_and_loaded_logits_are_identical(row: Row, tmp_path):
    model, data = made(row, warm=True).eval(), batch()
    expected = model(**data).logits
    save(model, tmp_path / "adapter")
    loaded = load(tiny(), tmp_path / "adapter", name="again").eval()
    assert torch.equal(loaded(**data).logits, expected)
    assert not trainable(loaded)
    assert loaded.peft_config["again"].tasks == TASKS
    by_peft = PeftModel.from_pretrained(tiny(), tmp_path / "adapter").eval()
    assert torch.equal(by_peft(**data).logits, expected)


@rows
def test_a_loaded_adapter_trains_on(row: Row, tmp_path):
    save(made(row, warm=True), tmp_path)
    model = load(tiny(), tmp_path, name="again", trainable=True).train()
    loss_of(model, batch()).backward()
    assert set(gradients(model)) == set(trainable(model))


@rows
def test_routing_sums_are_right_on_three_layers(row: Row):
    model, data = made(row, warm=True).eval(), batch()
    recorder = RoutingRecorder(tape_of(model), TASKS)
    for _ in range(2):
        model(**data)
        recorder.update()
    snapshot = recorder.snapshot()
    assert {site.layer for site in snapshot.sites} <= {0, 1, 2}
    gates = [slot.site.gate for slot in tape_of(model).slots for _ in range(slot.site.gate.groups(slot.site))]
    assert len(snapshot.sites) == len(gates)
    for index, (site, word) in enumerate(zip(snapshot.sites, gates, strict=True)):
        total = snapshot.mean_gate[:, :, index, : site.experts].sum(-1)
        if word.sums_to_one:
            assert total == pytest.approx(1, abs=1e-5)
        elif not word.signed:
            assert (total < 1 + 1e-5).all()
        assert snapshot.selection_share[:, :, index, : site.experts].sum(-1) == pytest.approx(site.selected, abs=1e-5)
        assert snapshot.top1_share[:, :, index, : site.experts].sum(-1) == pytest.approx(1, abs=1e-5)
        if site.unit == "sample":
            assert (snapshot.count[:, :, index] == 4).all()  # two rows of each task, twice
        else:
            assert snapshot.count[0, :, index].tolist() == [28, 28]
            assert snapshot.count[1, :, index].tolist() == [20, 14]  # the second row is padded by three


@rows
def test_activation_checkpointing_is_exact(row: Row):
    data, results = batch(), []
    for checkpointing in (False, True):
        model = made(row, warm=True).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        loss = loss_of(model, data)
        written = [slot.probs for slot in tape_of(model).slots]
        loss.backward()
        assert all(slot.probs is probs for slot, probs in zip(tape_of(model).slots, written, strict=True))
        results.append((loss.item(), gradients(model)))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    for name, gradient in results[0][1].items():
        assert torch.allclose(gradient, results[1][1][name], atol=1e-6), name


def test_reentrant_checkpointing_is_refused():
    model = made(PRESETS[1]).train()
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ConfigurationError, match="use_reentrant"):
        model(**batch())


@rows
def test_autocast_keeps_routers_and_adapters_in_float32(row: Row):
    model = made(row, warm=True).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, batch())
    loss.backward()
    assert all(slot.probs.dtype == torch.float32 for slot in tape_of(model).slots)
    assert all(p.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in trainable(model).values())
    exact = loss_of(made(row, warm=True).train(), batch())
    assert loss.item() == pytest.approx(exact.item(), abs=0.2)


@rows
def test_adapters_of_a_bfloat16_base_are_float32(row: Row):
    model = made(row, tiny().to(torch.bfloat16), warm=True).train()
    loss_of(model, batch()).backward()
    assert model(**batch()).logits.dtype == torch.bfloat16
    assert {p.grad.dtype for p in trainable(model).values()} == {torch.float32}


@rows
def test_cached_decoding_equals_the_full_forward(row: Row):
    model = made(row, warm=True).eval()
    data = batch(prompt=12)
    data["input_ids"][1], data["attention_mask"][1] = data["input_ids"][0], 1
    prompt = {"input_ids": data["input_ids"], "attention_mask": data["attention_mask"]}
    task = {"task_index": data["task_index"]}
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
    out = model.generate(**prompt, **task, **settings, output_logits=True)
    role = torch.tensor([1] * 12 + [2] * 5).expand(4, -1)
    full = model(input_ids=out.sequences, token_role=role, **task).logits
    for step, logits in enumerate(out.logits):
        assert torch.allclose(full[:, 11 + step], logits, atol=1e-5)
    slow = model.generate(**prompt, **task, **settings, use_cache=False)
    assert torch.equal(slow.sequences, out.sequences)


@rows
def test_beams_and_several_answers_address_their_rows(row: Row):
    model, data = made(row, warm=True).eval(), batch(prompt=12)
    inputs = {key: data[key][2:] for key in ("input_ids", "attention_mask", "task_index")}
    settings = {"num_beams": 2, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    both = model.generate(**inputs, **settings)
    for index in range(2):
        alone = {key: value[index : index + 1] for key, value in inputs.items()}
        assert torch.equal(model.generate(**alone, **settings)[0], both[index])


@rows
def test_padding_on_either_side_changes_nothing(row: Row):
    model = made(row, warm=True).eval()
    data = batch(rows=1, tokens=8, prompt=5)
    data.pop("labels")
    expected = model(**data).logits
    for left in (True, False):
        padded = dict(data)
        for key in ("input_ids", "attention_mask", "token_role"):
            pad = torch.zeros(1, 4, dtype=data[key].dtype)
            padded[key] = torch.cat([pad, data[key]] if left else [data[key], pad], 1)
        positions = (padded["attention_mask"].cumsum(-1) - 1).clamp_min(0)
        logits = model(**padded, position_ids=positions).logits
        assert torch.allclose(logits[:, 4:] if left else logits[:, :8], expected, atol=1e-5)


@rows
def test_a_batch_of_one_is_its_row_of_a_larger_batch(row: Row):
    model, data = made(row, warm=True).eval(), batch()
    together = model(**data).logits
    for index in range(4):
        alone = {key: value[index : index + 1] for key, value in data.items()}
        assert torch.allclose(model(**alone).logits[0], together[index], atol=1e-5)
    loss_of(model.train(), alone).backward()
    assert set(gradients(model)) == set(trainable(model))


@rows
def test_gradient_accumulation_equals_one_large_batch(row: Row):
    """Auxiliary losses are means over a pass, so they are divided by the micro-steps; repeating a micro-batch gives
    each pass the same means as the large batch."""
    data = batch()
    large = {key: torch.cat([value, value]) for key, value in data.items()}
    model = made(row, warm=True).eval()  # no dropout: its masks differ between passes by design
    loss_of(model, large).backward()
    expected = gradients(model)
    model.zero_grad()
    answers = (large["labels"][:, 1:] != -100).sum()
    for _ in range(2):
        output = model(**data, num_items_in_batch=answers)
        auxiliary = tape_of(model).auxiliary_loss()
        (output.loss + (0 if auxiliary is None else auxiliary / 2)).backward()
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, expected[name], atol=1e-6), name


# One for each way in which gates write and read; compiling takes ten seconds.
COMPILED = ("mosld", "moa", "moa-soft", "mode", "mor1e", "mixlora", "moelora")


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row.id, marks=() if row.id in COMPILED else pytest.mark.long) for row in MATRIX],
)
def test_layer_by_layer_compilation_makes_a_graph_per_shape(row: Row):
    torch._dynamo.reset()
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    data = {**batch(), "use_cache": False}
    model = made(row, tiny(num_hidden_layers=9), warm=True).train()  # PyTorch gives up after eight graphs
    _no_dropout(model)
    loss_of(model, data).backward()
    expected = gradients(model)
    model.zero_grad()
    for layer in model.base_model.model.model.layers:
        layer.compile(backend=backend)
    for _ in range(2):
        model.zero_grad()
        loss_of(model, data).backward()
    shapes = {
        tuple((name, site.experts, site.rank, site.gate.word) for name, site in _sites(layer))
        for layer in model.base_model.model.model.layers
    }
    asked_first = any(slot.site.gate.guided for slot in tape_of(model).slots)  # the base alone is a graph too
    assert len(graphs) <= len(shapes) + 1 + asked_first
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, expected[name], atol=1e-5), name


@pytest.mark.parametrize("row", [row for row in MATRIX if row.id in COMPILED], ids=lambda row: row.id)
def test_compiled_halves_of_a_block_recompute_what_they_computed(row: Row):
    """Where recomputation ran another graph than the forward, checkpointing would refuse or take wrong tensors."""
    torch._dynamo.reset()
    data = {**batch(), "use_cache": False}
    model = made(row, warm=True).train()
    _no_dropout(model)
    loss_of(model, data).backward()
    expected = gradients(model)
    model.zero_grad()
    model.enable_input_require_grads()
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    for block in model.base_model.model.model.layers:
        block.self_attn.compile(backend="aot_eager")
        block.mlp.compile(backend="aot_eager")
    for _ in range(2):
        model.zero_grad()
        loss_of(model, data).backward()
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, expected[name], atol=1e-5), name


def _no_dropout(model) -> None:
    """Dropout draws differ under compilation."""
    for layer in layers_of(model):
        for module in layer.modules():
            for name in ("weight_dropout", "input_dropout", "dropout"):
                if hasattr(module, name):
                    setattr(module, name, 0.0)


def _sites(block):
    for name, module in block.named_modules():
        for site in getattr(module, "sites", {}).values():
            yield name, site


@rows
def test_disabling_gives_the_base_and_deleting_leaves_nothing(row: Row):
    model, data = made(row, warm=True).eval(), batch()
    expected = tiny().eval()(**{key: data[key] for key in ("input_ids", "attention_mask")}).logits
    with model.disable_adapter():
        assert torch.equal(model(**data).logits, expected)
    attach(model, row.spec, tasks=TASKS, name="second")
    warm_up(model, "second", seed=8)
    model.set_adapter("second")
    second = model(**data).logits
    model.delete_adapter("default")
    assert torch.equal(model(**data).logits, second)
    assert tape_of(model).adapters() in ([], ["second"])
    assert not any(".default" in name for name in model.state_dict())


def test_adapters_of_all_kinds_share_one_base_and_one_batch():
    model, data = made(MATRIX[0], name=MATRIX[0].id, warm=True), batch(rows=2 * len(MATRIX) + 1)
    data.pop("labels")
    for row in MATRIX[1:]:
        attach(model, row.spec, tasks=TASKS, name=row.id)
    for row in MATRIX:
        warm_up(model, row.id, seed=sum(map(ord, row.id)))
    model.eval()
    names = [row.id for row in MATRIX] + ["__base__"] + [row.id for row in reversed(MATRIX)]
    mixed = model(**data, adapter_names=names).logits
    recorders = {row.id: RoutingRecorder(tape_of(model), TASKS, row.id) for row in MATRIX}
    for recorder in recorders.values():
        recorder.update()
    ids = {key: value[:, :7] if value.dim() == 2 else value for key, value in data.items() if key != "token_role"}
    generated = model.generate(**ids, adapter_names=names, max_new_tokens=3, do_sample=False)
    for row in MATRIX:
        model.set_adapter(row.id)
        alone = model(**data).logits
        text = model.generate(**ids, max_new_tokens=3, do_sample=False)
        mine = [index for index, name in enumerate(names) if name == row.id]
        assert torch.allclose(mixed[mine], alone[mine], atol=1e-5), row.id
        assert torch.equal(generated[mine], text[mine]), row.id
        snapshot = recorders[row.id].snapshot()
        for index, site in enumerate(snapshot.sites):
            tokens = data["attention_mask"][mine].sum()
            seen = snapshot.count[:, :, index].sum() / (2 if site.unit == "sample" else 1)
            assert seen == (len(mine) if site.unit == "sample" else tokens)
    with model.disable_adapter():
        base = model(**data).logits
    assert torch.equal(mixed[len(MATRIX)], base[len(MATRIX)])


def test_an_unknown_adapter_in_a_batch_is_named():
    model = made(MATRIX[0]).eval()
    with pytest.raises(ConfigurationError, match="no adapter 'defalt'.*Did you mean default"):
        model(**batch(), adapter_names=["defalt"] * 4)
