"""Intuition-MoR1E: experts of rank one, weighed by a token router and by what kind of prompt it is.

As the code released for the renamed version (T-REX) computes; the papers' bodies were not read. Interpretations: the
embedder (the base's own pooled states in place of nomic-embed-text, which can be named), the clustering (k-means of
the training prompts of this run), the factor of the router's probabilities (the number of experts; the code has 32
for 32 experts) and a mapper that trains where clusters and experts differ (the release leaves it random).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...schema import Spec
from ..cells import ALL_LINEAR, Cell, Layers, Modules
from .base import Preset


class Mor1eOptions(Spec):
    modules: Modules = Field(
        ALL_LINEAR, description="Projections that are adapted: names, a regular expression, or all-linear."
    )
    layers: Layers = Field(None, description='Layers, as numbers or ranges such as "0-3"; empty: all.')
    down_vectors: int = Field(4, ge=1, le=256, description="Down factors; times up factors they give the experts.")
    up_vectors: int = Field(8, ge=1, le=256, description="Up factors.")
    pairing: Literal["mix-and-match", "one-to-one"] = Field(
        "mix-and-match",
        description="mix-and-match: every down factor meets every up factor; one-to-one: as many experts, each with "
        "two factors of its own.",
    )
    intuition: bool = Field(True, description="Whether the prompt's similarity to the clusters counts.")
    router: bool = Field(True, description="Whether tokens are routed.")
    init: Literal["zeros", "normal"] = Field(
        "zeros",
        description="Start of the router: zeros, as released, or normal with standard deviation 0.02. Without "
        "intuition take normal: from zeros all up factors stay equal and the update has rank 1.",
    )
    clusters: int | None = Field(
        None, ge=1, le=1024, description="Clusters of training prompts; empty: as many as experts. Else a matrix maps."
    )
    embedder: str = Field(
        "base",
        min_length=1,
        description="What embeds prompts: base (the frozen base's mean last hidden state) or a sentence encoder, as a "
        "local folder or Hub id.",
    )
    cosine: bool = Field(False, description="Normalise the centroids; as released they stay means.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on what enters the down factors.")


def cells(options: Mor1eOptions) -> list[Cell]:
    chosen = options.model_dump(include={"intuition", "router", "init", "clusters", "embedder", "cosine"})
    down: dict[str, object] = {"word": "pool", "vectors": options.down_vectors, "dropout": options.dropout}
    up: dict[str, object] = {"word": "pool", "vectors": options.up_vectors}
    if options.pairing == "one-to-one":
        down, up = {"word": "unique", "dropout": options.dropout, "dropout_on": "input"}, {"word": "unique"}
    return [
        Cell(
            modules=options.modules,
            layers=options.layers,
            experts=options.down_vectors * options.up_vectors,
            rank=1,
            alpha=1,  # the release leaves alpha / rank out
            down=down,
            gate={"word": "intuition", **chosen},
            up=up,
        )
    ]


PRESET = Preset(
    name="mor1e",
    title="Intuition-MoR1E",
    summary="Rank-one experts from pools of factors, weighed by a token router and by the prompt's nearness to "
    "clusters of training prompts.",
    source="Liu et al., arXiv 2404.08985 (T-REX in version 2), after its released code",
    options=Mor1eOptions,
    cells=cells,
    badge="interpretation",
)
