"""A down word whose experts share one subspace of the input."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from .base import Down, word

if TYPE_CHECKING:
    from ..cells import Site
    from ..modules.base import DownModule


@word
class SubspaceDown(Down):
    """One matrix into a shared subspace, and a small matrix for each expert from there to its rank."""

    formula: ClassVar[str] = "ceil(share * E * r) * (in + E * r)"
    word: Literal["subspace"] = "subspace"
    share: float = Field(
        0.5, gt=0, le=1, description="Width of the subspace as a share of all experts' ranks together, rounded up."
    )
    beta: float = Field(
        1.0,
        gt=0,
        description="Size of the shared matrix at the start; above 1, what each expert has of its own learns faster.",
    )
    trained: bool = Field(True, description="Whether the shared matrix trains; else it stays as it starts.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on what enters the shared matrix.")

    @property
    def expression(self) -> str:
        return self.formula if self.trained else "ceil(share * E * r) * E * r"

    def size(self, site: Site) -> int:
        """Width of the subspace at a site."""
        return math.ceil(self.share * site.experts * site.rank - 1e-6)

    def parameters(self, site: Site) -> int:
        return self.size(site) * ((site.in_features if self.trained else 0) + site.experts * site.rank)

    def check(self, site: Site) -> None:
        size = self.size(site)
        if not site.rank <= size <= site.in_features:
            raise ValueError(
                f"the subspace would have {size} dimensions, which must lie between the rank {site.rank} and the "
                f"{site.in_features} inputs"
            )

    def build(self, site: Site) -> DownModule:
        from ..modules.subspace import SubspaceDownModule

        return SubspaceDownModule(self, site)
