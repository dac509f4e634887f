"""Tiny real models, a batch, and the rows of the test matrix: a new preset or split is one row here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from core.adapters.attach import attach, mixture_layers, tape_of
from core.adapters.layer import MixtureLayer
from core.schema import MethodSpec

TASKS = ["alpha", "beta"]
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ALL = "all-linear"


@dataclass(frozen=True)
class Row:
    """One line of the matrix: a method with settings small enough for three layers of width 32."""

    id: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    cells: tuple[dict[str, Any], ...] = ()

    @property
    def spec(self) -> MethodSpec:
        return MethodSpec(name=self.name, options=self.options, cells=list(self.cells))


def _split(id: str, *cells: dict[str, Any]) -> Row:
    return Row(f"split-{id}", "split", cells=tuple({"rank": 4, "modules": ALL, **cell} for cell in cells))


PRESETS = [
    Row("lora", "lora", {"rank": 4, "modules": ALL, "dropout": 0.1}),
    Row("mosld", "mosld", {"rank": 4, "modules": ALL, "experts": [2, 3, 4], "balance": 0.1}),
    Row("molora", "molora", {"rank": 4, "modules": ALL, "experts": 3, "dropout": 0.1, "balance": 0.1}),
    Row("mola", "mola", {"rank": 4, "modules": ALL, "experts": [2, 3, 4], "balance": 0.1, "renormalise": False}),
    Row("full", "full"),
    Row("full-embeddings", "full", {"embeddings": True}),
    Row("rslora", "rslora", {"rank": 4, "modules": ALL, "dropout": 0.1}),
    Row("moa", "moa", {"rank": 4, "modules": ALL, "dropout": 0.1}),
    Row("moa-vote", "moa", {"rank": 4, "modules": ["q_proj", "v_proj"], "decide": "vote", "pool": "last"}),
    Row("moa-soft", "moa", {"rank": 4, "modules": ALL, "decide": "soft", "supervision": 0.1}),
    Row("hydralora", "hydralora", {"rank": 4, "modules": ALL}),
    Row("malora", "malora", {"rank": 4, "modules": ALL, "experts": 4, "beta": 1.25, "balance": 0.1}),
    Row("mtl_lora", "mtl_lora", {"rank": 4, "modules": ALL}),
    Row("mode", "mode", {"rank": 4, "modules": ALL, "experts": 3, "expert_rank": 2}),
    Row("mor1e", "mor1e", {"modules": ALL, "down_vectors": 2, "up_vectors": 3, "dropout": 0.1}),
    Row("mixlora", "mixlora", {"rank": 2, "modules": ALL, "experts": [2, 3, 4], "alpha": 8}),
    Row(  # every token is an anchor, against all positives: nothing is drawn
        "moelora",
        "moelora",
        {
            "modules": ALL,
            "experts": 3,
            "balance": 0.1,
            "contrastive": 0.1,
            "after": 0,
            "samples": 64,
            "positives": "all",
        },
    ),
]
PEFT_ROWS = [
    Row("dora", "dora", {"rank": 4, "modules": ALL, "dropout": 0.1}),
    Row("poly", "poly", {"rank": 4, "modules": ALL, "experts": 3}),
]
SPLITS = [
    _split("sequence", {"experts": 3, "down": "shared", "gate": {"word": "sequence", "top_k": 2, "balance": 0.1}}),
    _split("task", {"experts": 3, "gate": "task"}),
    _split("subspace-shared-up", {"experts": 3, "down": "subspace", "gate": "task", "up": "shared"}),
    _split("diagonal-transform", {"experts": 2, "down": {"word": "task_transform", "diagonal": True}, "gate": "token"}),
    _split("transform-alone", {"experts": 2, "down": "task_transform", "up": "shared"}),
    _split("ranks-top-k", {"experts": 3, "gate": {"word": "rank", "top_k": 2, "renormalise": False, "balance": 0.1}}),
    _split("ranks-of-a-subspace", {"experts": 2, "down": "subspace", "gate": "rank", "up": "shared"}),
    _split("shared-up", {"experts": 3, "gate": {"word": "token", "top_k": 2}, "up": "shared"}),
    _split("sum", {"experts": 2, "down": "shared", "gate": "none", "up": {"word": "unique", "dropout": 0.1}}),
    _split(
        "per-projection",
        {"modules": ["q_proj", "o_proj"], "layers": ["0-1"], "experts": 4, "gate": {"word": "token", "top_k": 2}},
        {"modules": ["q_proj"], "experts": 2, "down": "shared", "gate": "task", "rank": 2},
        {"modules": r".*\.(gate|up|down)_proj", "experts": [2, 4], "down": "shared", "up": "shared", "gate": "token"},
    ),
    _split(
        "one-to-one",
        {"experts": 3, "rank": 1, "gate": {"word": "intuition", "clusters": 2, "cosine": True}},
    ),
    _split(
        "pairs",
        {
            "experts": 4,
            "rank": 1,
            "gate": {"word": "token", "top_k": 2},
            "down": {"word": "pool", "vectors": 2},
            "up": {"word": "pool", "vectors": 2},
        },
    ),
]
MATRIX = PRESETS + SPLITS


def tiny(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Three layers: a count that no default of a published method assumes."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **HEADS, **SPECIAL, **changes}))


def tiny_qwen(seed: int = 0) -> Qwen2ForCausalLM:
    """Biases on q, k and v."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS, **SPECIAL))


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """Transposed weights (Conv1D) and a joint projection for q, k and v."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, **SPECIAL))


def batch(seed: int = 1, rows: int = 4, tokens: int = 12, prompt: int = 7) -> dict[str, torch.Tensor]:
    """Right-padded rows of two tasks with prompt and answer."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 64, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:2, -3:] = 0
    ids = ids * mask
    role = torch.where(torch.arange(tokens) < prompt, 1, 2) * mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(role != 2, -100),
        "token_role": role.to(torch.int8),
        "task_index": torch.arange(rows) % len(TASKS),
    }


def made(row: Row, base: torch.nn.Module | None = None, name: str = "default", seed: int = 0, warm: bool = False):
    """A model with the row's adapter; ``warm``: every tensor away from its start, as after training."""
    model = attach(tiny() if base is None else base, row.spec, tasks=TASKS, name=name, seed=seed)
    if warm:
        warm_up(model, name)
    return model


@torch.no_grad()
def warm_up(model: torch.nn.Module, name: str = "default", seed: int = 7) -> None:
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if f".{name}." in f"{key}.":
            parameter += (torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter)


def loss_of(model: torch.nn.Module, data: dict[str, torch.Tensor]) -> torch.Tensor:
    """Language-model loss plus auxiliary losses."""
    loss = model(**data).loss
    auxiliary = tape_of(model).auxiliary_loss()
    return loss if auxiliary is None else loss + auxiliary


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def layers_of(model: torch.nn.Module) -> list[MixtureLayer]:
    return [layer for _, layer in mixture_layers(model)]
