"""What a preset is: a function from options to cells, with a description for people. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ...schema import MethodSpec, Spec
from ..cells import Cell, Experts, Layers, Modules

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass(frozen=True)
class Preset:
    """A method of the literature (or of yours) as words. ``badge``: set where a paper had to be interpreted.

    ``alone``: the method with which each task is trained by itself first, for methods of two stages; None with options
    that need no first stage.

    ``peft`` marks a baseline that PEFT computes itself: from options, paths of projections and number of tasks to its
    config. Its cells then only say where it stands and how many parameters it has.

    ``few_bits``: the quantised bases on which it was found right.
    """

    name: str
    title: str
    summary: str
    source: str
    options: type[Spec]
    cells: Callable[[Any], list[Cell]]
    badge: Literal["interpretation"] | None = None
    peft: Callable[[Any, list[str], int], PeftConfig] | None = None
    few_bits: tuple[str, ...] = ("4bit", "8bit")
    alone: Callable[[Any], MethodSpec | None] | None = None


class LowRankOptions(Spec):
    """What every preset lets its user choose."""

    modules: Modules = Field(
        ["q_proj", "v_proj"], description="Projections that are adapted: names, a regular expression, or all-linear."
    )
    layers: Layers = Field(None, description='Layers, as numbers or ranges such as "0-3"; empty: all.')
    rank: int = Field(8, ge=1, le=1024, description="Rank of each expert.")
    alpha: float = Field(16.0, gt=0, description="The update is scaled by alpha / rank.")

    def place(self) -> dict[str, Any]:
        """The fields that every cell of the preset takes over."""
        return {"modules": self.modules, "layers": self.layers, "rank": self.rank, "alpha": self.alpha}


class MixtureOptions(LowRankOptions):
    experts: Experts = Field(
        [2, 4, 6, 8], description="Experts per projection: a number, or one for each equal block of layers from below."
    )
