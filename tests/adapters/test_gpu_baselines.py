"""The baselines that PEFT computes on CUDA: a bfloat16 base, recomputed activations, decoding, mixed rows."""

from __future__ import annotations

import pytest
import torch
from adapters_support import PEFT_ROWS, Row, batch, gradients, loss_of, made, tiny, trainable

from core.adapters.attach import load, save

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
rows = pytest.mark.parametrize("row", PEFT_ROWS, ids=lambda row: row.id)


def on_gpu(dtype: torch.dtype = torch.bfloat16) -> torch.nn.Module:
    return tiny().to("cuda", dtype)


def data_on_gpu(**settings) -> dict[str, torch.Tensor]:
    return {key: value.cuda() for key, value in batch(**settings).items()}


@rows
def test_training_over_a_bfloat16_base(row: Row, tmp_path):
    model, data = made(row, on_gpu()), data_on_gpu()
    plain = {key: data[key] for key in ("input_ids", "attention_mask")}
    fresh, base = model.eval()(**data).logits.float(), on_gpu().eval()(**plain).logits.float()
    assert torch.allclose(fresh, base, atol=2e-2)  # DoRA scales by a quotient of two lengths that rounds
    before = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
    model.train()
    optimiser = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    for step in range(5):
        with torch.autocast("cuda", torch.bfloat16):
            loss = loss_of(model, data_on_gpu(seed=step))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert torch.isfinite(loss)
    assert all(p.dtype == torch.float32 and not torch.equal(p, before[n]) for n, p in trainable(model).items())
    save(model, tmp_path)
    again = load(on_gpu(), tmp_path, name="again").eval()
    assert torch.equal(again(**data).logits, model.eval()(**data).logits)


@rows
def test_activation_checkpointing_is_exact(row: Row):
    results = []
    for checkpointing in (False, True):
        model = made(row, on_gpu(torch.float32), warm=True).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        loss_of(model, data_on_gpu()).backward()
        results.append(gradients(model))
    for name, gradient in results[0].items():
        assert torch.allclose(gradient, results[1][name], atol=1e-5, rtol=1e-4), name


@rows
def test_cached_decoding_equals_the_full_forward(row: Row):
    model, data = made(row, on_gpu(torch.float32), warm=True).eval(), data_on_gpu(rows=1, prompt=12)
    inputs = {key: data[key] for key in ("input_ids", "attention_mask", "task_index")}
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    out = model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    with torch.no_grad():
        full = model(input_ids=out.sequences, task_index=data["task_index"]).logits
    for step, logits in enumerate(out.logits):
        assert torch.allclose(full[:, 11 + step], logits, atol=1e-4)


@rows
@torch.no_grad()
def test_rows_of_the_base_stand_beside_rows_of_the_adapter(row: Row):
    model, data = made(row, on_gpu(torch.float32), warm=True).eval(), data_on_gpu()
    mixed = model(**data, adapter_names=["default", "__base__", "__base__", "default"]).logits
    adapted = model(**data).logits
    with model.disable_adapter():
        base = model(**data).logits
    assert torch.allclose(mixed[[0, 3]], adapted[[0, 3]], atol=1e-4)
    assert torch.allclose(mixed[[1, 2]], base[[1, 2]], atol=1e-4)
