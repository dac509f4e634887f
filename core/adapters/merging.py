"""Folding an adapter into the weights of its base.

An adapter that always does the same (one expert, or experts that are only added up) merges exactly through PEFT's own
``merge_and_unload``, and one that looks at nothing but the task merges exactly for one task. Gates that decide per
token or sample do not; fixed at their recorded means they give the nearest constant update, whose loss is to be
measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import ConfigurationError
from .attach import mixture_layers

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn

    from ..routing.snapshot import RoutingSnapshot
    from .layer import MixtureLayer


def merge_task(model: PeftModel, task: str, name: str = "default") -> nn.Module:
    """The base with an adapter merged in as it is on one of its tasks, exactly. The model given is used up.

    Raises:
        ConfigurationError: the adapter does not know the task, or a gate of it looks at more than the task.
    """
    layers = [(path, layer) for path, layer in mixture_layers(model) if name in layer.scaling]
    known = list(model.peft_config[name].tasks) if name in model.peft_config else []
    if task not in known:
        names = ", ".join(known) or "none"
        raise ConfigurationError(f"{name} was not trained on a task {task!r}.", f"It knows {names}.")
    number = known.index(task)
    with torch.no_grad():
        gates = [_gate_of(layer, name, path, number) for path, layer in layers]  # all of them, before a weight changes
        for (_, layer), gate in zip(layers, gates, strict=True):
            layer.add_to_base(layer.delta_weight(name, gate, number), check=True)
    return model.unload()


def _gate_of(layer: MixtureLayer, name: str, path: str, task: int) -> Tensor | None:
    """The weights of a layer's experts on a task; None where they are only added up."""
    weights = task_gate(layer, name, task)
    if weights is None and not always_all(layer, name):
        raise ConfigurationError(
            f"The gate {layer.sites[name].gate.word} of {path} looks at more than the task, so no single weight equals "
            "it on one.",
            "Keep it as an adapter.",
        )
    return weights


def task_gate(layer: MixtureLayer, name: str, task: int) -> Tensor | None:
    """The weights (experts,) of a layer's experts on a task; None where its gate looks at more than the task."""
    return layer.tessera_gate[name].of_task(task) if name in layer.slots else None


def always_all(layer: MixtureLayer, name: str) -> bool:
    """Whether a layer's experts are only added up, whatever it sees."""
    site = layer.sites[name]
    return name not in layer.slots or (site.experts == 1 and site.gate.sums_to_one)


def mean_gates(
    layer: MixtureLayer, name: str, path: str, snapshot: RoutingSnapshot, task: str | None = None
) -> Tensor | None:
    """The mean gates of a layer, (parts, experts), over the snapshot's roles and its tasks, or ``task`` alone.

    Weighed by their counts; None for a layer without a gate.

    Raises:
        ConfigurationError: the snapshot knows nothing of this gate, or its mean says nothing.
    """
    if name not in layer.slots:
        return None
    site = layer.sites[name]
    if site.gate.pairs_factors:
        raise ConfigurationError(
            f"The gate {site.gate.word} of {path} pairs factors anew each time, so its mean weighs none.",
            "Keep it as an adapter.",
        )
    path = site.leader if site.gate.scope == "block" else path
    places = [index for index, recorded in enumerate(snapshot.sites) if recorded.name == path]
    if not places:
        raise ConfigurationError(f"The snapshot holds no gates for {path}.", "Record it with this very adapter.")
    tasks = [snapshot.tasks.index(task)] if task in snapshot.tasks else slice(None)
    return torch.from_numpy(np.stack([_mean_gate(snapshot, index, tasks) for index in places]))


def merge_mean_gates(model: PeftModel, snapshot: RoutingSnapshot, name: str = "default") -> nn.Module:
    """The base with an adapter merged in at the mean gates of a snapshot: over its tasks and roles, by their counts.

    This is an approximation: compare its loss with the adapter's before using it. The model given is used up.
    """
    layers = [(path, layer) for path, layer in mixture_layers(model) if name in layer.scaling]
    with torch.no_grad():
        weights = [mean_gates(layer, name, path, snapshot) for path, layer in layers]
        for (_, layer), gate in zip(layers, weights, strict=True):
            layer.add_to_base(layer.delta_weight(name, gate), check=True)
    return model.unload()


def _mean_gate(snapshot: RoutingSnapshot, site: int, tasks: list[int] | slice) -> np.ndarray:
    experts = snapshot.sites[site].experts
    gates = snapshot.mean_gate[:, tasks, site, :experts].reshape(-1, experts)
    count = snapshot.count[:, tasks, site].reshape(-1)
    if not count.sum():
        raise ConfigurationError(
            f"The snapshot counted nothing at {snapshot.sites[site].name}.", "Record some batches first."
        )
    return (np.nan_to_num(gates) * count[:, None]).sum(0) / count.sum()
