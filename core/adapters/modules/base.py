"""What the layer asks of a word's tensors.

A module keeps its parameters and buffers directly on itself (PEFT saves one level below the adapter's name), and all
of them under names that do not repeat the adapter's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from ..tape import Addressing, Routing, Slot


def wide(tensor: Tensor) -> Tensor:
    """In float32, or wider where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class WordModule(nn.Module):
    def hold(self, name: str, tensor: Tensor, trained: bool) -> None:
        """Keep a tensor under ``name``: a parameter, or a buffer, which is saved but which nothing trains."""
        if trained:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)


class DownModule(WordModule):
    input_dropout = 0.0

    @property
    def drops(self) -> bool:
        """Whether the down product of this pass sees its input with dropout."""
        return self.training and self.input_dropout > 0

    def enter(self, x: Tensor) -> Tensor:
        """What the down product sees of the projection's input; the router always sees all of it."""
        return functional.dropout(x, self.input_dropout, True) if self.drops else x

    def matrix(self) -> Tensor | None:
        """(rows, inputs): the rows of the joint product with the router; None: the product is the input itself."""
        raise NotImplementedError

    def hidden(self, product: Tensor, addressing: Addressing) -> Tensor:
        """The product (..., rows) as (..., experts, rank), or (..., 1, rank) where all experts share it."""
        raise NotImplementedError

    def experts(self, task: int | None = None) -> Tensor:
        """(experts or 1, rank, inputs): the down matrix of each expert (on a task), for merging."""
        raise NotImplementedError


class GateModule(nn.Module):
    detached = False  # whether the router's product passes no gradient to the projection's input

    def matrix(self) -> Tensor | None:
        """(experts, inputs): router rows of the joint product, or None for gates that do not look at the input."""
        return None

    def of_task(self, task: int) -> Tensor | None:
        """Weights (experts,) on a task, where it alone decides; else None."""
        return None

    def forward(self, logits: Tensor | None, addressing: Addressing, slot: Slot, down: Tensor | None) -> Routing:
        """Routing over (batch, tokens, experts) or (batch, 1, experts).

        ``logits`` is the router's product with the input, ``down`` what ``DownModule.matrix`` gave for this pass.
        """
        raise NotImplementedError


class UpModule(WordModule):
    weight: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The type that the adapter computes in."""
        return self.weight.dtype

    def matrix(self) -> Tensor:
        """(outputs, columns): what the folded hidden state is multiplied with."""
        raise NotImplementedError

    def fold(self, hidden: Tensor, weights: Tensor | None, scaling: float) -> Tensor:
        """Scale ``hidden`` (..., experts or 1, rank) by the gates and lay it out as (..., columns).

        ``weights`` is what ``Routing.mixing`` says: (..., experts), or (..., groups, experts) where several decisions
        stand beside each other; None: every expert counts one.
        """
        raise NotImplementedError

    def losses(self, hidden: Tensor, routing: Routing, addressing: Addressing) -> dict[str, Tensor]:
        """Auxiliary losses of one training pass that need what the experts give, by name, weighted."""
        return {}

    def experts(self) -> Tensor:
        """(experts or 1, outputs, rank): the up matrix of each expert, for merging."""
        raise NotImplementedError
