"""Cross-entropy of many positions without all their logits at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

WHOLE = 2**26  # logits at once: 256 MiB of them in float32


def in_chunks(states: Tensor, targets: Tensor, head: nn.Linear, logits: int = WHOLE) -> Tensor:
    """The loss of each position, (N,) in float32 or wider: ``states`` (N, width) through ``head`` to ``targets`` (N,).

    About ``logits`` of them exist at a time, in the forward and in the backward pass. A frozen head is asked once: the
    gradient of each position's loss is kept, which is as wide as its state.
    """
    rows = max(1, logits // head.out_features)
    bare = type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks
    if bare and not head.weight.requires_grad and (head.bias is None or not head.bias.requires_grad):
        return _FrozenHead.apply(states, head.weight, head.bias, targets, rows)
    parts = zip(states.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(_losses, head, *part, use_reentrant=False) for part in parts])


def _losses(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(_wide(head(states)), targets, reduction="none")


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class _FrozenHead(torch.autograd.Function):
    """The loss of a position depends on its own state alone, so its gradient is known up to one factor already in the
    forward pass: ``(softmax - one-hot) W``."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rows: int,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        losses, gradients = [], []
        for part, target in zip(states.split(rows), targets.split(rows), strict=True):
            logits = _wide(functional.linear(part, weight, bias))
            total, target = logits.logsumexp(-1, keepdim=True), target.unsqueeze(1)
            losses.append((total - logits.gather(1, target)).squeeze(1))
            if wanted:
                share = logits.sub_(total).exp_()
                share.scatter_add_(1, target, share.new_full(target.shape, -1.0))
                gradients.append((share.to(weight.dtype) @ weight).to(states.dtype))
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (unit,) = ctx.saved_tensors
        return (gradient.unsqueeze(1) * unit).to(unit.dtype), None, None, None, None
