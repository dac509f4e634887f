"""LoRA is PEFT's LoRA: equal logits and gradients, and its folders come in and go out."""

from __future__ import annotations

import json

import pytest
import torch
from adapters_support import MATRIX, TASKS, batch, gradients, made, tiny, tiny_gpt2, tiny_qwen
from peft import LoraConfig, PeftModel, get_peft_model

from core.adapters.attach import attach, load
from core.adapters.folders import CONFIG, WEIGHTS
from core.adapters.peft_lora import cells_of_lora, export_peft_lora
from core.errors import ConfigurationError, DataError, NotFoundError
from core.schema import MethodSpec

PLAIN = ("input_ids", "attention_mask", "labels")


def plain(seed: int = 1) -> dict[str, torch.Tensor]:
    data = batch(seed)
    return {key: data[key] for key in PLAIN}


def peft_lora(base, folder, **settings):
    """A PEFT LoRA with trained-looking matrices, saved to a folder."""
    defaults = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(**{**defaults, **settings}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(str(folder))
    return model


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_logits_and_gradients_equal_those_of_peft(tmp_path, dropout: float):
    theirs = peft_lora(tiny(), tmp_path, lora_dropout=dropout).train()
    ours = load(tiny(), tmp_path, name="default", trainable=True).train()
    results = []
    for model in (theirs, ours):
        torch.manual_seed(5)
        output = model(**plain())
        output.loss.backward()
        results.append((output.logits, gradients(model)))
    (logits, expected), (found, grads) = results
    assert torch.allclose(found, logits, atol=1e-6)
    assert len(grads) == len(expected) == 12
    for name, gradient in expected.items():
        name = name.replace("lora_A.default", "tessera_down.default").replace("lora_B.default", "tessera_up.default")
        assert torch.allclose(grads[name][0], gradient, atol=1e-6), name


def test_a_fresh_lora_starts_like_that_of_peft():
    ours = attach(tiny(), MethodSpec(name="lora"), tasks=TASKS)
    theirs = get_peft_model(tiny(), LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    bound = max(p.abs().max().item() for n, p in theirs.named_parameters() if "lora_A" in n)
    down = [p for n, p in ours.named_parameters() if "tessera_down" in n]
    assert max(p.abs().max().item() for p in down) == pytest.approx(bound, rel=0.05)
    assert all(p.abs().max() == 0 for n, p in ours.named_parameters() if "tessera_up" in n)
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(q|down)_proj"},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 7}},
        {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
        {"use_rslora": True, "rank_pattern": {"v_proj": 2}},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_peft_folders_load_with_equal_logits(tmp_path, settings):
    theirs = peft_lora(tiny(), tmp_path, **settings).eval()
    ours = load(tiny(), tmp_path, name="imported").eval()
    assert torch.allclose(ours(**plain()).logits, theirs(**plain()).logits, atol=1e-6)


@pytest.mark.parametrize(("base", "modules"), [(tiny_qwen, "all-linear"), (tiny_gpt2, ["c_attn", "c_fc"])])
def test_other_architectures_load_export_and_merge(tmp_path, base, modules):
    theirs = peft_lora(base(), tmp_path / "in", target_modules=modules, fan_in_fan_out=base is tiny_gpt2).eval()
    expected = theirs(**plain()).logits
    ours = load(base(), tmp_path / "in", name="imported").eval()
    assert torch.allclose(ours(**plain()).logits, expected, atol=1e-6)
    export_peft_lora(ours, tmp_path / "out", "imported")
    again = PeftModel.from_pretrained(base(), tmp_path / "out").eval()
    assert torch.allclose(again(**plain()).logits, expected, atol=1e-6)
    merged = ours.merge_and_unload()
    assert torch.allclose(merged(**plain()).logits, expected, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}}])
def test_what_comes_in_goes_out_unchanged(tmp_path, settings):
    theirs = peft_lora(tiny(), tmp_path / "in", **settings).eval()
    ours = load(tiny(), tmp_path / "in", name="x")
    export_peft_lora(ours, tmp_path / "out", "x")
    again = PeftModel.from_pretrained(tiny(), tmp_path / "out").eval()
    assert torch.equal(again(**plain()).logits, theirs(**plain()).logits)


def test_a_mixture_is_no_lora_folder(tmp_path):
    with pytest.raises(ConfigurationError, match="mixture"):
        export_peft_lora(made(MATRIX[1]), tmp_path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"trainable_token_indices": [3]}, "tokens"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "linear layers"),
    ],
)
def test_more_than_low_rank_pairs_is_refused_with_the_reason(tmp_path, settings, reason):
    peft_lora(tiny_qwen(), tmp_path, **settings)
    with pytest.raises(ConfigurationError, match=reason):
        cells_of_lora(tmp_path)


def test_unusable_folders_are_refused_with_a_remedy(tmp_path):
    with pytest.raises(NotFoundError, match="no adapter folder"):
        load(tiny(), tmp_path / "missing", name="x")
    with pytest.raises(NotFoundError, match=CONFIG):
        load(tiny(), tmp_path, name="x")
    peft_lora(tiny(), tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ConfigurationError, match="pickle.*save_pretrained"):
        load(tiny(), tmp_path, name="x")
    (tmp_path / WEIGHTS).write_bytes(b"nonsense")
    with pytest.raises(DataError, match="safetensors"):
        load(tiny(), tmp_path, name="x")
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(DataError, match="JSON"):
        load(tiny(), tmp_path, name="x")
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(ConfigurationError, match="IA3"):
        load(tiny(), tmp_path, name="x")


def test_a_folder_for_another_base_is_refused_and_leaves_the_model_as_it_was(tmp_path):
    peft_lora(tiny(), tmp_path / "three")
    peft_lora(tiny(num_hidden_layers=4), tmp_path / "four")
    peft_lora(tiny(hidden_size=64), tmp_path / "wide")
    model = load(tiny(), tmp_path / "three", name="fits").eval()
    expected = model(**plain()).logits
    for folder in ("four", "wide"):
        with pytest.raises((DataError, ConfigurationError), match="base"):
            load(model, tmp_path / folder, name="other")
        assert list(model.peft_config) == ["fits"]
        assert torch.equal(model(**plain()).logits, expected)
