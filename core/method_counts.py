"""How many parameters methods train: with their defaults on known bases, and in the settings of their papers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from core import catalog, preflight
from core.adapters.methods import presets, resolve
from core.catalog import BaseShapes
from core.drafts import Place, placed
from core.errors import StudioError
from core.known_shapes import KNOWN
from core.schema import BUNDLED_BASE, MethodSpec, ModelSpec

TASKS = 8  # for methods that count tasks
BUNDLED = "bundled base"
SHOWN = ("LLaMA2-7B", "LLaMA2-13B", "Mistral-7B", BUNDLED)
SIX = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
# What stands for a split where one has to be shown.
EXAMPLE_SPLIT: list[dict[str, Any]] = [
    {"modules": ["q_proj", "v_proj"], "experts": [2, 4], "rank": 8, "down": "shared", "up": "unique",
     "gate": {"word": "token", "top_k": 2, "balance": 0.001}},
    {"modules": ["up_proj", "down_proj"], "experts": 3, "rank": 4, "down": "unique", "gate": "task", "up": "unique"},
]  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A setting of a paper and its count, taken from the paper or worked out by hand from its formulas."""

    method: str
    setting: str
    count: int
    printed: str  # what the paper says of it; empty where its number was not read
    base: str = "LLaMA2-7B"
    options: dict[str, Any] = field(default_factory=dict)
    tasks: int = 0

    def counted(self) -> int:
        method = MethodSpec(name=self.method, options=self.options)
        return catalog.trainable_parameters(method, KNOWN[self.base], self.tasks)


PUBLISHED = (
    Published("lora", "rank 8, q and v", 4_194_304, "0.419 in MoSLD's table, in tens of millions"),
    Published("lora", "rank 64, six projections", 143_130_624, "2.1 % in MALoRA's table",
              options={"modules": SIX, "rank": 64}),
    Published("molora", "8 experts of rank 8, six projections", 151_191_552, "2.2 % in MALoRA's table",
              options={"modules": SIX, "experts": 8}),
    Published("molora", "8 experts of rank 12, six projections", 222_756_864, "3.3 % in MALoRA's table",
              options={"modules": SIX, "experts": 8, "rank": 12}),
    Published("mola", "2-4-6-8 experts of rank 8, q and v", 22_282_240, "2.228 in MoSLD's table, in tens of millions"),
    Published("mosld", "2-4-6-8 experts of rank 8, q and v", 13_893_632, "1.389, in tens of millions"),
    Published("mosld", "8-6-4-2 experts of rank 8, q and v", 13_893_632, "1.389, in tens of millions",
              options={"experts": [8, 6, 4, 2]}),
    Published("malora", "8 experts of rank 12 in 32 dimensions, six projections", 158_859_264, "2.3 %"),
    Published("malora", "MALoRA-Small: 8 experts of rank 8 in 22 dimensions", 109_142_016, "1.6 %",
              options={"share": 0.34375, "enlarge_rank": False}),
    Published("mtl_lora", "the released script: 3 matrices of rank 8, q, k, v and o, 8 tasks", 16_845_824, "", tasks=8),
    Published("mtl_lora", "3 matrices of rank 8, q, k, v and o, 9 tasks", 12_135_808, "", base="Llama-3.1-8B", tasks=9),
    Published("mtl_lora", "2 matrices of rank 64, q and v, 4 tasks", 5_898_528, "", base="VL-BART", tasks=4,
              options={"modules": ["q_proj", "v_proj"], "rank": 64, "experts": 2}),
    Published("mode", "16 experts of rank 4, q, k, v and o", 15_335_424, "6.64 %, of other widths",
              base="Gemma 2B", options={"experts": 16}),
    Published("mode", "6 experts of rank 4, q, k, v and o", 6_119_424, "2.69 %, of other widths", base="Gemma 2B"),
    Published("mode", "MoLoRA-SD: 16 experts of rank 4 with one router", 8_257_536, "2.71 %, of other widths",
              base="Gemma 2B", options={"experts": 16, "expert_rank": 4}),
    Published("mor1e", "4 by 8 factors, all projections", 51_872_192, ""),
    Published("mor1e", "4 by 8 factors, all projections (the released setting)", 81_183_280, "", base="LLaMA2-13B"),
    Published("mor1e", "4 by 8 factors, all projections", 55_837_120, "", base="Mistral-7B"),
    Published("mor1e", "one-to-one, 32 experts", 116_392_384, "", options={"pairing": "one-to-one"}),
    Published("mixlora", "pools of 16, rank 2", 112_852_992, "", options={"rank": 2}),
    Published("mixlora", "pools of 16, rank 4", 149_291_008, ""),
    Published("mixlora", "pools of 16, without the conditional router", 76_414_976, "", options={"mode": "input"}),
    Published("mixlora", "pools of 32, rank 4", 298_582_016, "", options={"experts": 32}),
    Published("moelora", "8 experts of rank 4, q and v: as many as a LoRA of rank 36", 18_874_368, ""),
    Published("moa", "8 experts of rank 8 and 32 routers, q and v", 34_603_264, "", tasks=8,
              options={"modules": ["q_proj", "v_proj"]}),
    Published("moa", "8 experts of rank 8 and 32 routers, six projections", 144_179_456, "", tasks=8),
)  # fmt: skip


def spec_of(name: str) -> MethodSpec:
    """A method with its defaults; for a split, the example."""
    return MethodSpec(name=name, cells=EXAMPLE_SPLIT if name == "split" else [])


@lru_cache(maxsize=32)
def base_named(name: str, cache: Path) -> BaseShapes:
    """The shapes of a known base by its name, of the bundled one, or of a folder or Hub id."""
    if name in KNOWN:
        return KNOWN[name]
    return catalog.shapes(ModelSpec(base=BUNDLED_BASE if name == BUNDLED else name), cache)


@dataclass(frozen=True)
class OnBase:
    """A method with its defaults on a base: what it adapts and how many parameters it trains."""

    base: str
    total: int
    trainable: int
    parts: dict[str, int]
    places: list[Place]


def on_base(name: str, base: str, tasks: int, cache: Path) -> OnBase:
    """StudioError where the base cannot be read or lacks the projections."""
    method, shapes = spec_of(name), base_named(base, cache)
    sites = catalog.sites(method, shapes, tasks)
    parts = preflight.by_part(sites)
    return OnBase(base, shapes.parameters, sum(parts.values()), parts, placed(shapes, resolve(method), sites))


def counts(name: str, cache: Path) -> dict[str, int | None]:
    """Base -> trainable parameters of a method with its defaults; None where the base lacks its projections."""
    found: dict[str, int | None] = {}
    for base in SHOWN:
        try:
            found[base] = catalog.trainable_parameters(spec_of(name), base_named(base, cache), TASKS)
        except StudioError:
            found[base] = None
    return found


def table(cache: Path) -> dict[str, dict[str, int | None]]:
    """``counts`` of every method but the split."""
    return {name: counts(name, cache) for name in presets() if name != "split"}
