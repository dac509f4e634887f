"""Up matrices of which each expert's outputs are pushed away from the others' while training."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from .base import word
from .up import LowRankUp

if TYPE_CHECKING:
    from ..cells import Site
    from ..modules.base import UpModule


@word
class ContrastiveUp(LowRankUp):
    """An up matrix for each expert, with a contrastive loss between the experts' outputs on the tokens they get."""

    formula: ClassVar[str] = "E * r * out"
    word: Literal["contrastive"] = "contrastive"

    weight: float = Field(
        0.01, ge=0, description="Weight of the contrastive loss, averaged over the projections that have one."
    )
    temperature: float = Field(0.1, gt=0, description="Temperature of the products between outputs.")
    samples: int = Field(32, ge=2, le=1024, description="Tokens drawn for each expert and pass, at most.")
    normalise: bool = Field(True, description="Compare the outputs' directions; else bare products.")
    positives: Literal["one", "all"] = Field(
        "one", description="one: against one other token of the same expert, drawn; all: averaged over all of them."
    )
    after: int = Field(100, ge=0, le=10**8, description="Optimiser steps before the contrastive loss counts.")

    def parameters(self, site: Site) -> int:
        return site.experts * site.rank * site.out_features if self.trained else 0

    def check(self, site: Site) -> None:
        if site.gate.unit != "token":
            raise ValueError("the contrastive loss compares tokens that a token gate sent to different experts")
        if site.gate.groups(site) > 1:
            raise ValueError("the contrastive loss needs one decision for each token, but this gate takes several")

    def kept(self, site: Site, tokens: int) -> int:
        """Hidden states in float32, outputs of the drawn tokens twice, and products of all pairs of them."""
        drawn = site.experts * min(self.samples, tokens)
        return 4 * (tokens * site.experts * site.rank + 2 * drawn * site.out_features) + 14 * drawn**2

    def build(self, site: Site) -> UpModule:
        from ..modules.contrastive import ContrastiveUpModule

        return ContrastiveUpModule(self, site)
