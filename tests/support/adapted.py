"""Adapters whose tensors have moved, as training moves them, on the tiny base."""

from __future__ import annotations

from pathlib import Path

from core.schema import MethodSpec

GATES = ("token", "sequence", "task", "none")
TASKS = ["colours", "echo"]


def method(gate: str) -> MethodSpec:
    """A split with two experts on every projection, chosen by ``gate``."""
    return MethodSpec(name="split", cells=[{"experts": 2, "rank": 4, "down": "shared", "gate": gate}])


def move(model, seed: int = 0, size: float = 0.3):
    """Add noise to every adapter tensor, so that adapters answer differently from their base and from each other."""
    import torch

    from core.adapters.attach import adapter_tensors

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in model.peft_config:
            for tensor in adapter_tensors(model, name).values():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * size)
    return model.eval()


def adapter_folder(base: Path, folder: Path, spec: MethodSpec, *, tasks: list[str] = TASKS, seed: int = 0) -> Path:
    """A saved adapter for the base folder."""
    from transformers import AutoModelForCausalLM

    from core.adapters.attach import attach, save

    model = attach(AutoModelForCausalLM.from_pretrained(base), spec, tasks=list(tasks))
    return save(move(model, seed), folder)
