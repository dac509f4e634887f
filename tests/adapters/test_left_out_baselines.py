"""Why Lily and X-LoRA are not offered: what docs/baselines.md says of PEFT's code. A test that fails here means that a
reason has gone and the method can be looked at again."""

from __future__ import annotations

import pytest
import torch
from adapters_support import tiny
from peft import LilyConfig, LoraConfig, XLoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import DynamicCache

PLACES = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}


def ids(rows: int = 2, tokens: int = 10) -> torch.Tensor:
    return torch.randint(3, 64, (rows, tokens), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def shake(model: torch.nn.Module, part: str) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if part in name:
            parameter += torch.randn(parameter.shape, generator=generator) * 0.3
    return model


@torch.no_grad()
def test_lily_weighs_its_experts_by_tokens_that_come_later_and_by_other_rows():
    model = shake(get_peft_model(tiny(), LilyConfig(r=8, num_B=2, stride_A=2, **PLACES)), "lily_").eval()
    given, changed = ids(), ids()
    changed[:, -1] = (changed[:, -1] + 7) % 60 + 3
    before, after = model(input_ids=given).logits, model(input_ids=changed).logits
    assert not torch.allclose(before[:, :-1], after[:, :-1], atol=1e-4)
    assert not torch.allclose(model(input_ids=given[:1]).logits[0], before[0], atol=1e-4)


@pytest.fixture
def xlora(tmp_path):
    experts = {}
    for number in range(2):
        expert = shake(get_peft_model(tiny(), LoraConfig(r=4, **PLACES)), "lora_B")
        expert.save_pretrained(str(tmp_path / str(number)))
        experts[str(number)] = str(tmp_path / str(number))
    base = tiny()
    base.config.use_cache = False  # PEFT insists
    config = XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters=experts, xlora_depth=1)
    return shake(get_peft_model(base, config), "xlora_classifier").eval()


@torch.no_grad()
def test_xlora_writes_the_cache_twice(xlora):
    cache = DynamicCache()
    xlora(input_ids=ids()[:, :6], use_cache=True, past_key_values=cache)
    assert cache.get_seq_length() == 12


def test_xlora_cannot_recompute_activations(xlora):
    xlora.train()
    xlora.base_model.lora_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        xlora(input_ids=ids(), labels=ids()).loss.backward()


def test_xlora_saves_no_classifier(xlora, tmp_path):
    """The one part that was trained."""
    assert any("xlora_classifier" in name for name, value in xlora.named_parameters() if value.requires_grad)
    xlora.save_pretrained(str(tmp_path / "saved"))
    assert load_file(tmp_path / "saved" / "adapter_model.safetensors") == {}
