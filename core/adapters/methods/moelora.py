"""MoELoRA: top-k experts with load balance, and a contrastive loss that keeps their outputs apart.

Not the task-gated MOELoRA (arXiv 2310.18339). The paper's body was not read and no code was found, so every number
here but 8 experts and top-2 is a recommendation: rank 4 (with the router as many parameters as a LoRA of rank 36 on q
and v), alpha, dropout, both loss weights, temperature and sample, and when the contrastive loss begins.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..cells import Cell, Experts
from .base import MixtureOptions, Preset


class MoeloraOptions(MixtureOptions):
    experts: Experts = Field(
        8, description="Experts per projection: a number, or one for each equal block of layers from below."
    )
    rank: int = Field(4, ge=1, le=1024, description="Rank of each expert.")
    alpha: float = Field(8.0, gt=0, description="The update is scaled by alpha / rank.")
    top_k: int = Field(2, ge=1, le=1024, description="Experts used per token.")
    renormalise: bool = Field(True, description="Whether the weights of the experts used are made to sum to one.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on what enters the down matrices.")
    balance: float = Field(0.01, ge=0, description="Weight of the load-balance loss, averaged over projections.")
    contrastive: float = Field(0.01, ge=0, description="Weight of the contrastive loss, averaged over projections.")
    temperature: float = Field(0.1, gt=0, description="Temperature of the contrastive loss.")
    samples: int = Field(32, ge=2, le=1024, description="Tokens that the contrastive loss draws for each expert.")
    normalise: bool = Field(True, description="Whether the contrastive loss compares directions; else bare products.")
    positives: Literal["one", "all"] = Field(
        "one", description="Positives of an output: one other token of its expert, drawn, or the mean over all."
    )
    after: int = Field(100, ge=0, le=10**8, description="Optimiser steps before the contrastive loss counts.")


def cells(options: MoeloraOptions) -> list[Cell]:
    gate = options.model_dump(include={"top_k", "renormalise", "balance"})
    loss = options.model_dump(include={"temperature", "samples", "normalise", "positives", "after"})
    return [
        Cell(
            **options.place(),
            experts=options.experts,
            down={"word": "unique", "dropout": options.dropout, "dropout_on": "input"},
            gate={"word": "token", "init": "normal", "balance_over": "mean", **gate},
            up={"word": "contrastive", "weight": options.contrastive, **loss},
        )
    ]


PRESET = Preset(
    name="moelora",
    title="MoELoRA",
    summary="Complete LoRAs as experts, top-2 per token, with load balance and a contrastive loss between outputs.",
    source="Luo et al., arXiv 2402.12851",
    options=MoeloraOptions,
    cells=cells,
    badge="interpretation",
)
