"""HydraLoRA: one shared down matrix, several up matrices, all of them weighted by a dense router."""

from __future__ import annotations

from pydantic import Field

from ..cells import Cell, Experts
from .base import MixtureOptions, Preset


class HydraloraOptions(MixtureOptions):
    experts: Experts = Field(
        3, description="Up matrices per projection: a number, or one for each equal block of layers from below."
    )
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on what enters the down matrix.")


def cells(options: HydraloraOptions) -> list[Cell]:
    return [
        Cell(
            **options.place(),
            experts=options.experts,
            down={"word": "shared", "dropout": options.dropout, "dropout_on": "input"},
            gate="token",
            up="unique",
        )
    ]


PRESET = Preset(
    name="hydralora",
    title="HydraLoRA",
    summary="One shared down matrix, several up matrices, all used on every token with softmax weights.",
    source="Tian et al., arXiv 2404.19245 (NeurIPS 2024)",
    options=HydraloraOptions,
    cells=cells,
)
