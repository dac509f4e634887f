"""Up words: the matrices from the rank to a projection's output. All start at zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from .base import Up, word

if TYPE_CHECKING:
    from ..cells import Site
    from ..modules.base import UpModule


class LowRankUp(Up):
    trained: bool = Field(True, description="Whether they train; else they stay as they start.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the entries of the up matrices while training.")

    @property
    def expression(self) -> str:
        return self.formula if self.trained else "0"


@word
class SharedUp(LowRankUp):
    """One up matrix for all experts of a projection."""

    formula: ClassVar[str] = "r * out"
    word: Literal["shared"] = "shared"
    shared: ClassVar[bool] = True

    def parameters(self, site: Site) -> int:
        return site.rank * site.out_features if self.trained else 0

    def build(self, site: Site) -> UpModule:
        from ..modules.up import SharedUpModule

        return SharedUpModule(self, site)


@word
class UniqueUp(LowRankUp):
    """An up matrix for each expert."""

    formula: ClassVar[str] = "E * r * out"
    word: Literal["unique"] = "unique"

    def parameters(self, site: Site) -> int:
        return site.experts * site.rank * site.out_features if self.trained else 0

    def build(self, site: Site) -> UpModule:
        from ..modules.up import UniqueUpModule

        return UniqueUpModule(self, site)
