"""MoLoRA: every expert is a LoRA of its own, chosen by a top-k router per token."""

from __future__ import annotations

from pydantic import Field

from ..cells import Cell, Experts
from .base import MixtureOptions, Preset


class MoloraOptions(MixtureOptions):
    experts: Experts = Field(
        5, description="Experts per projection: a number, or one for each equal block of layers from below."
    )
    top_k: int = Field(2, ge=1, le=1024, description="Experts used per token.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on what enters the down matrices.")
    renormalise: bool = Field(True, description="Whether the weights of the experts used are made to sum to one.")
    balance: float = Field(1e-3, ge=0, description="Weight of the load-balance loss.")


def cells(options: MoloraOptions) -> list[Cell]:
    return [
        Cell(
            **options.place(),
            experts=options.experts,
            down={"word": "unique", "dropout": options.dropout, "dropout_on": "input"},
            gate={
                "word": "token",
                "top_k": options.top_k,
                "renormalise": options.renormalise,
                "balance": options.balance,
            },
            up="unique",
        )
    ]


PRESET = Preset(
    name="molora",
    title="MoLoRA",
    summary="Nothing is shared: each expert is a complete LoRA; top-2 per token.",
    source="Zadouri et al., arXiv 2309.05444; top-k and balance loss as in MoLA, arXiv 2402.08562",
    options=MoloraOptions,
    cells=cells,
)
