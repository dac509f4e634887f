"""Llama-shaped bases of random weights for the benchmarks, and copies of them that hold no weights of their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from core.home import ASSETS

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LONGEST = 16384  # positions

SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000,
    },
    "7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 128,
    },
    "base": {},  # the bundled one
}  # fmt: skip

BATCHES = {"1b": (8, 1024), "7b": (4, 1024), "base": (16, 64), "tiny": (2, 16)}  # rows, tokens


def random_base(shape: str, device: str) -> LlamaForCausalLM:
    """Frozen random weights, made on the device: bfloat16 on CUDA, float32 on the CPU."""
    if shape == "base":
        config = AutoConfig.from_pretrained(Path(ASSETS) / "base")
    else:
        config = LlamaConfig(**SHAPES[shape], max_position_embeddings=LONGEST)
    config.use_cache = False
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).requires_grad_(False).train()
    finally:
        torch.set_default_dtype(usual)


def sharing_weights(base: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy to put adapters on: modules of its own over the same weights, so that ``base`` stays as it is."""
    base.requires_grad_(False)
    return copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})


def multiplied(base: LlamaForCausalLM) -> int:
    """Weights that every token is multiplied with: those of the linear layers, the head counted."""
    return sum(layer.weight.numel() for layer in base.modules() if isinstance(layer, nn.Linear))
