"""What the layer asks of a word's tensors.

A module keeps its parameters and buffers directly on itself (PEFT saves one level below the adapter's name), and all
of them under names that do not repeat the adapter's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from ..tape import Addressing, Routing, Slot


class DownModule(nn.Module):
    def enter(self, x: Tensor) -> Tensor:
        """What the down product sees of the projection's input; the router always sees all of it."""
        return x

    def matrix(self) -> Tensor:
        """(rows, inputs): the rows of the joint product with the router."""
        raise NotImplementedError

    def hidden(self, product: Tensor, addressing: Addressing) -> Tensor:
        """The product (..., rows) as (..., experts, rank), or (..., 1, rank) where all experts share it."""
        raise NotImplementedError

    def experts(self) -> Tensor:
        """(experts or 1, rank, inputs): the down matrix of each expert, for merging."""
        raise NotImplementedError


class GateModule(nn.Module):
    def matrix(self) -> Tensor | None:
        """(experts, inputs): router rows of the joint product, or None for gates that do not look at the input."""
        return None

    def forward(self, logits: Tensor | None, addressing: Addressing, slot: Slot) -> Routing:
        """Routing over (batch, tokens, experts) or (batch, 1, experts); ``logits`` is the router's product."""
        raise NotImplementedError


class UpModule(nn.Module):
    def matrix(self) -> Tensor:
        """(outputs, columns): what the folded hidden state is multiplied with."""
        raise NotImplementedError

    def fold(self, hidden: Tensor, weights: Tensor | None, scaling: float) -> Tensor:
        """Scale ``hidden`` (..., experts or 1, rank) by the gates and lay it out as (..., columns)."""
        raise NotImplementedError

    def experts(self) -> Tensor:
        """(experts or 1, outputs, rank): the up matrix of each expert, for merging."""
        raise NotImplementedError
