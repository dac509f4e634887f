"""The gate that picks, for every sample, which rank-one factors of two pools make up its low-rank update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from .base import Gate, word

if TYPE_CHECKING:
    from ..cells import Site
    from ..modules.base import GateModule

Mode = Annotated[
    Literal["conditional", "input", "shared", "random"],
    Field(
        description="How up factors are picked: from the input and the chosen down factors; from the input alone; the "
        "same ones as down; random: both sides at random."
    ),
]
Learning = Annotated[
    Literal["straight_through", "hard"],
    Field(
        description="straight_through: routers learn through the scores of what they picked; hard: they stay as they "
        "started, as in the released code."
    ),
]


@word
class ConditionalGate(Gate):
    """For each sample as many down and up factors as the rank, unweighted, paired in the order of their scores.

    It looks at the mean of the prompt's tokens; whatever is marked as prompt counts, positions of images too.
    """

    formula: ClassVar[str] = "2 * E * in + r * E * in (conditional), 2 * E * in (input), E * in (shared), 0 (random)"
    word: Literal["conditional"] = "conditional"
    unit: ClassVar[Literal["token", "sample"] | None] = "sample"
    pairs_factors: ClassVar[bool] = True

    mode: Mode = "conditional"
    gate: Learning = "straight_through"
    condition: float = Field(1.0, ge=0, description="Weight of the conditional score beside that of the input.")
    pool_over: Literal["prompt", "all"] = Field(
        "prompt",
        description="prompt: the prompt's tokens, decided once per text; all: whatever the pass holds, answers and "
        "padding too, anew for each generated token, as in the released code.",
    )
    noise: float = Field(0.0, ge=0, description="Standard deviation of noise on the routers' scores while training.")

    def selected_at(self, site: Site) -> int:
        return min(site.rank, site.experts)

    def groups(self, site: Site) -> int:
        return 2

    def parts(self, site: Site) -> list[str]:
        return ["down factors", "up factors"]

    def routers(self) -> int:
        """Rows of the router for each factor."""
        return {"conditional": 2, "input": 2, "shared": 1, "random": 0}[self.mode]

    @property
    def expression(self) -> str:
        routers = {0: "0", 1: "E * in", 2: "2 * E * in"}[self.routers()]
        return f"{routers} + r * E * in" if self.mode == "conditional" else routers

    def parameters(self, site: Site) -> int:
        pairing = site.rank if self.mode == "conditional" else 0
        return (self.routers() + pairing) * site.experts * site.in_features

    def check(self, site: Site) -> None:
        if (site.down.word, site.up.word) != ("pool", "pool"):
            raise ValueError("the gate 'conditional' picks factors, so down and up must both be 'pool'")
        if site.rank > site.experts:
            raise ValueError(f"{site.rank} factors cannot be picked from a pool of {site.experts}")

    def build(self, site: Site) -> GateModule | None:
        from ..modules.conditional import ConditionalGateModule

        return ConditionalGateModule(self, site)
