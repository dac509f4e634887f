"""Magnitude pruning: the largest entries of every task vector, summed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from .base import FusionMethod, fused_whole
from .task_arithmetic import TaskArithmeticOptions, check_entries
from .ties import Trim

if TYPE_CHECKING:
    from core.fusion.setting import Fused, Setting


class MagnitudePruneOptions(TaskArithmeticOptions):
    density: float = Field(0.2, gt=0, le=1, description="Share of each task vector that is kept, by magnitude.")
    trim: Trim = Field(
        "tensor", description="tensor: the largest entries of each projection, as PEFT does; model: of all together."
    )


def magnitude_prune(setting: Setting, options: MagnitudePruneOptions) -> Fused:
    from .. import combine

    return combine.magnitude_prune(setting, options)


METHODS = (
    FusionMethod(
        name="magnitude_prune",
        title="Magnitude pruning",
        summary="Keeps the largest entries of every task vector and adds them up, without rescaling.",
        source="the weighted-adapter combination magnitude_prune of PEFT",
        options=MagnitudePruneOptions,
        fuse=magnitude_prune,
        check=check_entries,
        whole=fused_whole,
    ),
)
