"""What all fusion methods that learn from unlabelled prompts let their user choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from core.errors import DataError
from core.fusion.learned.prompts import check_prompts

from .base import FusionOptions, refuse_factors

if TYPE_CHECKING:
    from core.data.tasks import Task


class LearnedOptions(FusionOptions):
    prompts: Literal["validation", "train", "test"] = Field(
        "validation",
        description="Split whose rows are read without their answers. test: the very rows that are scored "
        "(transductive, as published).",
    )
    prompt_rows: int = Field(500, ge=1, le=1_000_000, description="At most this many prompts per task, drawn by seed.")
    batch_size: int = Field(8, ge=1, le=1_000_000, description="Prompts per task and step.")
    loss: Literal["options", "first_token", "sequence"] = Field(
        "options",
        description="Entropy over the answer options; over the whole vocabulary at the first answer position (the "
        "published use of a language model); or along an expert's greedy answer of at most 32 tokens. Tasks without "
        "options always take the last in place of the first.",
    )
    normalise: bool = Field(
        False, description="Divide each entropy by its maximum, so that tasks with many options do not dominate."
    )
    mass_weight: float = Field(
        0.0, ge=0, description="Weight of minus the log of the probability that the options have together."
    )
    evaluate_every: int = Field(
        20, ge=1, le=1_000_000, description="Steps between points of the curves and checks for collapse."
    )
    on_alert: Literal["stop", "continue"] = Field(
        "stop",
        description="Where an alert of collapse lasts three evaluations: stop and go back to the best one without an "
        "alert, or learn on to the last step.",
    )


def check(options: LearnedOptions, names: Sequence[str], tasks: Sequence[Task]) -> None:
    """Every task needs prompts. Raises DataError."""
    if not tasks:
        raise DataError("There is no task to take unlabelled prompts from.", "Name the tasks of the fused run.")
    check_prompts(tasks, options.prompts)


def check_whole(options: LearnedOptions, names: Sequence[str], tasks: Sequence[Task]) -> None:
    """``check`` for methods that change single entries. Raises ConfigurationError where factors are asked for."""
    refuse_factors(options)
    check(options, names, tasks)
