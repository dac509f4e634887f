"""A split of one's own: the words are chosen cell by cell."""

from __future__ import annotations

from pydantic import Field

from ...schema import Spec
from ..cells import Cell
from .base import Preset


class SplitOptions(Spec):
    cells: list[Cell] = Field(min_length=1, description="Cells, first match wins; see the words for their options.")


PRESET = Preset(
    name="split",
    title="Your own split",
    summary="Choose down, gate and up per projection and per block of layers: shared or unique, which gate, how many.",
    source="",
    options=SplitOptions,
    cells=lambda options: list(options.cells),
)
