"""Pools of rank-one factors: any down factor can meet any up factor, so v1 + v2 vectors give v1 * v2 experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from .base import Down, Up, word

if TYPE_CHECKING:
    from ..cells import Site
    from ..modules.base import DownModule, UpModule

_VECTORS = Field(None, ge=1, le=1024, description="Factors in the pool; empty: as many as experts.")


def factors(part: PoolDown | PoolUp, site: Site) -> int:
    """The factors of one pool at a site."""
    return site.experts if part.vectors is None else part.vectors


def _check_pools(site: Site) -> None:
    """Pools come in pairs, and the gate must weigh each pair or choose factors from both."""
    if not (isinstance(site.down, PoolDown) and isinstance(site.up, PoolUp)):
        raise ValueError(f"a pool of factors needs a pool on the other side, but down is {site.down.word!r} and up is "
                         f"{site.up.word!r}")  # fmt: skip
    first, second = factors(site.down, site), factors(site.up, site)
    if site.gate.pairs_factors:
        if not first == second == site.experts:
            raise ValueError(f"the gate {site.gate.word!r} chooses from as many down factors as up factors as experts, "
                             f"but these are {first}, {second} and {site.experts}")  # fmt: skip
        return
    if first * second != site.experts:
        raise ValueError(f"{first} down factors and {second} up factors make {first * second} experts, "
                         f"not {site.experts}")  # fmt: skip
    if site.rank != 1 or site.gate.groups(site) != 1:
        raise ValueError(f"every pair of factors is an expert of rank 1 with one weight, but the rank is {site.rank}")


@word
class PoolDown(Down):
    """Rank-one down factors that are paired with those of an up pool."""

    formula: ClassVar[str] = "vectors * in"
    word: Literal["pool"] = "pool"
    dropout_on: ClassVar[str] = "input"
    vectors: int | None = _VECTORS
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on what enters the factors; the gate sees all of it.")

    @property
    def expression(self) -> str:
        return "E * in" if self.vectors is None else self.formula

    def parameters(self, site: Site) -> int:
        return factors(self, site) * site.in_features

    def columns(self, site: Site) -> int:
        return factors(self, site)

    def check(self, site: Site) -> None:
        _check_pools(site)

    def build(self, site: Site) -> DownModule:
        from ..modules.pool import PoolDownModule

        return PoolDownModule(self, site)


@word
class PoolUp(Up):
    """Rank-one up factors that are paired with those of a down pool."""

    formula: ClassVar[str] = "vectors * out"
    word: Literal["pool"] = "pool"
    vectors: int | None = _VECTORS

    @property
    def expression(self) -> str:
        return "E * out" if self.vectors is None else self.formula

    def parameters(self, site: Site) -> int:
        return factors(self, site) * site.out_features

    def columns(self, site: Site) -> int:
        return factors(self, site)

    def check(self, site: Site) -> None:
        _check_pools(site)

    def build(self, site: Site) -> UpModule:
        from ..modules.pool import PoolUpModule

        return PoolUpModule(self, site)
