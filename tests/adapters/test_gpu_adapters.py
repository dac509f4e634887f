"""The matrix on CUDA: a bfloat16 base, Inductor, activation checkpointing, mixed batches, memory of the tape."""

from __future__ import annotations

import pytest
import torch
from adapters_support import (
    MATRIX,
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
)

from core.adapters.attach import attach, load, save, tape_of
from core.routing.recorder import RoutingRecorder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
rows = pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.id)


def on_gpu(dtype: torch.dtype = torch.bfloat16, **changes) -> torch.nn.Module:
    return tiny(**changes).to("cuda", dtype)


def data_on_gpu(**settings) -> dict[str, torch.Tensor]:
    return {key: value.cuda() for key, value in batch(**settings).items()}


def bfloat16():
    return torch.autocast("cuda", torch.bfloat16)


@rows
def test_training_over_a_bfloat16_base(row: Row, tmp_path):
    model, data = made(row, on_gpu()), data_on_gpu()
    plain = {key: data[key] for key in ("input_ids", "attention_mask")}
    assert torch.equal(model.eval()(**data).logits, on_gpu().eval()(**plain).logits)
    before = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
    model.train()
    optimiser = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    for step in range(5):
        with bfloat16():
            loss = loss_of(model, data_on_gpu(seed=step))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert torch.isfinite(loss)
    assert all(p.dtype == torch.float32 and not torch.equal(p, before[n]) for n, p in trainable(model).items())
    assert all(slot.probs.dtype == torch.float32 for slot in tape_of(model).slots)
    save(model, tmp_path)
    again = load(on_gpu(), tmp_path, name="again").eval()
    assert torch.equal(again(**data).logits, model.eval()(**data).logits)


@rows
def test_layers_compiled_by_inductor_equal_eager_ones(row: Row):
    torch._dynamo.reset()
    data = {**data_on_gpu(), "use_cache": False}
    model = made(row, on_gpu(torch.float32, num_hidden_layers=9)).train()
    warm_up(model)
    for layer in layers_of(model):
        for module in layer.modules():
            for name in ("weight_dropout", "input_dropout", "dropout"):
                if hasattr(module, name):
                    setattr(module, name, 0.0)
    eager = loss_of(model, data)
    eager.backward()
    expected = gradients(model)
    model.zero_grad()
    counters = torch._dynamo.utils.counters
    counters.clear()
    for block in model.base_model.model.model.layers:
        block.compile()
    compiled = loss_of(model, data)
    compiled.backward()
    shapes = {
        tuple((name, s.experts, s.rank, s.gate.word) for name, m in block.named_modules() for s in _sites(m))
        for block in model.base_model.model.model.layers
    }
    assert not counters["graph_break"]
    asked_first = any(slot.site.gate.guided for slot in tape_of(model).slots)  # the base alone is a graph too
    assert counters["stats"]["unique_graphs"] <= len(shapes) + 1 + asked_first
    assert compiled.item() == pytest.approx(eager.item(), abs=1e-4)
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, expected[name], atol=1e-4, rtol=1e-3), name


def _sites(module):
    return getattr(module, "sites", {}).values()


@rows
def test_activation_checkpointing_is_exact(row: Row):
    data, results = data_on_gpu(), []
    for checkpointing in (False, True):
        model = made(row, on_gpu(torch.float32), warm=True).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        loss_of(model, data).backward()
        results.append(gradients(model))
    for name, gradient in results[0].items():
        assert torch.allclose(gradient, results[1][name], atol=1e-5, rtol=1e-4), name


@rows
def test_cached_decoding_equals_the_full_forward(row: Row):
    model = made(row, on_gpu(torch.float32), warm=True).eval()
    data = data_on_gpu(rows=1, prompt=12)
    inputs = {key: data[key] for key in ("input_ids", "attention_mask", "task_index")}
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    out = model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    role = torch.tensor([[1] * 12 + [2] * 5], device="cuda")
    with torch.no_grad():
        full = model(input_ids=out.sequences, token_role=role, task_index=data["task_index"]).logits
    for step, logits in enumerate(out.logits):
        assert torch.allclose(full[:, 11 + step], logits, atol=1e-4)


@torch.no_grad()
def test_adapters_of_all_kinds_in_one_batch():
    model, data = made(MATRIX[0], on_gpu(torch.float32), name=MATRIX[0].id), data_on_gpu(rows=len(MATRIX) + 1)
    for row in MATRIX[1:]:
        attach(model, row.spec, tasks=TASKS, name=row.id)
    for row in MATRIX:
        warm_up(model, row.id)
    model.eval()
    mixed = model(**data, adapter_names=[*(row.id for row in MATRIX), "__base__"]).logits
    for index, row in enumerate(MATRIX):
        model.set_adapter(row.id)
        assert torch.allclose(mixed[index], model(**data).logits[index], atol=1e-4), row.id


@pytest.mark.parametrize("row", PRESETS, ids=lambda row: row.id)
def test_routing_is_recorded_without_waiting_for_the_device(row: Row):
    model, data = made(row, on_gpu(), warm=True).eval(), data_on_gpu()
    recorder = RoutingRecorder(tape_of(model), TASKS)
    with torch.no_grad(), bfloat16():
        model(**data)
        recorder.update()
        torch.cuda.set_sync_debug_mode("error")
        try:
            recorder.update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    snapshot = recorder.snapshot()
    for index, site in enumerate(snapshot.sites):
        share = snapshot.selection_share[:, :, index, : site.experts].sum(-1)
        assert share == pytest.approx(site.selected, abs=1e-3)


def test_checkpointing_frees_what_it_recomputes():
    """The tape must not hold recomputed graphs, or activation checkpointing would save nothing."""
    peaks = []
    for checkpointing in (False, True):
        model = made(PRESETS[1], on_gpu(torch.float32, num_hidden_layers=16, intermediate_size=1024), warm=True).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        data = data_on_gpu(rows=64, tokens=60)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss_of(model, {**data, "use_cache": False}).backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del model
    assert peaks[1] < 0.5 * peaks[0]
