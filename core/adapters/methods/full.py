"""Full fine-tuning of projections and token embedding: an update of full rank in place of a low-rank one."""

from __future__ import annotations

from pydantic import Field

from ...schema import Spec
from ..cells import ALL_LINEAR, TOKEN_EMBEDDING, Cell, Layers, Modules
from .base import Preset


class FullOptions(Spec):
    modules: Modules = Field(
        ALL_LINEAR, description="Projections that are trained: names, a regular expression, or all-linear."
    )
    layers: Layers = Field(None, description='Layers, as numbers or ranges such as "0-3"; empty: all.')
    embeddings: bool = Field(
        False, description="Whether the token embedding trains too; an output head that is tied to it follows."
    )


def cells(options: FullOptions) -> list[Cell]:
    whole = {"rank": 1, "alpha": 1, "experts": 1, "down": "identity"}
    found = [Cell(modules=options.modules, layers=options.layers, **whole)]
    return [*found, Cell(modules=TOKEN_EMBEDDING, **whole)] if options.embeddings else found


PRESET = Preset(
    name="full",
    title="Full fine-tuning",
    summary="Every weight of the chosen projections trains, kept as a difference from the base.",
    source="the upper end of what adapters are compared with; sensible for small bases",
    options=FullOptions,
    cells=cells,
)
