"""The gate of separately trained experts: a router per block of the base that is taught the task labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from .base import Gate, word

if TYPE_CHECKING:
    from ..cells import Site
    from ..modules.base import GateModule


@word
class LabelGate(Gate):
    """An expert for each task; one router per block of layers, taught the task labels, decides once per sample."""

    formula: ClassVar[str] = "E * in + E in the first projection of a block, 0 in the others"
    word: Literal["label"] = "label"
    unit: ClassVar[Literal["token", "sample"] | None] = "sample"
    scope: ClassVar[Literal["projection", "block", "model"]] = "block"
    per_task: ClassVar[bool] = True

    decide: Literal["per_layer", "vote", "soft", "label"] = Field(
        "per_layer",
        description="Whose expert is used: each block's own first choice, one that all blocks vote for, all by their "
        "probabilities, or the task's own. While training the task's own is used, except with soft.",
    )
    pool: Literal["mean", "last"] = Field(
        "mean", description="What the router sees of the prompt: the mean of its tokens, or its last token."
    )
    supervision: float = Field(
        1.0, ge=0, description="Weight of the routers' cross-entropy against the task labels, averaged over blocks."
    )
    detach: bool = Field(False, description="Keep the routers' loss from reaching the experts of blocks below.")

    def selected(self, experts: int) -> int:
        return experts if self.decide == "soft" else 1

    @property
    def needs_task(self) -> bool:
        return self.decide == "label"

    @property
    def expression(self) -> str:
        return "first * (E * in + E)"

    def parameters(self, site: Site) -> int:
        return site.experts * site.in_features + site.experts if site.leads else 0

    def build(self, site: Site) -> GateModule | None:
        from ..modules.label import FollowingGateModule, LabelGateModule

        return LabelGateModule(self, site) if site.leads else FollowingGateModule()
