"""Down words: the matrices from a projection's input to the rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from .base import Down, word

if TYPE_CHECKING:
    from ..cells import Site
    from ..modules.base import DownModule


class LowRankDown(Down):
    """Options that shared and unique down matrices have in common."""

    trained: bool = Field(True, description="Whether it trains; else it stays as it starts.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability of the dropout of this part.")
    dropout_on: Literal["weight", "input"] = Field(
        "weight", description="weight: entries of the down matrix, one mask per forward; input: what enters it."
    )
    init: Literal["kaiming", "gaussian"] = Field(
        "kaiming", description="kaiming: uniform as in LoRA; gaussian: normal of the same variance, 1/(3 * inputs)."
    )
    std: float | None = Field(None, gt=0, description="Standard deviation of the gaussian; empty: as described.")

    @property
    def expression(self) -> str:
        return self.formula if self.trained else "0"


@word
class SharedDown(LowRankDown):
    """One down matrix for all experts of a projection."""

    formula: ClassVar[str] = "r * in"
    word: Literal["shared"] = "shared"
    shared: ClassVar[bool] = True

    def parameters(self, site: Site) -> int:
        return site.rank * site.in_features if self.trained else 0

    def build(self, site: Site) -> DownModule:
        from ..modules.down import SharedDownModule

        return SharedDownModule(self, site)


@word
class UniqueDown(LowRankDown):
    """A down matrix for each expert."""

    formula: ClassVar[str] = "E * r * in"
    word: Literal["unique"] = "unique"

    def parameters(self, site: Site) -> int:
        return site.experts * site.rank * site.in_features if self.trained else 0

    def build(self, site: Site) -> DownModule:
        from ..modules.down import UniqueDownModule

        return UniqueDownModule(self, site)


@word
class IdentityDown(Down):
    """No down matrix: the up matrices see the whole input, so the update has full rank; the cell's rank only scales."""

    formula: ClassVar[str] = "0"
    word: Literal["identity"] = "identity"
    shared: ClassVar[bool] = True
    width: ClassVar[str] = "in"

    def rank(self, rank: int, in_features: int) -> int:
        return in_features

    def parameters(self, site: Site) -> int:
        return 0

    def build(self, site: Site) -> DownModule:
        from ..modules.down import IdentityDownModule

        return IdentityDownModule(site)
