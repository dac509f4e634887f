"""The frozen base with updates that can be exchanged between passes, and through which gradients flow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from core.fusion.delta import Delta, Deltas


class Updated(nn.Module):
    """A projection of the base and the update that is added to it; None: none."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.delta: Delta | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.delta is not None and self._adds_up(self.delta):
            return functional.linear(x, self.base.weight + self.delta.up, self.base.bias)
        result = self.base(x)
        return result if self.delta is None else result + self.delta(x).to(result.dtype)

    def _adds_up(self, delta: Delta) -> bool:
        """Whether one product with the summed weights is as exact as two: not where weights are rounded more."""
        plain = type(self.base) is nn.Linear and type(delta) is Delta and delta.down is None  # others add more
        return plain and self.base.weight.dtype == delta.up.dtype == torch.float32


class UpdatedEmbedding(Updated):
    """As ``Updated``, for a table of tokens: the delta is (width, vocabulary)."""

    def forward(self, ids: Tensor) -> Tensor:
        result = self.base(ids)
        if self.delta is None:
            return result
        up, down = self.delta.up, self.delta.down
        found = functional.embedding(ids, (up if down is None else down).T)
        found = found if down is None else found @ up.T
        return result + (found * getattr(self.base, "embed_scale", 1.0)).to(result.dtype)


class Candidate:
    """A base in evaluation mode, frozen, whose chosen projections take updates.

    Setting ``deltas`` changes what the next pass computes and nothing of the base; tensors in them may require
    gradients. Where the output head is tied to the embedding, an update of the embedding is one of the head too.
    """

    def __init__(self, base: PreTrainedModel, paths: Sequence[str]) -> None:
        self.model = base.eval().requires_grad_(False)
        self.paths = list(paths)
        self._layers: dict[str, Updated] = {}
        modules = dict(base.named_modules())
        table, head = base.get_input_embeddings(), base.get_output_embeddings()
        for path in self.paths:
            module = modules[path]
            self._layers[path] = (UpdatedEmbedding if isinstance(module, nn.Embedding) else Updated)(module)
            parent, _, name = path.rpartition(".")
            setattr(modules[parent], name, self._layers[path])
        self._tied: Updated | None = None
        embedding = next((path for path in self.paths if modules[path] is table), None)
        if embedding is not None and head is not None and head.weight is table.weight:
            self._tied, self._table = Updated(head), embedding
            base.set_output_embeddings(self._tied)

    @property
    def embeddings(self) -> list[str]:
        """The paths that are tables of tokens."""
        return [path for path, layer in self._layers.items() if isinstance(layer, UpdatedEmbedding)]

    @property
    def deltas(self) -> dict[str, Delta]:
        return {path: layer.delta for path, layer in self._layers.items() if layer.delta is not None}

    @deltas.setter
    def deltas(self, deltas: Deltas) -> None:
        if unknown := deltas.keys() - self._layers.keys():
            raise KeyError(f"no place for {sorted(unknown)[0]}")
        for path, layer in self._layers.items():
            layer.delta = deltas.get(path)
        if self._tied is not None:
            delta = deltas.get(self._table)
            self._tied.delta = None if delta is None else transposed(delta)

    @contextmanager
    def using(self, deltas: Deltas) -> Iterator[PreTrainedModel]:
        """The model with these updates; those of before come back."""
        before, self.deltas = self.deltas, deltas
        try:
            yield self.model
        finally:
            self.deltas = before

    @property
    def device(self) -> torch.device:
        return self.model.device


def transposed(delta: Delta) -> Delta:
    return Delta(delta.up.T) if delta.down is None else Delta(delta.down.T, delta.up.T)
