"""The gates of many adapters at once, for rows that each have one: gathers in place of a pass through each adapter.

Only for words that multiply a hidden state by one weight for each expert, side by side; others fold by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .modules.base import DownModule, GateModule, UpModule
from .modules.contrastive import ContrastiveUpModule
from .modules.down import SharedDownModule, UniqueDownModule
from .modules.gate import SequenceGateModule, TaskGateModule, TokenGateModule
from .modules.up import UniqueUpModule
from .tape import Addressing, Slot


@dataclass(frozen=True)
class Piece:
    """Where one adapter stands in the joint products: ``first`` row of its down matrix, ``second`` column of its up.

    ``selected`` experts of its token gate are kept; 0: its weights are the same for every token.
    """

    rows: tuple[int, int]
    first: int
    second: int
    experts: int
    rank: int
    shared: bool
    selected: int
    renormalise: bool

    @property
    def router(self) -> int:
        return self.first + self.rank * (1 if self.shared else self.experts)


def piece(
    down: DownModule, gate: GateModule | None, up: UpModule, slot: Slot | None, rows: slice, first: int, second: int
) -> Piece | None:
    """None for words that fold in another way."""
    fits = type(down) in (SharedDownModule, UniqueDownModule) and type(up) in (UniqueUpModule, ContrastiveUpModule)
    decided = type(gate) is TaskGateModule or (type(gate) is SequenceGateModule and slot.decision is not None)
    if (
        not fits
        or up.dtype not in (torch.float32, torch.float64)
        or not (gate is None or decided or type(gate) is TokenGateModule)
    ):
        return None
    token = type(gate) is TokenGateModule
    experts, _, rank = up.weight.shape
    return Piece(
        (rows.start, rows.stop), first, second, experts, rank, type(down) is SharedDownModule,
        min(gate.selected, experts) if token else 0, token and gate.renormalise,
    )  # fmt: skip


def steady_weights(gate: GateModule | None, addressing: Addressing, slot: Slot | None) -> Tensor | float:
    """(rows, experts) of a piece without a token gate."""
    if gate is None:
        return 1.0
    return (slot.decision if slot.decision is not None else gate(None, addressing, slot, None)).mixing.squeeze(1)


class Layout:
    """Which entries of the first product make which column of what the second one multiplies, (rows, ``width``)."""

    def __init__(self, pieces: Sequence[Piece], rows: int, width: int, like: Tensor) -> None:
        self.experts = max(piece.experts for piece in pieces)
        self.routed = any(piece.selected for piece in pieces)
        hidden = [[0] * width for _ in range(rows)]
        weight = [[self.experts] * width for _ in range(rows)]  # that column of the weights is zero
        logits = [[0] * self.experts for _ in range(rows)]
        absent = [[0.0] * self.experts for _ in range(rows)]
        steady, selected, renormalise = [True] * rows, [self.experts] * rows, [False] * rows
        for piece in pieces:
            for row in range(*piece.rows):
                for column in range(piece.experts * piece.rank):
                    source = column % piece.rank if piece.shared else column
                    hidden[row][piece.second + column] = piece.first + source
                    weight[row][piece.second + column] = column // piece.rank
                if piece.selected:
                    steady[row], selected[row], renormalise[row] = False, piece.selected, piece.renormalise
                    logits[row][: piece.experts] = range(piece.router, piece.router + piece.experts)
                    absent[row][piece.experts :] = [-torch.inf] * (self.experts - piece.experts)
        device = like.device
        self.hidden, self.weight = torch.tensor(hidden, device=device), torch.tensor(weight, device=device)
        self.logits, self.steady = torch.tensor(logits, device=device), torch.tensor(steady, device=device).view(-1, 1)
        ragged = any(map(any, absent))
        self.absent = torch.tensor(absent, device=device, dtype=like.dtype) if ragged else None
        token = [count for count, fixed in zip(selected, steady, strict=True) if not fixed]
        self.most = max(token, default=self.experts)
        # All rows cut alike need no mask, and none at all where no row is cut.
        self.cut = any(piece.selected and (piece.selected < piece.experts) for piece in pieces)
        kept = [[1.0 if place < count else 0.0 for place in range(self.most)] for count in selected]
        self.kept = torch.tensor(kept, device=device, dtype=like.dtype) if len(set(token)) > 1 else None
        self.summed = None
        if not all(same or fixed for same, fixed in zip(renormalise, steady, strict=True)):
            self.summed = torch.tensor(renormalise, device=device).view(-1, 1)

    def folded(self, product: Tensor, steady: Tensor | None) -> Tensor:
        """``product`` (rows, entries); ``steady`` (rows, experts + 1) are weights of rows without a token gate."""
        weights = self._routes(product) if self.routed else steady
        if self.routed and steady is not None:
            weights = torch.where(self.steady, steady, weights)
        return product.gather(1, self.hidden) * weights.gather(1, self.weight)

    def _routes(self, product: Tensor) -> Tensor:
        """The same as ``modules.gate.route`` gives each row by itself, and a column of zeros."""
        logits = product.gather(1, self.logits)
        probs = (logits if self.absent is None else logits + self.absent).softmax(-1)
        if not self.cut:
            return functional.pad(probs, (0, 1))
        values, places = probs.topk(self.most, -1)
        if self.kept is not None:
            values = values * self.kept
        total = values.sum(-1, keepdim=True)
        values = values / (total if self.summed is None else total.where(self.summed, torch.ones_like(total)))
        return values.new_zeros(len(values), self.experts + 1).scatter_(1, places, values)
