"""MoA, Mixture-of-LoRAs: an expert trained alone for each task, then routers that learn the task labels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...schema import MethodSpec
from ..cells import Cell, Modules
from .base import LowRankOptions, Preset


class MoaOptions(LowRankOptions):
    modules: Modules = Field(
        ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"],
        description="Projections that are adapted: names, a regular expression, or all-linear.",
    )
    experts_from: list[str] = Field(
        default_factory=list,
        description="Where the expert of each task comes from, in the order of the tasks: runs (run-3, or run-3:TASK "
        "for one of a MoA run) or adapter folders; empty: a LoRA is trained alone for each task first.",
    )
    first_stage: bool = Field(True, description="Whether missing experts are trained first; else they start fresh.")
    train_experts: bool = Field(True, description="Whether the experts train on beside the routers.")
    decide: Literal["per_layer", "vote", "soft", "label"] = Field(
        "per_layer",
        description="Whose expert is used after training: each block's own choice, one that all blocks vote for, all "
        "by their probabilities (soft, in training too), or the task's own.",
    )
    pool: Literal["mean", "last"] = Field("mean", description="What routers see of the prompt: its mean or last token.")
    supervision: float = Field(1.0, ge=0, description="Weight of the routers' cross-entropy against the task labels.")
    detach: bool = Field(False, description="Keep the routers' loss from reaching the experts of blocks below.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on what enters the down matrices.")


def cells(options: MoaOptions) -> list[Cell]:
    gate = {"word": "label", "decide": options.decide, "pool": options.pool}
    return [
        Cell(
            **options.place(),
            down={
                "word": "unique",
                "dropout": options.dropout,
                "dropout_on": "input",
                "trained": options.train_experts,
            },
            gate=gate | {"supervision": options.supervision, "detach": options.detach},
            up={"word": "unique", "trained": options.train_experts},
        )
    ]


def alone(options: MoaOptions) -> MethodSpec | None:
    """The plain LoRA that each task is trained with first, unless experts are given or not wanted."""
    if options.experts_from or not options.first_stage:
        return None
    return MethodSpec(name="lora", options={**options.place(), "dropout": options.dropout})


PRESET = Preset(
    name="moa",
    title="MoA",
    summary="A LoRA trained alone for each task; then each block's router learns the task labels and picks one.",
    source="Feng et al., arXiv 2403.03432 (LREC-COLING 2024); rebuilt from descriptions of it",
    options=MoaOptions,
    cells=cells,
    badge="interpretation",
    alone=alone,
)
