"""MoDE: rank-one experts behind one down matrix, with a router for every rank or block of ranks."""

from __future__ import annotations

from pydantic import Field

from ..cells import Cell, Experts, Modules
from .base import MixtureOptions, Preset

STD = 0.01  # of the down matrix, as in the paper's single adapters; of the routers, which it leaves open


class ModeOptions(MixtureOptions):
    modules: Modules = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        description="Projections that are adapted: names, a regular expression, or all-linear.",
    )
    experts: Experts = Field(
        6, description="The paper's m, experts for each block of ranks: a number, or one for each block of layers."
    )
    rank: int = Field(4, ge=1, le=1024, description="The paper's r, the rank of the shared down matrix.")
    expert_rank: int = Field(
        1,
        ge=1,
        le=1024,
        description="The paper's p, ranks that share a router; 1: one each; as large as the rank: MoLoRA-SD.",
    )
    alpha: float | None = Field(
        None, gt=0, description="The update is scaled by alpha / rank; empty: by 1, as the paper's equations."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on what enters the down matrix.")


def cells(options: ModeOptions) -> list[Cell]:
    down = {"word": "shared", "init": "gaussian", "std": STD, "dropout": options.dropout, "dropout_on": "input"}
    alpha = options.rank if options.alpha is None else options.alpha
    return [
        Cell(
            **{**options.place(), "alpha": alpha},
            experts=options.experts,
            down=down,
            gate={"word": "rank", "expert_rank": options.expert_rank, "std": STD},
            up="unique",
        )
    ]


PRESET = Preset(
    name="mode",
    title="MoDE",
    summary="A shared down matrix whose every rank has a router of its own over rank-one experts; all used on every "
    "token.",
    source="Ning et al., arXiv 2408.01505 (NAACL 2025 Findings)",
    options=ModeOptions,
    cells=cells,
)
