"""Counts on the shapes of published models, by names that suit a command line."""

from __future__ import annotations

from core.catalog import BaseShapes, trainable_parameters
from core.known_shapes import GEMMA_2B, LLAMA2_7B, LLAMA2_13B, LLAMA31_8B, MISTRAL_7B, VL_BART, llama_like
from core.schema import MethodSpec

__all__ = ["BASES", "GEMMA_2B", "LLAMA2_13B", "LLAMA2_7B", "LLAMA31_8B", "MISTRAL_7B", "VL_BART", "count", "llama_like"]

BASES = {
    "llama2-7b": LLAMA2_7B,
    "llama2-13b": LLAMA2_13B,
    "mistral-7b": MISTRAL_7B,
    "llama3.1-8b": LLAMA31_8B,
    "gemma-2b": GEMMA_2B,
    "vl-bart": VL_BART,
}


def count(name: str, base: BaseShapes, tasks: int = 0, **options: object) -> int:
    """Trainable parameters of a method with its options on a base, before any tensor is made."""
    return trainable_parameters(MethodSpec(name=name, options=options), base, tasks)
