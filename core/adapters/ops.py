"""The products of an adapted projection: each input is read, and each sum is written, once.

``y = x W^T + b + f U^T`` with ``h = x J^T``, where ``J`` is the down matrix and the router, one below the other, and
``f`` is what the words make of ``h``. Written plainly, autograd computes two gradients for ``x`` and adds them, and the
two terms of ``y`` likewise. Here the second product of each pair accumulates into the result of the first.

``open_products`` gives ``h`` and a ticket: a tensor of the shape of ``x W^T`` that holds nothing. ``close_products``
turns the ticket, ``x`` and ``f`` into ``y``; the gradient of ``y`` goes to the ticket, and ``open_products`` has both
parts of the gradient of ``x`` in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("tessera", "DEF")
_LIBRARY.define("two_products(Tensor a, Tensor b, Tensor c, Tensor d, Tensor? bias=None) -> Tensor")


def _two_products(a: Tensor, b: Tensor, c: Tensor, d: Tensor, bias: Tensor | None = None) -> Tensor:
    first = torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)
    return first.addmm_(c, d)


@torch.library.register_fake("tessera::two_products")
def _(a: Tensor, b: Tensor, c: Tensor, d: Tensor, bias: Tensor | None = None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


for _backend in ("CPU", "CUDA"):
    _LIBRARY.impl("two_products", _two_products, _backend)


def two_products(a: Tensor, b: Tensor, c: Tensor, d: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b + c @ d + bias`` of matrices; the second product accumulates in place.

    One operator for compiled code, which would otherwise copy the first product before it adds the second.
    """
    if torch.compiler.is_compiling():
        return torch.ops.tessera.two_products(a, b, c, d, bias)
    return _two_products(a, b, c, d, bias)


def open_products(x: Tensor, weight: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The ticket (..., outputs) and ``x`` (..., inputs) times every row of ``parts``: (..., rows).

    ``weight`` (outputs, inputs) is frozen. The parts, each (rows, inputs), may be of a wider type than ``x``.
    """
    return _Open.apply(x, weight, *parts)


def close_products(
    ticket: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, folded: Tensor, up: Tensor
) -> Tensor:
    """``x W^T + b + folded up^T`` (..., outputs); ``folded`` (..., columns), ``up`` (outputs, columns)."""
    return _Close.apply(ticket, x.detach(), weight, bias, folded.to(x.dtype), up)


class _Open(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *parts: Tensor) -> tuple[Tensor, Tensor]:
        joint = torch.cat([part.to(x.dtype) for part in parts]) if len(parts) > 1 else parts[0].to(x.dtype)
        ctx.save_for_backward(x, weight, joint)
        ctx.sizes = [part.shape[0] for part in parts]
        ticket = x.new_zeros(()).expand(*x.shape[:-1], weight.shape[0])
        return ticket, (x.flatten(0, -2) @ joint.t()).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, outer: Tensor, inner: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, joint = ctx.saved_tensors
        outer, inner = outer.flatten(0, -2), inner.flatten(0, -2)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = two_products(outer, weight, inner, joint).view(x.shape)
        to_parts: Sequence[Tensor | None] = [None] * len(ctx.sizes)
        if any(ctx.needs_input_grad[2:]):
            to_parts = (inner.t() @ x.flatten(0, -2)).split(ctx.sizes)
        return to_x, None, *to_parts


class _Close(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ticket: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, folded: Tensor, up: Tensor
    ) -> Tensor:
        up = up.to(x.dtype)
        ctx.save_for_backward(folded, up)
        flat = two_products(x.flatten(0, -2), weight.t(), folded.flatten(0, -2), up.t(), bias)
        return flat.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        folded, up = ctx.saved_tensors
        flat = outer.flatten(0, -2)
        to_folded = (flat @ up).view(folded.shape) if ctx.needs_input_grad[4] else None
        to_up = flat.t() @ folded.flatten(0, -2) if ctx.needs_input_grad[5] else None
        return outer, None, None, None, to_folded, to_up
