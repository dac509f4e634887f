"""rsLoRA: LoRA whose scale falls with the square root of the rank, so that high ranks learn as fast as low ones."""

from __future__ import annotations

import math

from ..cells import Cell
from .base import Preset
from .lora import LoraOptions


def cells(options: LoraOptions) -> list[Cell]:
    """A LoRA with alpha * sqrt(rank), which over the rank gives alpha / sqrt(rank)."""
    down = {"word": "unique", "dropout": options.dropout, "dropout_on": "input"}
    place = options.place() | {"alpha": options.alpha * math.sqrt(options.rank)}
    return [Cell(**place, experts=1, down=down, gate="none", up="unique")]


PRESET = Preset(
    name="rslora",
    title="rsLoRA",
    summary="LoRA scaled by alpha / sqrt(rank) in place of alpha / rank: a baseline that stays stable at high ranks.",
    source="Kalajdzievski, arXiv 2312.03732; equal to PEFT's use_rslora",
    options=LoraOptions,
    cells=cells,
)
