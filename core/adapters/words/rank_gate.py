"""A gate with a decision for every few ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from .base import word
from .gate import ChoosingGate

if TYPE_CHECKING:
    from ..cells import Site
    from ..modules.base import GateModule


@word
class RankGate(ChoosingGate):
    """A softmax router on every token for each block of ranks, which mixes the experts of that block alone."""

    formula: ClassVar[str] = "(r // expert_rank) * E * in"
    word: Literal["rank"] = "rank"
    unit: ClassVar[Literal["token", "sample"] | None] = "token"
    expert_rank: int = Field(
        1, ge=1, le=1024, description="Neighbouring ranks that share a router; it divides the rank."
    )
    balance: float = Field(
        0.0,
        ge=0,
        description="Weight of the load-balance loss, averaged over the blocks of ranks and summed over projections.",
    )
    std: float = Field(
        0.01,
        gt=0,
        description="Standard deviation of the routers at the start; from zero the experts would stay alike for ever.",
    )

    def groups(self, site: Site) -> int:
        return site.rank // self.expert_rank

    def parts(self, site: Site) -> list[str]:
        if self.groups(site) == 1:
            return []
        starts = range(0, site.rank, self.expert_rank)
        last = self.expert_rank - 1
        return [f"rank {start}-{start + last}" if last else f"rank {start}" for start in starts]

    def parameters(self, site: Site) -> int:
        return self.groups(site) * site.experts * site.in_features

    def check(self, site: Site) -> None:
        if site.rank % self.expert_rank:
            raise ValueError(f"blocks of {self.expert_rank} ranks do not divide the rank {site.rank}")

    def build(self, site: Site) -> GateModule | None:
        from ..modules.rank_gate import RankGateModule

        return RankGateModule(self, site)
