"""Poly (Polytropon): a set of LoRAs, the skills, and a table of which task uses which of them. Computed by PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ...schema import Spec
from ..cells import Cell, Layers, Modules
from ..words.up import UniqueUp
from .base import Preset

if TYPE_CHECKING:
    from peft import PeftConfig

    from ..cells import Site


class SkillUp(UniqueUp):
    """Where PEFT's layer can stand. No word for splits: it is here for this check alone."""

    def check(self, site: Site) -> None:
        if site.kind == "transposed":
            raise ValueError("PEFT's Poly stands on linear layers, and this projection is a Conv1D")


class PolyOptions(Spec):
    modules: Modules = Field(
        ["q_proj", "v_proj"], description="Projections that are adapted: names, a regular expression, or all-linear."
    )
    layers: Layers = Field(None, description='Layers, as numbers or ranges such as "0-3"; empty: all.')
    rank: int = Field(8, ge=1, le=1024, description="Rank of each skill; the update is divided by it.")
    experts: int = Field(4, ge=1, le=256, description="Skills (LoRAs) per projection.")


def cells(options: PolyOptions) -> list[Cell]:
    """The same places and parameters as words: unique experts behind a table with a row for each task."""
    place = {"modules": options.modules, "layers": options.layers, "rank": options.rank, "alpha": 1}
    return [Cell(**place, experts=options.experts, down="unique", gate="task", up=SkillUp())]


def config(options: PolyOptions, modules: Sequence[str], tasks: int) -> PeftConfig:
    from peft import PolyConfig

    return PolyConfig(
        task_type="CAUSAL_LM", r=options.rank, target_modules=list(modules), n_tasks=tasks, n_skills=options.experts
    )


PRESET = Preset(
    name="poly",
    title="Poly",
    summary="Every task mixes a common set of LoRAs by a learned row of a table: a baseline of PEFT; needs the task.",
    source="Ponti et al., Polytropon, arXiv 2202.13914 (EACL 2023); computed by PEFT",
    options=PolyOptions,
    cells=cells,
    peft=config,
)
