"""AdaMerging: coefficients of task vectors, learned by entropy on unlabelled prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .base import FusionMethod
from .learned import LearnedOptions, check, check_whole

if TYPE_CHECKING:
    from core.fusion.setting import Fused, Setting

PAPER = "Yang et al. 2024 (ICLR), arXiv:2310.02575, and the authors' code"
NOTE = (
    "The paper's models have a class head. For a language model the entropy over the answer options is the studio's "
    "choice; loss first_token is the published one for Flan-T5. Read were the abstract, code, logs and coefficients of "
    "the authors, not the body of the paper."
)


class CoefficientOptions(LearnedOptions):
    granularity: Literal["task", "block", "module"] = Field(
        "module",
        description="A coefficient for each run (task), for each run and transformer block, or for each run and "
        "projection (closest to the published layer-wise variant).",
    )
    start: float | None = Field(
        None, ge=-1000, le=1000, description="Coefficients at the start; empty: 0.3, or 1/K for up to three runs."
    )
    clamp: Literal["project", "forward", "none"] = Field(
        "project",
        description="Coefficients are put back into 0 to 1 after each step; or used clamped (the authors' way, in "
        "which one that leaves may stay); or left free.",
    )
    batches_per_step: int = Field(
        1, ge=1, le=1_000_000, description="Batches per task and step, losses added; the authors take 2."
    )


class AdaMergingOptions(CoefficientOptions):
    steps: int = Field(300, ge=1, le=1_000_000, description="Steps of Adam. Published: 500 (CLIP), 1000 (Flan-T5).")
    learning_rate: float = Field(
        1e-3, gt=0, le=10, description="Of Adam, per coefficient and step. Published: 1e-3 (CLIP), 1e-4 (Flan-T5)."
    )


class AdaMergingPPOptions(AdaMergingOptions):
    density: float = Field(0.2, gt=0, le=1, description="Share of each task vector's entries that is kept.")
    trim: Literal["published", "exact"] = Field(
        "published", description="published: one entry more than the share, and those that equal it; exact: the share."
    )


def adamerging(setting: Setting, options: AdaMergingOptions) -> Fused:
    from ..learned.adamerging import adamerging

    return adamerging(setting, options)


def adamerging_pp(setting: Setting, options: AdaMergingPPOptions) -> Fused:
    from ..learned.adamerging import adamerging_pp

    return adamerging_pp(setting, options)


METHODS = (
    FusionMethod(
        name="adamerging",
        title="AdaMerging",
        summary="Learns how much each task vector counts, per projection, by making answers to unlabelled prompts "
        "certain.",
        source=PAPER,
        options=AdaMergingOptions,
        fuse=adamerging,
        learns=True,
        badge="interpretation",
        note=NOTE,
        check=check,
        whole=lambda options, runs: 0,
    ),
    FusionMethod(
        name="adamerging_pp",
        title="AdaMerging++",
        summary="AdaMerging on task vectors of which the largest entries with the elected signs are kept.",
        source=PAPER,
        options=AdaMergingPPOptions,
        fuse=adamerging_pp,
        learns=True,
        badge="interpretation",
        note=NOTE,
        check=check_whole,
        whole=lambda options, runs: runs,
    ),
)
