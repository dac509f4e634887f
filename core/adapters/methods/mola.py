"""MoLA: MoLoRA with more experts in the upper layers."""

from __future__ import annotations

from pydantic import Field

from ..cells import Experts
from .base import Preset
from .molora import MoloraOptions, cells


class MolaOptions(MoloraOptions):
    experts: Experts = Field(
        [2, 4, 6, 8], description="Experts per projection, one number for each equal block of layers from below."
    )


PRESET = Preset(
    name="mola",
    title="MoLA",
    summary="Nothing is shared: each expert is a complete LoRA; top-2 per token, more experts in upper layers.",
    source="Gao et al., arXiv 2402.08562",
    options=MolaOptions,
    cells=cells,
)
