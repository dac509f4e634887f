"""Gate words: who decides how much each expert contributes, and from what."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from .base import Gate, word

if TYPE_CHECKING:
    from ..cells import Site
    from ..modules.base import GateModule


@word
class NoGate(Gate):
    """No decision: the experts are added up. With one expert this is a LoRA."""

    formula: ClassVar[str] = "0"
    word: Literal["none"] = "none"

    def parameters(self, site: Site) -> int:
        return 0

    def build(self, site: Site) -> GateModule | None:
        return None


class ChoosingGate(Gate):
    top_k: int | None = Field(None, ge=1, le=1024, description="Experts used per decision; empty: all.")
    renormalise: bool = Field(
        True, description="Whether the weights of the experts used are made to sum to one; else they stay as they were."
    )

    def selected(self, experts: int) -> int:
        return experts if self.top_k is None else min(self.top_k, experts)

    @property
    def sums_to_one(self) -> bool:
        return self.renormalise or self.top_k is None


class RouterGate(ChoosingGate):
    """Options of gates that multiply the projection's input with a router matrix."""

    balance: float = Field(
        0.0,
        ge=0,
        description="Weight of the load-balance loss; 1.0 per projection = balanced.",
    )
    balance_over: Literal["sum", "mean"] = Field(
        "sum", description="Whether the load-balance losses of an adapter's projections are summed or averaged."
    )
    init: Literal["kaiming", "normal"] = Field(
        "kaiming", description="Start of the router: kaiming uniform, or normal with standard deviation 0.02."
    )

    formula: ClassVar[str] = "E * in"

    def parameters(self, site: Site) -> int:
        return site.experts * site.in_features


@word
class TokenGate(RouterGate):
    """A softmax router on every token."""

    word: Literal["token"] = "token"
    unit: ClassVar[Literal["token", "sample"] | None] = "token"

    def build(self, site: Site) -> GateModule | None:
        from ..modules.gate import TokenGateModule

        return TokenGateModule(self, site)


@word
class SequenceGate(RouterGate):
    """A softmax router on the mean of the prompt's tokens: one decision per sample, kept while generating."""

    word: Literal["sequence"] = "sequence"
    unit: ClassVar[Literal["token", "sample"] | None] = "sample"

    def build(self, site: Site) -> GateModule | None:
        from ..modules.gate import SequenceGateModule

        return SequenceGateModule(self, site)


@word
class TaskGate(ChoosingGate):
    """A learned table with one row of weights per task; every sample must say its task."""

    formula: ClassVar[str] = "tasks * E"
    word: Literal["task"] = "task"
    unit: ClassVar[Literal["token", "sample"] | None] = "sample"

    temperature: float = Field(
        1.0, gt=0, description="Temperature of the softmax over a task's row: small values choose one expert."
    )

    @property
    def needs_task(self) -> bool:
        return True

    def parameters(self, site: Site) -> int:
        return site.tasks * site.experts

    def build(self, site: Site) -> GateModule | None:
        from ..modules.gate import TaskGateModule

        return TaskGateModule(self, site)
