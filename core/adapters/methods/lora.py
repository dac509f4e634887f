"""LoRA: one expert, no gate."""

from __future__ import annotations

from pydantic import Field

from ..cells import Cell
from .base import LowRankOptions, Preset


class LoraOptions(LowRankOptions):
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on what enters the down matrix.")


def cells(options: LoraOptions) -> list[Cell]:
    down = {"word": "unique", "dropout": options.dropout, "dropout_on": "input"}
    return [Cell(**options.place(), experts=1, down=down, gate="none", up="unique")]


PRESET = Preset(
    name="lora",
    title="LoRA",
    summary="One low-rank pair per projection: the baseline without a mixture.",
    source="Hu et al., arXiv 2106.09685; equal to PEFT's LoRA",
    options=LoraOptions,
    cells=cells,
)
