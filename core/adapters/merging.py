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
    if name not in layer.slots:
        return None
    weights, site = layer.tessera_gate[name].of_task(task), layer.sites[name]
    if weights is None:
        if site.experts == 1 and site.gate.sums_to_one:
            return None
        raise ConfigurationError(
            f"The gate {site.gate.word} of {path} looks at more than the task, so no single weight equals it on one.",
            "Keep it as an adapter.",
        )
    return weights


def merge_mean_gates(model: PeftModel, snapshot: RoutingSnapshot, name: str = "default") -> nn.Module:
    """The base with an adapter merged in at the mean gates of a snapshot: over its tasks and roles, by their counts.

    This is an approximation: compare its loss with the adapter's before using it. The model given is used up.
    """
    recorded: dict[str, list[int]] = {}
    for index, site in enumerate(snapshot.sites):
        recorded.setdefault(site.name, []).append(index)
    with torch.no_grad():
        for path, layer in mixture_layers(model):
            if name not in layer.scaling:
                continue
            weights = None
            if name in layer.slots:
                site = layer.sites[name]
                if site.gate.pairs_factors:
                    raise ConfigurationError(
                        f"The gate {site.gate.word} of {path} pairs factors anew each time, so its mean weighs none.",
                        "Keep it as an adapter.",
                    )
                path = site.leader if site.gate.scope == "block" else path
                if path not in recorded:
                    raise ConfigurationError(
                        f"The snapshot holds no gates for {path}.", "Record it with this very adapter."
                    )
                means = [_mean_gate(snapshot, index) for index in recorded[path]]
                weights = torch.from_numpy(np.stack(means))
            layer.add_to_base(layer.delta_weight(name, weights), check=True)
    return model.unload()


def _mean_gate(snapshot: RoutingSnapshot, site: int) -> np.ndarray:
    experts = snapshot.sites[site].experts
    gates = snapshot.mean_gate[:, :, site, :experts].reshape(-1, experts)
    count = snapshot.count[:, :, site].reshape(-1)
    if not count.sum():
        raise ConfigurationError(
            f"The snapshot counted nothing at {snapshot.sites[site].name}.", "Record some batches first."
        )
    return (np.nan_to_num(gates) * count[:, None]).sum(0) / count.sum()
