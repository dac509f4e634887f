"""The small Llama that ``pretrain_base`` trains: its shape, a forward pass that compiles well, its held-out loss."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Shape:
    """Sizes of the model."""

    layers: int = 8
    hidden: int = 256
    heads: int = 4
    feed_forward: int = 768


def build_model(
    shape: Shape, vocabulary: int, length: int, *, pad: int, begin: int, end: int, seed: int = 0
) -> LlamaForCausalLM:
    """A fresh Llama with tied embeddings; what writes into the residual stream starts smaller the deeper the model."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=length,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            pad_token_id=pad,
            bos_token_id=begin,
            eos_token_id=end,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.div_(math.sqrt(2 * shape.layers))
            layer.mlp.down_proj.weight.div_(math.sqrt(2 * shape.layers))
    return model


def rotary(model: LlamaForCausalLM, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the positions, of shape (1, 1, length, head)."""
    device = model.device
    positions = torch.arange(length, device=device)[None]
    cos, sin = model.model.rotary_emb(torch.zeros(1, device=device), positions)
    return cos[:, None], sin[:, None]


def norm(x: Tensor, layer: nn.Module) -> Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], layer.weight.float(), layer.variance_epsilon).to(x.dtype)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head by the position's angles."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)


def logits(model: LlamaForCausalLM, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The model's forward pass over full windows: no mask, no cache, so that it compiles to few kernels."""
    head = model.config.head_dim
    x = model.model.embed_tokens(ids)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))  # the residual stream in half the bytes
    for layer in model.model.layers:
        attention, y = layer.self_attn, norm(x, layer.input_layernorm)
        q, k, v = (
            project(y).unflatten(-1, (-1, head)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = F.scaled_dot_product_attention(turn(q, cos, sin), turn(k, cos, sin), v, is_causal=True)
        x = x + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        y = norm(x, layer.post_attention_layernorm)
        x = x + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(y)) * layer.mlp.up_proj(y))
    return F.linear(norm(x, model.model.norm), model.lm_head.weight)


def window_loss(model: LlamaForCausalLM, window: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Mean nats per token of windows of length + 1 tokens; -100 marks places that do not count."""
    scores = logits(model, window[:, :-1].clamp_min(0), cos, sin)
    return F.cross_entropy(scores.flatten(0, 1).float(), window[:, 1:].flatten(), ignore_index=-100)


def half(device: torch.device) -> AbstractContextManager:
    """bf16 arithmetic over float32 weights on a GPU; plain float32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


@torch.no_grad()
def stream_loss(model: LlamaForCausalLM, tokens: Tensor, length: int, batch: int = 64) -> float:
    """Nats per token over the stream, cut into windows that may begin inside a document: the quick measure."""
    count = (len(tokens) - 1) // length
    windows = tokens.unfold(0, length + 1, length)[:count].long()
    cos, sin = rotary(model, length)
    with half(model.device):
        sums = [window_loss(model, part, cos, sin).double() * len(part) for part in windows.split(batch)]
    return float(torch.stack(sums).sum() / len(windows))


@torch.no_grad()
def document_loss(model: LlamaForCausalLM, tokens: np.ndarray, length: int, batch: int = 16) -> tuple[float, int]:
    """Summed nats and number of predicted tokens, document by document, end tokens counted, begin tokens given.

    Documents over ``length`` tokens are cut into windows that do not overlap.
    """
    bounds = [*np.flatnonzero(tokens == model.config.bos_token_id), len(tokens)]
    pieces = [
        tokens[start : min(start + length + 1, stop)].astype(np.int64)
        for begin, stop in zip(bounds, bounds[1:], strict=False)
        for start in range(begin, stop - 1, length)
    ]
    pieces.sort(key=len)
    nats, count = 0.0, 0
    for first in range(0, len(pieces), batch):
        part = pieces[first : first + batch]
        window = torch.full((len(part), len(part[-1])), -100)
        for row, piece in zip(window, part, strict=True):
            row[: len(piece)] = torch.from_numpy(piece)
        window = window.to(model.device)
        predicted = int((window[:, 1:] >= 0).sum())
        with half(model.device):
            nats += float(window_loss(model, window, *rotary(model, window.shape[1] - 1))) * predicted
        count += predicted
    return nats, count
