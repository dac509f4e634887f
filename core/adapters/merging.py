"""Folding an adapter into the weights of its base.

An adapter that always does the same (one expert, or experts that are only added up) merges exactly through PEFT's own
``merge_and_unload``. Gates that decide per token or sample do not; fixed at their recorded means they give the nearest
constant update, whose loss is to be measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import ConfigurationError
from .attach import mixture_layers

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn

    from ..routing.snapshot import RoutingSnapshot


def merge_mean_gates(model: PeftModel, snapshot: RoutingSnapshot, name: str = "default") -> nn.Module:
    """The base with an adapter merged in at the mean gates of a snapshot: over its tasks and roles, by their counts.

    This is an approximation: compare its loss with the adapter's before using it. The model given is used up.
    """
    recorded = {site.name: index for index, site in enumerate(snapshot.sites)}
    with torch.no_grad():
        for path, layer in mixture_layers(model):
            if name not in layer.scaling:
                continue
            weights = None
            if name in layer.slots:
                if path not in recorded:
                    raise ConfigurationError(
                        f"The snapshot holds no gates for {path}.", "Record it with this very adapter."
                    )
                weights = torch.from_numpy(_mean_gate(snapshot, recorded[path]))
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
