"""MoSLD: experts that share the down matrix, with dropout on it and a top-k router per token."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..cells import Cell
from .base import MixtureOptions, Preset


class MosldOptions(MixtureOptions):
    top_k: int = Field(2, ge=1, le=1024, description="Experts used per token.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Probability of dropping an entry of the matrix.")
    dropout_on: Literal["down", "up", "none"] = Field(
        "down", description="down: the shared matrix, as published; up: each expert's own; none: MoSL."
    )
    init: Literal["gaussian", "kaiming"] = Field("gaussian", description="Start of the down matrix.")
    balance: float = Field(1e-3, ge=0, description="Weight of the load-balance loss.")


def cells(options: MosldOptions) -> list[Cell]:
    on_down = options.dropout if options.dropout_on == "down" else 0.0
    on_up = options.dropout if options.dropout_on == "up" else 0.0
    return [
        Cell(
            **options.place(),
            experts=options.experts,
            down={"word": "shared", "dropout": on_down, "dropout_on": "weight", "init": options.init},
            gate={"word": "token", "top_k": options.top_k, "balance": options.balance},
            up={"word": "unique", "dropout": on_up},
        )
    ]


PRESET = Preset(
    name="mosld",
    title="MoSLD",
    summary="Experts share one down matrix with dropout on its entries; each has its own up matrix; top-2 per token.",
    source="Zhao et al., arXiv 2412.08946 (COLING 2025)",
    options=MosldOptions,
    cells=cells,
)
