"""Projections of a block that read one tensor: their down matrices and routers are one product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from .ops import open_products

if TYPE_CHECKING:
    from .layer import MixtureLayer

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # called in this order, on the same tensor


def siblings_of(path: str) -> tuple[str, int] | None:
    """What a projection's siblings have in common: their parent, and the number of their names; None: it has none."""
    parent, _, name = path.rpartition(".")
    return next(((parent, number) for number, names in enumerate(TOGETHER) if name in names), None)


class Opened(NamedTuple):
    """Of one projection: the product with its down matrix, the router's logits, the down matrix, and the ticket."""

    product: Tensor
    logits: Tensor | None
    down: Tensor
    ticket: Tensor


class Siblings:
    """The first one that is called opens the products of all; the others find theirs, if they read the same tensor."""

    def __init__(self) -> None:
        self.layers: list[MixtureLayer] = []
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": self.layers, "_read": None, "_opened": []}

    def add(self, layer: MixtureLayer) -> int:
        self.layers.append(layer)
        return len(self.layers) - 1

    def open(self, place: int, adapter: str, read: Tensor, x: Tensor) -> Opened:
        """For the layer at ``place``. ``read`` is what it was called with, ``x`` the same in the layout and type of the
        products."""
        if self._read is not read or self._opened[place] is None:
            self._open(place, adapter, read, x)
        mine, self._opened[place] = self._opened[place], None
        if not any(one is not None for one in self._opened):
            self._forget()
        return mine

    def _forget(self) -> None:
        self._read: Tensor | None = None
        self._opened: list[Opened | None] = []

    def _open(self, place: int, adapter: str, read: Tensor, x: Tensor) -> None:
        ready = [i for i, one in enumerate(self.layers) if i == place or one.joins(adapter, read)]
        matrices = [self.layers[i].matrices(adapter) for i in ready]
        parts = [part for both in matrices for part in both if part is not None]
        joint, tickets = open_products(x, [self.layers[i].base_layer.weight for i in ready], parts)
        products = list(joint.split([part.shape[0] for part in parts], -1))
        self._read, self._opened = read, [None for _ in self.layers]
        for i, (down, router), ticket in zip(ready, matrices, tickets, strict=True):
            product = products.pop(0)
            self._opened[i] = Opened(product, None if router is None else products.pop(0), down, ticket)
