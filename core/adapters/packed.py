"""Samples laid end to end in a few rows: the base sees the pack, words that decide by sample see a sample a row."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import ConfigurationError
from .tape import PROMPT, Addressing


@dataclass
class Pack:
    """The same tokens in two layouts, and the way between them.

    ``place`` (samples, longest): where each token of a sample lies among the pack's places, row after row; the number
    of these places where a shorter sample has no token. ``back`` (rows, length): the reverse. ``samples`` addresses
    the layout of a sample a row.
    """

    place: Tensor
    back: Tensor
    samples: Addressing | None = None

    def apart(self, tensor: Tensor) -> Tensor:
        """(rows, length, ...) to (samples, longest, ...), with zeros where a sample has no token."""
        if tensor.shape[:2] != self.back.shape:
            raise ConfigurationError(
                f"A projection sees {tuple(tensor.shape[:-1])} of a pack of {tuple(self.back.shape)} tokens, so its "
                "samples cannot be told apart.",
                "Leave this projection out, or train without packing.",
            )
        return _Gather.apply(tensor, self.place, self.back)

    def together(self, tensor: Tensor) -> Tensor:
        """(samples, longest, ...) to (rows, length, ...), with zeros where the pack has no token."""
        return _Gather.apply(tensor, self.back, self.place)

    @property
    def positions(self) -> Tensor:
        """(rows, length): each token's place in its sample."""
        return self.back % self.place.shape[1]

    def mask(self, dtype: torch.dtype) -> Tensor:
        """(rows, 1, length, length), to be added to attention scores: a token sees its own sample up to itself.

        Padding makes one more sample, so that no token sees nothing.
        """
        owner = self.back // self.place.shape[1]
        seen = (owner.unsqueeze(2) == owner.unsqueeze(1)).tril()
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)

    def address(self, task_index: Tensor | None, token_role: Tensor | None, side: dict[str, Tensor]) -> Addressing:
        """The addressing of the pack from what is said of its samples; ``token_role`` (samples, longest)."""
        if token_role is None:
            token_role = (self.place < self.back.numel()).to(torch.int8) * PROMPT
        tasks = None if task_index is None else self.together(task_index.unsqueeze(1).expand(self.place.shape))
        samples = Addressing(task_index, token_role, side, shape=tuple(self.place.shape))
        shape = tuple(self.back.shape)
        return Addressing(tasks, self.together(token_role), side, shape=shape, pack=replace(self, samples=samples))


class _Gather(torch.autograd.Function):
    """Rows of ``tensor`` (its first two axes as one) by ``index``, zeros where it points past them.

    ``inverse`` is the index that leads back, so the backward pass is a gather too, not a sum over indices.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return _gathered(tensor, index)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return _gathered(gradient, inverse), None, None


def _gathered(tensor: Tensor, index: Tensor) -> Tensor:
    flat = tensor.flatten(0, 1)
    padded = torch.cat((flat, flat.new_zeros(1, *flat.shape[1:])))
    return padded.index_select(0, index.flatten()).unflatten(0, index.shape)
