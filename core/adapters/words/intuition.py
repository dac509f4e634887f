"""The gate of rank-one experts with an intuition: a token router mixed with how near the prompt is to known ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from .base import Gate, word

if TYPE_CHECKING:
    from ..cells import Site
    from ..modules.base import GateModule


@word
class IntuitionGate(Gate):
    """A dense token router mixed with the prompt's similarity to clusters of training prompts; weights are no shares.

    Before training, the prompts' embeddings are clustered; until then the centroids are random directions.
    """

    formula: ClassVar[str] = "E * in + 2 (+ E * clusters where they are not as many as the experts)"
    word: Literal["intuition"] = "intuition"
    scope: ClassVar[Literal["projection", "block", "model"]] = "model"
    signed: ClassVar[bool] = True

    router: bool = Field(True, description="Whether tokens are routed; off: the intuition alone weighs the experts.")
    intuition: bool = Field(True, description="Whether the prompt's similarity to the clusters counts.")
    init: Literal["zeros", "normal"] = Field(
        "zeros",
        description="Start of the router: zeros, or normal with standard deviation 0.02. Without intuition, pools need "
        "normal: from zeros all up factors stay equal.",
    )
    clusters: int | None = Field(
        None, ge=1, le=1024, description="Clusters of prompts; empty: as many as experts. Else a trained matrix maps."
    )
    embedder: str = Field(
        "base",
        min_length=1,
        description="What embeds prompts: base (the mean last hidden state of the frozen base), or a sentence encoder "
        "as a local folder or Hub id.",
    )
    width: int | None = Field(
        None, ge=1, le=1_000_000, description="Width of an embedding; filled in from the embedder."
    )
    cosine: bool = Field(
        False, description="Normalise the centroids, so that the similarity is a cosine; else they stay means."
    )
    token_scale: float | None = Field(
        None, gt=0, description="Factor of the router's probabilities; empty: the number of experts."
    )
    prompt_scale: float = Field(4.0, gt=0, description="Factor of the similarities to the clusters.")
    sharpness: float = Field(100.0, gt=0, description="The two scalars enter as sigmoid(sharpness * scalar).")

    @model_validator(mode="after")
    def _something_decides(self) -> IntuitionGate:
        if not (self.router or self.intuition):
            raise ValueError("router and intuition cannot both be off")
        return self

    @property
    def unit(self) -> Literal["token", "sample"]:
        """Without the router one decision covers a sample."""
        return "token" if self.router else "sample"

    @property
    def guided(self) -> bool:
        return self.intuition

    @property
    def sums_to_one(self) -> bool:
        return False

    def centroids(self, experts: int) -> int:
        return experts if self.clusters is None else self.clusters

    def maps(self, experts: int) -> bool:
        """Whether a matrix takes the clusters to the experts."""
        return self.intuition and self.centroids(experts) != experts

    @property
    def expression(self) -> str:
        maps = "E * clusters" if self.intuition and self.clusters is not None else ""
        return " + ".join(filter(None, ("E * in" if self.router else "", maps, "2")))

    def parameters(self, site: Site) -> int:
        router = site.experts * site.in_features if self.router else 0
        return router + (site.experts * self.centroids(site.experts) if self.maps(site.experts) else 0) + 2

    def build(self, site: Site) -> GateModule | None:
        from ..modules.intuition import IntuitionGateModule

        return IntuitionGateModule(self, site)
