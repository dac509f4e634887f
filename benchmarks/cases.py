"""What is measured: single cases and the grids of them, and the model of a case."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import LlamaForCausalLM

from benchmarks.bases import sharing_weights
from benchmarks.rivals import RIVALS
from core.adapters.attach import attach
from core.adapters.methods import preset_named, presets
from core.schema import MethodSpec
from core.training.compiling import compile_regions
from core.training.settings import checkpoint_activations

Mode = Literal["eager", "captured", "regions", "graphs", "whole"]
MODES = get_args(Mode)
TASKS = [f"task-{number}" for number in range(8)]  # methods with an expert for each task have 8 like the others
EXPERTS, RANK = 8, 8
ANCHORS = ("frozen", "peft-lora", "mosld")
AS_PUBLISHED = ("mixlora", "mor1e", "full")  # their pools are no experts of a rank
LENGTHS = (512, 1024, 2048, 4096, 8192)
COUNTS = (2, 4, 8, 16, 32, 64)
RANKS = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Case:
    """One model and how it is run.

    ``mode``: eager, its step as one CUDA graph (``captured``), each block compiled by itself (``regions``), both
    (``graphs``), or the model compiled as a whole. ``extras``: dropout and auxiliary losses as the method has them by
    default. ``recorder``: routing is recorded in every step.
    """

    method: str
    mode: Mode = "eager"
    rows: int = 0
    tokens: int = 0
    experts: int = EXPERTS
    rank: int = RANK
    checkpointing: bool = False
    extras: bool = True
    recorder: bool = True

    @property
    def label(self) -> str:
        said = [self.method]
        said += [f"{self.experts} experts"] if self.experts != EXPERTS else []
        said += [f"rank {self.rank}"] if self.rank != RANK else []
        said += ["checkpointing"] if self.checkpointing else []
        if self.method not in RIVALS:
            said += [] if self.extras else ["no dropout or balance loss"]
            said += [] if self.recorder else ["not recorded"]
        return ", ".join(said)

    def facts(self) -> dict[str, Any]:
        return asdict(self) | {"label": self.label}


def build(case: Case, base: LlamaForCausalLM) -> nn.Module:
    """The case's model on weights that it shares with ``base``, which stays as it is."""
    copied = sharing_weights(base)
    if case.method in RIVALS:
        model = RIVALS[case.method](copied, case.experts, case.rank)
    else:
        model = attach(copied, method_spec(case), tasks=TASKS)
    if case.checkpointing:
        adapted = hasattr(model, "get_base_model")
        checkpoint_activations(model if adapted else SimpleNamespace(get_base_model=lambda: model))
    _wake(model)
    return model.train()


def method_spec(case: Case) -> MethodSpec:
    """The method's defaults on every projection, with the case's experts and rank where it has such options."""
    if case.method == "split":
        cell = {"modules": "all-linear", "experts": case.experts, "rank": case.rank, "down": "shared"}
        return MethodSpec(name="split", cells=[cell | {"gate": "sequence"}])
    wanted: dict[str, Any] = {"modules": "all-linear"}
    if case.method not in AS_PUBLISHED:
        wanted |= {"experts": case.experts, "rank": case.rank}
    if not case.extras:
        wanted |= {"dropout": 0.0, "balance": 0.0}
    known = preset_named(case.method).options.model_fields
    return MethodSpec(name=case.method, options={name: value for name, value in wanted.items() if name in known})


def _wake(model: nn.Module) -> None:
    """Small random values for trained parameters that start at zero: products with zeros cost less power and time."""
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.detach().any():
            parameter.data.normal_(std=1e-3)


def compiled(model: nn.Module, mode: Mode) -> Callable[..., Any]:
    """What to call in place of ``model``; blocks are compiled as the studio compiles them, rivals' too."""
    if mode == "whole":
        return torch.compile(model, dynamic=False)
    if mode in ("regions", "graphs") and not compile_regions(model, dynamic=False):
        raise ValueError("there are no blocks to compile")
    return model


def _both(case: Case) -> list[Case]:
    """Eager and compiled; mixtures as the studio's trainer runs them, in CUDA graphs."""
    if case.method in RIVALS:
        return [case, replace(case, mode="regions")]
    return [replace(case, mode="captured"), replace(case, mode="graphs")]


def core() -> Iterator[Case]:
    """The figures that are promised, most important first; what comes again at the end shows drift."""
    yield Case("peft-lora")
    yield Case("mosld", "captured")
    yield Case("frozen", "regions")
    yield Case("peft-lora", "regions")
    yield Case("mosld", "graphs")
    yield Case("mosld", "graphs", recorder=False)
    yield Case("mosld", "captured", recorder=False)
    yield Case("mosld")
    yield Case("frozen")
    yield Case("peft-lora", "captured")
    yield Case("peft-lora", "graphs")
    yield Case("frozen", "graphs")
    yield Case("lora", "graphs")
    yield Case("mosld", "graphs", extras=False, recorder=False)
    yield Case("mosld", "regions")
    yield Case("peft-lora")


def whole() -> Iterator[Case]:
    """Rivals at their best: the model compiled as a whole, which takes minutes."""
    yield Case("peft-lora")
    for name in ANCHORS:
        yield Case(name, "whole")


def methods() -> Iterator[Case]:
    yield from _anchors()
    for name in presets():
        if name != "mosld":
            yield from _both(Case(name))


def rivals() -> Iterator[Case]:
    """PEFT's routed methods and the loops; Arrow is no row, since PEFT's routes LoRAs without training a router."""
    yield Case("peft-lora")
    yield Case("mosld")
    for name in RIVALS:
        if name not in ANCHORS:
            yield Case(name)
    for name in ("hydra-loop", "peft-lily"):
        yield Case(name, "regions")


def experts() -> Iterator[Case]:
    yield Case("peft-lora")
    yield Case("peft-lora", "regions")
    for count in (8, 4):
        yield Case("mosld", experts=count)
    for count in sorted(COUNTS, key=lambda n: n not in (8, 64)):
        yield from _both(Case("mosld", experts=count))


def rank() -> Iterator[Case]:
    yield Case("frozen", "regions")
    for value in sorted(RANKS, key=lambda n: n != RANK):
        for name in ("peft-lora", "mosld"):
            yield from _both(Case(name, rank=value))


def sequence(tokens: int) -> Iterator[Case]:
    """As many tokens in every batch, in rows of 512 to 8192."""
    for length in LENGTHS:
        rows = max(1, tokens // length)
        for name in ANCHORS:
            yield from _both(Case(name, rows=rows, tokens=length))


def batch() -> Iterator[Case]:
    """Larger batches, for the share of the card's rate."""
    for rows in (4, 8, 16):
        for name in ("frozen", "mosld"):
            yield Case(name, "graphs", rows=rows, tokens=1024)


def checkpointing() -> Iterator[Case]:
    for name in ("peft-lora", "mosld", "frozen"):
        yield from _both(Case(name, checkpointing=True))


def _anchors() -> Iterator[Case]:
    yield Case("peft-lora")
    yield Case("frozen", "regions")
    yield Case("peft-lora", "regions")
    yield from _both(Case("mosld"))


GRIDS = ("core", "whole", "methods", "rivals", "experts", "rank", "sequence", "batch", "checkpointing")


def cases(grid: str, rows: int, tokens: int) -> list[Case]:
    """The cases of a grid for batches of ``rows`` x ``tokens`` where it does not say otherwise."""
    found = sequence(rows * tokens) if grid == "sequence" else globals()[grid]()
    return [replace(case, rows=case.rows or rows, tokens=case.tokens or tokens) for case in found]
