"""Conditional MixLoRA: every sample picks its own rank-one factors from two pools.

Not the MixLoRA of feed-forward experts (arXiv 2404.15159). After the released code; the paper's body was not read.
Interpretations: routers that learn (straight-through; in the release only indices leave the routers, so these stay
random: ``gate: hard``), pooling over the prompt alone with one decision per text (the release pools over answers and
padding too, and over each generated token by itself: ``pool_over: all``), the paper's Gaussian start of the down
factors (uniform here, as in the code), and in mode shared no router for the up factors. For text; tokens of images
count as prompt where a model marks them so.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..cells import ALL_LINEAR, Cell, Experts, Modules
from ..words.conditional import Learning, Mode
from .base import MixtureOptions, Preset


class MixloraOptions(MixtureOptions):
    modules: Modules = Field(
        ALL_LINEAR, description="Projections that are adapted: names, a regular expression, or all-linear."
    )
    experts: Experts = Field(
        16,
        description="Factors in each pool: a number, or one for each equal block of layers from below.",
        json_schema_extra={"unit": "factors"},
    )
    rank: int = Field(
        4,
        ge=1,
        le=256,
        description="Factors that a sample picks from each pool.",
        json_schema_extra={"unit": "factors"},
    )
    alpha: float | None = Field(
        None, gt=0, description="The update is scaled by alpha / rank; empty: twice the factors in the largest pool."
    )
    mode: Mode = "conditional"
    gate: Learning = "straight_through"
    pool_over: Literal["prompt", "all"] = Field(
        "prompt", description="prompt: one decision from the prompt; all: from whatever the pass holds, as released."
    )
    condition: float = Field(1.0, ge=0, description="Weight of the conditional score beside that of the input.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on what enters the down factors.")


def cells(options: MixloraOptions) -> list[Cell]:
    place = options.place()
    if options.alpha is None:
        place["alpha"] = 2 * (options.experts if isinstance(options.experts, int) else max(options.experts))
    gate = options.model_dump(include={"mode", "gate", "pool_over", "condition"})
    return [
        Cell(
            **place,
            experts=options.experts,
            down={"word": "pool", "dropout": options.dropout},
            gate={"word": "conditional", **gate},
            up="pool",
        )
    ]


PRESET = Preset(
    name="mixlora",
    title="Conditional MixLoRA",
    summary="Every sample picks as many rank-one factors as the rank from two pools, the up factors conditional on "
    "the down factors.",
    source="Shen et al., arXiv 2402.15896 (ACL 2024), after its released code",
    options=MixloraOptions,
    cells=cells,
    badge="interpretation",
)
