"""MALoRA: experts in one shared subspace of the input; what that saves enlarges their rank."""

from __future__ import annotations

from pydantic import Field

from ..cells import Cell, Experts, Modules
from .base import MixtureOptions, Preset


class MaloraOptions(MixtureOptions):
    modules: Modules = Field(
        ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"],
        description="Projections that are adapted: names, a regular expression, or all-linear.",
    )
    experts: Experts = Field(
        8, description="Experts per projection: a number, or one for each equal block of layers from below."
    )
    rank: int = Field(8, ge=1, le=1024, description="Rank of the MoLoRA whose parameters are shared out anew.")
    alpha: float | None = Field(
        None, gt=0, description="The update is scaled by alpha / rank of the experts; empty: a scale of 2."
    )
    share: float = Field(
        0.5, gt=0, le=1, description="The lambda of the paper: the subspace has this share of rank x experts."
    )
    enlarge_rank: bool = Field(
        True, description="Whether the experts' rank grows by (1 - share) x rank; else what is shared is saved."
    )
    beta: float = Field(1.0, gt=0, description="Balance of learning: above 1, what each expert has of its own.")
    top_k: int = Field(2, ge=1, le=1024, description="Experts used per token.")
    renormalise: bool = Field(False, description="Whether the weights of the experts used are made to sum to one.")
    dropout: float = Field(0.05, ge=0, lt=1, description="Dropout on what enters the shared matrix.")
    balance: float = Field(0.01, ge=0, description="Weight of the load-balance loss.")

    @property
    def expert_rank(self) -> int:
        """The paper's r-bar."""
        return self.rank + (round((1 - self.share) * self.rank) if self.enlarge_rank else 0)


def cells(options: MaloraOptions) -> list[Cell]:
    rank = options.expert_rank
    share = options.share * options.rank / rank
    alpha = 2 * rank if options.alpha is None else options.alpha
    return [
        Cell(
            **{**options.place(), "rank": rank, "alpha": alpha},
            experts=options.experts,
            down={"word": "subspace", "share": share, "beta": options.beta, "dropout": options.dropout},
            gate={
                "word": "token",
                "top_k": options.top_k,
                "renormalise": options.renormalise,
                "balance": options.balance,
            },
            up="unique",
        )
    ]


PRESET = Preset(
    name="malora",
    title="MALoRA",
    summary="Experts' down matrices lie in one trained subspace; the parameters saved enlarge their rank; top-2 per "
    "token.",
    source="Wang et al., arXiv 2410.22782 (NAACL 2025 Findings)",
    options=MaloraOptions,
    cells=cells,
)
