"""MoLoRA: every expert is a LoRA of its own, chosen by a top-k router per token."""

from __future__ import annotations

from pydantic import Field

from ..cells import Cell
from .base import MixtureOptions, Preset


class MoloraOptions(MixtureOptions):
    top_k: int = Field(2, ge=1, description="Experts used per token.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on what enters the down matrices.")
    balance: float = Field(1e-3, ge=0, description="Weight of the load-balance loss.")


def cells(options: MoloraOptions) -> list[Cell]:
    return [
        Cell(
            **options.place(),
            experts=options.experts,
            down={"word": "unique", "dropout": options.dropout, "dropout_on": "input"},
            gate={"word": "token", "top_k": options.top_k, "balance": options.balance},
            up="unique",
        )
    ]


PRESET = Preset(
    name="molora",
    title="MoLoRA",
    summary="Nothing is shared: each expert is a complete LoRA; top-2 per token, more experts in upper layers (MoLA).",
    source="Zadouri et al., arXiv 2309.05444; allocation and balance loss of MoLA, arXiv 2402.08562",
    options=MoloraOptions,
    cells=cells,
)
