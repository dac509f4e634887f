"""One adapted linear layer by itself, in float64, for identities that hold to the last digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.adapters.cells import Linear, Site, plan
from core.adapters.layer import MixtureLayer
from core.adapters.methods import resolve
from core.adapters.modules.base import DownModule, GateModule, UpModule
from core.adapters.tape import Addressing, RoutingTape
from core.schema import MethodSpec


def site_of(name: str, inputs: int, outputs: int, tasks: int = 0, **options) -> Site:
    """What a preset plans for a projection of these widths."""
    cells = resolve(MethodSpec(name=name, options={"modules": "all-linear", **options}))
    return plan(cells, [Linear("layer.0.proj", inputs, outputs)], tasks)[0]


def one_layer(
    name: str, inputs: int = 16, outputs: int = 24, *, tasks: int = 0, seed: int = 0, dtype=torch.float64, **options
) -> MixtureLayer:
    """A preset on one projection with a bias, drawn from ``seed``."""
    return layer_of(site_of(name, inputs, outputs, tasks, **options), seed, dtype)


def layer_of(site: Site, seed: int = 0, dtype=torch.float64) -> MixtureLayer:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(seed)
        built = MixtureLayer(nn.Linear(site.in_features, site.out_features), RoutingTape())
        built._active_adapter = "default"
        built.base_layer.requires_grad_(False)
        built.update_layer("default", site)
    finally:
        torch.set_default_dtype(before)
    return built


def parts(built: MixtureLayer) -> tuple[DownModule, GateModule, UpModule]:
    gate = dict(built.tessera_gate.items()).get("default")
    return built.tessera_down["default"], gate, built.tessera_up["default"]


def warm(built: MixtureLayer, seed: int = 1) -> MixtureLayer:
    """Up matrices away from zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = parts(built)[2].weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return built


def tokens(*shape: int, seed: int = 2, dtype=torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def on_tasks(built: MixtureLayer, *tasks: int) -> MixtureLayer:
    """The next pass holds one sample of each of these tasks."""
    built.tape.addressing = Addressing(task_index=torch.tensor(tasks))
    return built


def update(built: MixtureLayer, x: Tensor) -> Tensor:
    """What the adapter adds to the base."""
    return built(x) - built.base_layer(x)


def counted(built: MixtureLayer) -> int:
    return sum(parameter.numel() for parameter in built.parameters() if parameter.requires_grad)
