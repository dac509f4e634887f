"""Concrete subspace learning: one mask for all task vectors, learned by entropy on unlabelled prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .adamerging import CoefficientOptions
from .base import FusionMethod
from .learned import LearnedOptions, check, check_whole

if TYPE_CHECKING:
    from core.data.tasks import Task
    from core.fusion.setting import Fused, Setting

PAPER = "Tang et al. 2023, arXiv:2312.06173, and the authors' code"
NOTE = (
    "The paper's models have a class head; the entropy over answer options is the studio's choice for language models. "
    "mask structured is not the published method. Read were the abstract, code and result files of the authors, not "
    "the body of the paper."
)


class MaskOptions(LearnedOptions):
    steps: int = Field(500, ge=1, le=1_000_000, description="Steps of Adam on the mask. Published: 2000.")
    learning_rate: float = Field(
        1e-3, gt=0, le=10, description="Of Adam on the mask's logits. Published: 1e-3 (CLIP), 1e-4 (Flan-T5)."
    )
    temperature: float = Field(0.5, gt=0, le=10, description="Of the relaxed Bernoulli variables.")
    mask: Literal["dense", "structured"] = Field(
        "dense",
        description="dense: a mask for each entry of each weight, as published; the result is whole matrices. "
        "structured: one for each output times one for each input, which keeps low ranks: structured Concrete (not "
        "the published method).",
    )
    final_mask: Literal["sample", "discrete", "expected"] = Field(
        "sample",
        description="The mask that is kept: one draw (as published), a draw of zeros and ones, or the probabilities.",
    )


class ConcreteOptions(MaskOptions):
    start: float = Field(0.3, ge=-1000, le=1000, description="The coefficient of all runs; it is not learned.")


class ConcreteAdaMergingOptions(MaskOptions, CoefficientOptions):
    start: float | None = Field(
        0.3, ge=-1000, le=1000, description="Coefficients at the start of each phase; empty: 1/K up to three runs."
    )
    base_learning_rate: float = Field(
        0.1,
        gt=0,
        le=10,
        description="Of the one step of coefficients within each step of the mask. Published: 1 (CLIP), 0.1 (Flan-T5).",
    )
    stale_inner: bool = Field(
        False,
        description="Take the inner gradient at the coefficients of the step before, as the published code does, "
        "instead of merging anew.",
    )
    coefficient_steps: int = Field(300, ge=1, le=1_000_000, description="Steps of the second phase. Published: 1000.")
    coefficient_learning_rate: float = Field(
        1e-3, gt=0, le=10, description="Of Adam in the second phase. Published: 1e-3 (CLIP), 1e-4 (Flan-T5)."
    )


def check_mask(options: MaskOptions, names: Sequence[str], tasks: Sequence[Task]) -> None:
    """A structured mask keeps factors, a dense one does not."""
    (check if options.mask == "structured" else check_whole)(options, names, tasks)


def masks_held(options: MaskOptions, runs: int) -> int:
    """A dense mask learns a number for each entry: beside it lie its gradient and the two moments of Adam."""
    return 4 if options.mask == "dense" else 0


def concrete_task_arithmetic(setting: Setting, options: ConcreteOptions) -> Fused:
    from ..learned.concrete import concrete_task_arithmetic

    return concrete_task_arithmetic(setting, options)


def concrete_adamerging(setting: Setting, options: ConcreteAdaMergingOptions) -> Fused:
    from ..learned.concrete import concrete_adamerging

    return concrete_adamerging(setting, options)


METHODS = (
    FusionMethod(
        name="concrete_task_arithmetic",
        title="Concrete task arithmetic",
        summary="Task arithmetic under a mask that all task vectors share, learned by making answers to unlabelled "
        "prompts certain.",
        source=PAPER,
        options=ConcreteOptions,
        fuse=concrete_task_arithmetic,
        learns=True,
        badge="interpretation",
        note=NOTE,
        check=check_mask,
        whole=masks_held,
    ),
    FusionMethod(
        name="concrete_adamerging",
        title="Concrete AdaMerging",
        summary="Learns a mask that all task vectors share, then how much each of them counts under it.",
        source=PAPER,
        options=ConcreteAdaMergingOptions,
        fuse=concrete_adamerging,
        learns=True,
        badge="interpretation",
        note=NOTE,
        check=check_mask,
        whole=masks_held,
    ),
)
