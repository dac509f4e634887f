"""TIES: trim, elect a sign, merge what agrees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .base import FusionMethod, fused_whole
from .task_arithmetic import TaskArithmeticOptions, check_entries

if TYPE_CHECKING:
    from core.fusion.setting import Fused, Setting

Trim = Literal["tensor", "model"]


class ElectionOptions(TaskArithmeticOptions):
    coefficient: float | None = Field(
        None,
        ge=-1000,
        le=1000,
        description="Weight of every task vector; empty: 1 where the runs are averaged, 0.3 where they are added.",
    )
    merge: Literal["mean", "sum"] = Field(
        "mean",
        description="mean: average of the runs that have the elected sign, as published; sum: add them up, as later "
        "comparisons did with a coefficient of 0.3.",
    )
    majority_sign: Literal["total", "frequency"] = Field(
        "total", description="A sign is elected by the sum of the runs' values (total), or by how many runs have it."
    )


class TiesOptions(ElectionOptions):
    density: float = Field(0.2, gt=0, le=1, description="Share of each task vector that is kept, by magnitude.")
    trim: Trim = Field(
        "model",
        description="model: the largest entries of the whole task vector, as published; tensor: of each projection, as "
        "PEFT and mergekit do.",
    )


def ties(setting: Setting, options: TiesOptions) -> Fused:
    from .. import combine

    return combine.ties(setting, options)


METHODS = (
    FusionMethod(
        name="ties",
        title="TIES",
        summary="Keeps the largest entries of every task vector, elects a sign for each entry, and averages what has "
        "it.",
        source="Yadav et al. 2023, arXiv:2306.01708",
        options=TiesOptions,
        fuse=ties,
        check=check_entries,
        whole=fused_whole,
    ),
)
