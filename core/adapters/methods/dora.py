"""DoRA: the length of each row of a weight trains beside a LoRA that turns its direction. Computed by PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ..cells import Cell
from ..words.up import UniqueUp
from .base import Preset
from .lora import LoraOptions

if TYPE_CHECKING:
    from peft import PeftConfig

    from ..cells import Site


class MagnitudeUp(UniqueUp):
    """A LoRA's up matrix and a length for each output. No word for splits: it is here for the count alone."""

    formula: ClassVar[str] = "r * out + out"

    def parameters(self, site: Site) -> int:
        return super().parameters(site) + site.out_features


def cells(options: LoraOptions) -> list[Cell]:
    down = {"word": "unique", "dropout": options.dropout, "dropout_on": "input"}
    return [Cell(**options.place(), experts=1, down=down, gate="none", up=MagnitudeUp())]


def config(options: LoraOptions, modules: Sequence[str], tasks: int) -> PeftConfig:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(modules),
        use_dora=True,
    )


PRESET = Preset(
    name="dora",
    title="DoRA",
    summary="A LoRA turns the direction of each row of a weight, and its length trains beside it: a baseline of PEFT.",
    source="Liu et al., arXiv 2402.09353 (ICML 2024); computed by PEFT",
    options=LoraOptions,
    cells=cells,
    peft=config,
    few_bits=("8bit",),  # on a 4-bit base a fresh adapter is off by more than bfloat16 rounds
)
