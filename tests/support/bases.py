"""Tiny random bases of the architectures that are supported, built from their configs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import nn

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **SPECIAL}
LLAMA = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 256}
GPT2 = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, **SPECIAL}
SPARSE = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
T5 = {"vocab_size": 320, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}


@dataclass(frozen=True)
class Base:
    """An architecture: how it is built, its projections in order, and two of them as names and as a pattern."""

    id: str
    build: Callable[[], nn.Module]
    projections: tuple[str, ...]
    names: tuple[str, ...]
    pattern: str

    def made(self, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        return self.build().eval()


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
NEOX = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
QV = (("q_proj", "v_proj"), r".*\.[qv]_proj")
FUSED = (("query_key_value", "dense"), r".*\.(query_key_value|dense)")


def _llama(config: str, model: str, **more: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(hf, model)(getattr(hf, config)(**LLAMA, **more))


DECODERS = [
    Base("llama", _llama("LlamaConfig", "LlamaForCausalLM"), GATED, *QV),
    Base("qwen2", _llama("Qwen2Config", "Qwen2ForCausalLM"), GATED, *QV),
    Base("qwen3", _llama("Qwen3Config", "Qwen3ForCausalLM", head_dim=8), GATED, *QV),
    Base("mistral", _llama("MistralConfig", "MistralForCausalLM", sliding_window=None), GATED, *QV),
    Base("gemma2", _llama("Gemma2Config", "Gemma2ForCausalLM", head_dim=8), GATED, *QV),
    Base("gemma3", _llama("Gemma3TextConfig", "Gemma3ForCausalLM", head_dim=8), GATED, *QV),
    Base(
        "phi3",
        _llama("Phi3Config", "Phi3ForCausalLM"),
        ("o_proj", "qkv_proj", "gate_up_proj", "down_proj"),
        ("qkv_proj", "o_proj"),
        r".*\.(qkv|o)_proj",
    ),
    Base(
        "gpt2",
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
        ("c_attn", "c_proj", "c_fc"),
        ("c_attn", "attn.c_proj"),
        r".*\.attn\.(c_attn|c_proj)",
    ),
    Base("gpt_neox", lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES, intermediate_size=48)), NEOX, *FUSED),
    Base(
        "opt",
        lambda: hf.OPTForCausalLM(
            hf.OPTConfig(**SIZES, ffn_dim=48, max_position_embeddings=256, word_embed_proj_dim=32)
        ),
        ("k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"),
        *QV,
    ),
    Base("falcon", lambda: hf.FalconForCausalLM(hf.FalconConfig(**SIZES, alibi=False)), NEOX, *FUSED),
    Base("mixtral", _llama("MixtralConfig", "MixtralForCausalLM", num_local_experts=4), ATTENTION, *QV),
    Base("qwen3_moe", _llama("Qwen3MoeConfig", "Qwen3MoeForCausalLM", head_dim=8, **SPARSE), ATTENTION, *QV),
]
ENCODER_DECODER = Base(
    "t5",
    lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, pad_token_id=0, decoder_start_token_id=0, eos_token_id=2)),
    ("q", "k", "v", "o", "wi", "wo"),
    ("q", "v"),
    r".*\.(SelfAttention|EncDecAttention)\.[qv]",
)
