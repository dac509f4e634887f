"""MTL-LoRA: a task's own matrix between a shared down matrix and several up matrices, mixed by task."""

from __future__ import annotations

from pydantic import Field

from ..cells import Cell, Experts, Modules
from .base import MixtureOptions, Preset


class MtlLoraOptions(MixtureOptions):
    modules: Modules = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        description="Projections that are adapted: names, a regular expression, or all-linear.",
    )
    experts: Experts = Field(
        3, description="Up matrices per projection: a number, or one for each equal block of layers from below."
    )
    temperature: float = Field(
        0.1, gt=0, description="Temperature of each task's softmax over the up matrices; small values choose one."
    )
    diagonal: bool = Field(False, description="Only scale each rank by task, in place of mixing the ranks.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on what enters the down matrix.")


def cells(options: MtlLoraOptions) -> list[Cell]:
    down = {"word": "task_transform", "diagonal": options.diagonal, "dropout": options.dropout, "dropout_on": "input"}
    return [
        Cell(
            **options.place(),
            experts=options.experts,
            down=down,
            gate={"word": "task", "temperature": options.temperature},
            up="unique",
        )
    ]


PRESET = Preset(
    name="mtl_lora",
    title="MTL-LoRA",
    summary="A shared down matrix, a small matrix for each task, and several up matrices with weights of the task's "
    "own; the task must be known.",
    source="Yang et al., arXiv 2410.09437 (AAAI 2025); read from its released code",
    options=MtlLoraOptions,
    cells=cells,
    badge="interpretation",
)
