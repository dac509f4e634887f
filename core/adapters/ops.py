"""The products of adapted projections: each input is read, and each sum is written, once.

``y = x W^T + b + f U^T`` with ``h = x J^T``, where ``J`` is the down matrix and the router, one below the other, and
``f`` is what the words make of ``h``. Written plainly, autograd computes two gradients for ``x`` and adds them, and the
two terms of ``y`` likewise; projections that read the same ``x`` make that twice as many for each of them. Here every
further product of a sum accumulates into the result of the first.

``open_products`` gives ``h``, of all projections that read ``x``, and a ticket for each: a tensor of the shape of
``x W^T`` that holds nothing. ``close_products`` turns a ticket, ``x`` and ``f`` into ``y``; the gradient of ``y`` goes
to the ticket, so that ``open_products`` has all parts of the gradient of ``x`` in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("tessera", "DEF")
_LIBRARY.define("sum_of_products(Tensor[] left, Tensor[] right, Tensor? bias=None) -> Tensor")


def _sum_of_products(left: Sequence[Tensor], right: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    total = torch.mm(left[0], right[0]) if bias is None else torch.addmm(bias, left[0], right[0])
    for one, other in zip(left[1:], right[1:], strict=True):
        total.addmm_(one, other)
    return total


@torch.library.register_fake("tessera::sum_of_products")
def _(left: Sequence[Tensor], right: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    return left[0].new_empty(left[0].shape[0], right[0].shape[1])


for _backend in ("CPU", "CUDA"):
    _LIBRARY.impl("sum_of_products", _sum_of_products, _backend)


def sum_of_products(left: Sequence[Tensor], right: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """``left[0] @ right[0] + left[1] @ right[1] + ... + bias`` of matrices; all but the first accumulate in place.

    One operator for compiled code, which would otherwise copy each result before it adds the next product.
    """
    if torch.compiler.is_compiling():
        return torch.ops.tessera.sum_of_products(left, right, bias)
    return _sum_of_products(left, right, bias)


def open_products(x: Tensor, weights: Sequence[Tensor], parts: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """``x`` (..., inputs) times every row of ``parts``, (..., rows), and a ticket (..., outputs) for each weight.

    ``weights``, each (outputs, inputs), are frozen. The parts, each (rows, inputs), may be of a wider type than ``x``.
    """
    joint, *tickets = _Open.apply(x, len(weights), *weights, *parts)
    return joint, tickets


def close_products(
    ticket: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, folded: Tensor, up: Tensor
) -> Tensor:
    """``x W^T + b + folded up^T`` (..., outputs); ``folded`` (..., columns), ``up`` (outputs, columns)."""
    return _Close.apply(ticket, x.detach(), weight, bias, folded.to(x.dtype), up)


class _Open(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, *given: Tensor) -> tuple[Tensor, ...]:
        weights, parts = given[:count], given[count:]
        joint = torch.cat([part.to(x.dtype) for part in parts]) if len(parts) > 1 else parts[0].to(x.dtype)
        ctx.save_for_backward(x, joint, *weights)
        ctx.sizes = [part.shape[0] for part in parts]
        ctx.set_materialize_grads(False)
        empty = x.new_zeros(())
        tickets = [empty.expand(*x.shape[:-1], weight.shape[0]) for weight in weights]
        return (x.flatten(0, -2) @ joint.t()).unflatten(0, x.shape[:-1]), *tickets

    @staticmethod
    def backward(ctx: Any, inner: Tensor | None, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        x, joint, *weights = ctx.saved_tensors
        pairs = [*zip(outer, weights, strict=True), (inner, joint)]
        pairs = [(gradient.flatten(0, -2), matrix) for gradient, matrix in pairs if gradient is not None]
        to_x = None
        if ctx.needs_input_grad[0] and pairs:
            to_x = sum_of_products([gradient for gradient, _ in pairs], [matrix for _, matrix in pairs]).view(x.shape)
        to_parts: Sequence[Tensor | None] = [None] * len(ctx.sizes)
        if inner is not None and any(ctx.needs_input_grad[2 + len(weights) :]):
            to_parts = (inner.flatten(0, -2).t() @ x.flatten(0, -2)).split(ctx.sizes)
        return to_x, None, *([None] * len(weights)), *to_parts


class _Close(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ticket: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, folded: Tensor, up: Tensor
    ) -> Tensor:
        up = up.to(x.dtype)
        ctx.save_for_backward(folded, up)
        flat = sum_of_products([x.flatten(0, -2), folded.flatten(0, -2)], [weight.t(), up.t()], bias)
        return flat.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        folded, up = ctx.saved_tensors
        flat = outer.flatten(0, -2)
        to_folded = (flat @ up).view(folded.shape) if ctx.needs_input_grad[4] else None
        to_up = flat.t() @ folded.flatten(0, -2) if ctx.needs_input_grad[5] else None
        return outer, None, None, None, to_folded, to_up
