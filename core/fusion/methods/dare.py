"""DARE: entries dropped at random and the rest rescaled, then summed or merged as TIES merges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from .base import FusionMethod, fused_whole
from .task_arithmetic import TaskArithmeticOptions, check_entries
from .ties import ElectionOptions

if TYPE_CHECKING:
    from core.fusion.setting import Fused, Setting

DENSITY = (
    "Share of each task vector that is kept, drawn by the run's seed; what is kept is divided by it. mergekit restores "
    "each tensor's L1 norm instead, which differs for small or heavy-tailed tensors."
)


class DareOptions(TaskArithmeticOptions):
    density: float = Field(0.5, gt=0, le=1, description=DENSITY)


class DareTiesOptions(ElectionOptions):
    density: float = Field(0.5, gt=0, le=1, description=DENSITY)


def dare_linear(setting: Setting, options: DareOptions) -> Fused:
    from .. import combine

    return combine.dare_linear(setting, options)


def dare_ties(setting: Setting, options: DareTiesOptions) -> Fused:
    from .. import combine

    return combine.dare_ties(setting, options)


METHODS = (
    FusionMethod(
        name="dare_linear",
        title="DARE",
        summary="Drops entries of every task vector at random, rescales the rest, and adds them up.",
        source="Yu et al. 2024, arXiv:2311.03099",
        options=DareOptions,
        fuse=dare_linear,
        check=check_entries,
        whole=fused_whole,
    ),
    FusionMethod(
        name="dare_ties",
        title="DARE with TIES",
        summary="Drops entries of every task vector at random, rescales the rest, elects signs and averages what has "
        "them.",
        source="Yu et al. 2024, arXiv:2311.03099",
        options=DareTiesOptions,
        fuse=dare_ties,
        check=check_entries,
        whole=fused_whole,
    ),
)
