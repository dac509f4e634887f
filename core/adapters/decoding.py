"""Answers that grow by a token at a time: rows with adapters of their own, in two products for each projection.

What does not change from token to token (matrices side by side, tasks, decisions about whole samples) is made once, and
the adapters of one projection are computed side by side where a CUDA graph records them. For inference alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .gathering import Layout, Piece, piece, steady_weights
from .layer import MixtureLayer
from .model import MixtureModel
from .modules.base import DownModule, GateModule, UpModule
from .tape import ANSWER, Addressing, Routing, Slot


class GrowingRows:
    """A batch of answers under a tuner. ``names`` gives each row its adapter; rows of one adapter stand together.

    ``decisions`` and ``priors`` (of the rows of their adapter) are what gates decided and were told of the prompts.
    """

    def __init__(
        self,
        tuner: MixtureModel,
        names: Sequence[str],
        task_index: Tensor,
        decisions: Mapping[Slot, Routing],
        priors: Mapping[Slot, Tensor],
    ) -> None:
        self.tuner, self.names, self.decisions, self.priors = tuner, list(names), dict(decisions), dict(priors)
        roles = torch.full((len(names), 1), ANSWER, dtype=torch.int8, device=task_index.device)
        whole = Addressing(task_index, roles, continued=True, shape=(len(names), 1))
        self.addressing = whole.split(names, task_index.device)
        self._spans = {name: slice(names.index(name), names.index(name) + names.count(name)) for name in set(names)}
        self._layers: dict[MixtureLayer, _Joined | None] = {}
        self._layouts: dict[Any, Layout] = {}  # projections of one shape share theirs

    def forward(self, **inputs: Any) -> Any:
        """The base's pass over one more token of each row, with its adapters."""
        tape = self.tuner.tape
        if tape.addressing is not self.addressing:  # another pass was made since
            self._begin(inputs["input_ids"])
        tape.decoder = self
        try:
            return self.tuner.model(**inputs)
        finally:
            tape.decoder = None

    def keep(self, places: Sequence[int]) -> GrowingRows:
        """The rows at these places of the batch, in its order."""
        chosen: dict[str, list[int]] = {}
        for place in places:
            name = self.names[place]
            chosen.setdefault(name, []).append(place - self._spans[name].start)
        device = self.addressing.task_index.device
        rows = {name: torch.tensor(numbers, device=device) for name, numbers in chosen.items()}
        return GrowingRows(
            self.tuner,
            [self.names[place] for place in places],
            self.addressing.task_index[torch.tensor(places, device=device)],
            {slot: _rows_of(kept, rows[slot.adapter]) for slot, kept in self.decisions.items() if slot.adapter in rows},
            {slot: prior[rows[slot.adapter]] for slot, prior in self.priors.items() if slot.adapter in rows},
        )

    def join(self, other: GrowingRows, names: Sequence[str], task_index: Tensor) -> GrowingRows:
        """Both batches' rows as ``names`` and ``task_index`` have them: of one adapter, this one's rows come first."""
        decisions, priors = self.decisions | other.decisions, self.priors | other.priors
        for slot in self.decisions.keys() & other.decisions.keys():
            decisions[slot] = _followed(self.decisions[slot], other.decisions[slot])
        for slot in self.priors.keys() & other.priors.keys():
            priors[slot] = torch.cat([self.priors[slot], other.priors[slot]])
        return GrowingRows(self.tuner, names, task_index, decisions, priors)

    def _begin(self, ids: Tensor) -> None:
        tape = self.tuner.tape
        numbers = {slot: number for number, slot in enumerate(tape.slots)}
        priors = {numbers[slot]: prior for slot, prior in self.priors.items()}
        self.tuner.prelude.prepare(self.tuner, ids, self.addressing, priors)
        tape.begin(self.addressing, {numbers[slot]: routing for slot, routing in self.decisions.items()})

    def __call__(self, layer: MixtureLayer, x: Tensor) -> Tensor:
        """What a layer gives for ``x``, the batch's next tokens."""
        if layer not in self._layers:
            self._layers[layer] = self._join(layer, x)
        joined = self._layers[layer]
        if joined is not None and x.dtype == joined.seen:
            return joined(layer, x)
        self.tuner.tape.decoder = None
        try:
            return layer.forward(x)
        finally:
            self.tuner.tape.decoder = self

    def _join(self, layer: MixtureLayer, x: Tensor) -> _Joined | None:
        """None where the layer's own way is the right one: other layers than linear ones, words that see more."""
        parts = []
        for name, addressing in self.addressing.parts.items():
            if name in layer.scaling:
                slot = layer.slots.get(name)
                gate = layer.tessera_gate[name] if slot is not None else None
                words = layer.tessera_down[name], gate, layer.tessera_up[name]
                parts.append(_Part(*words, layer.scaling[name], slot, addressing, self._spans[name]))
        rows = self.addressing.shape[0]
        if type(layer) is not MixtureLayer or not parts or len(x) != rows or not all(part.narrow(x) for part in parts):
            return None
        return _Joined(parts, rows, x, self._layouts) if len({part.up.dtype for part in parts}) == 1 else None


@dataclass
class _Part:
    """One adapter of a projection: its words, its rows of the batch, and its columns of the joint products."""

    down: DownModule
    gate: GateModule | None
    up: UpModule
    scaling: float
    slot: Slot | None
    addressing: Addressing
    rows: slice
    first: slice = field(init=False)
    second: slice = field(init=False)
    matrix: Tensor = field(init=False)
    piece: Piece | None = field(init=False)

    def narrow(self, x: Tensor) -> bool:
        """Whether the word has a down matrix that sees the projection's input itself."""
        return self.down.matrix() is not None and self.down.enter(x) is x

    def fold(self, product: Tensor) -> Tensor:
        """From the adapter's share of the first product to its share of what the second one multiplies."""
        matrix = self.matrix
        hidden = self.down.hidden(product[..., : len(matrix)], self.addressing)
        if self.gate is None:
            return self.up.fold(hidden, None, self.scaling)
        logits = product[..., len(matrix) :] if product.shape[-1] > len(matrix) else None
        routing = self.gate(logits, self.addressing, self.slot, matrix)
        self.slot.write(routing, self.addressing.rows, {})
        return self.up.fold(hidden, routing.mixing, self.scaling)

    def stand(self, first: int, second: int) -> tuple[list[Tensor], Tensor]:
        """The adapter's rows of the first matrix and its columns of the second, which begin at these places."""
        self.piece = piece(self.down, self.gate, self.up, self.slot, self.rows, first, second)
        self.matrix, router = self.down.matrix(), None if self.gate is None else self.gate.matrix()
        rows, columns = [self.matrix] if router is None else [self.matrix, router], self.up.matrix()
        self.first = slice(first, first + sum(map(len, rows)))
        self.second = slice(second, second + columns.shape[1])
        return rows, columns if self.piece is None else columns * self.scaling


class _Joined:
    """A projection's adapters: all down matrices and routers in one product, all up matrices in another."""

    def __init__(self, parts: list[_Part], rows: int, x: Tensor, layouts: dict[Any, Layout]) -> None:
        self.seen, self.dtype = x.dtype, parts[0].up.dtype
        first, second, height, width = [], [], 0, 0
        for part in parts:
            stacked, columns = part.stand(height, width)
            first += stacked
            second.append(columns)
            height, width = part.first.stop, part.second.stop
        self.first = torch.cat([rows.to(self.dtype) for rows in first])
        self.second = torch.cat(second, 1).t().contiguous()
        # Other adapters' columns of a row stay zero, so that one product serves all rows.
        self.folded = self.first.new_zeros(rows, 1, width)
        self.apart = [part for part in parts if part.piece is None]
        self.alone = len(parts) == len(self.apart) == 1 and parts[0].rows == slice(0, rows)
        self.layout, self.steady = None, None
        if gathered := [part for part in parts if part.piece is not None]:
            key = (tuple(part.piece for part in gathered), width)
            if key not in layouts:
                layouts[key] = Layout(key[0], rows, width, self.first)
            self.layout = layouts[key]
            self._hold_steady([part for part in gathered if not part.piece.selected], rows)

    def _hold_steady(self, parts: list[_Part], rows: int) -> None:
        """The weights (rows, experts + 1) of adapters that weigh every token alike."""
        if parts:
            self.steady = self.first.new_zeros(rows, self.layout.experts + 1)
        for part in parts:
            weights = steady_weights(part.gate, part.addressing, part.slot)
            self.steady[part.rows, : part.piece.experts] = weights

    def __call__(self, layer: MixtureLayer, x: Tensor) -> Tensor:
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            result, folded = self._branching(layer, x)
        else:
            result, folded = _base(layer, x), self._folded(x, self._each)
        shape, folded = result.shape, folded.flatten(0, -2)
        if result.dtype == folded.dtype:
            return torch.addmm(result.view(len(x), -1), folded, self.second).view(shape)
        return result.add_((folded @ self.second).view(shape))  # in the wider type, rounded once

    def _folded(self, x: Tensor, each: Callable[[Tensor, Tensor], None]) -> Tensor:
        """What the up matrices multiply: (rows, 1, columns)."""
        product = functional.linear(x.to(self.dtype).view(len(x), 1, -1), self.first)
        if self.alone:
            return self.apart[0].fold(product)
        folded = self.folded
        if self.layout is not None:
            folded = self.layout.folded(product.squeeze(1), self.steady).unsqueeze(1)
        if self.apart:
            each(product, folded)
        return folded

    def _each(self, product: Tensor, folded: Tensor) -> None:
        for part in self.apart:
            _fold(part, product, folded)

    def _branching(self, layer: MixtureLayer, x: Tensor) -> tuple[Tensor, Tensor]:
        """The base and each adapter as branches of the graph that is being recorded: they run at the same time."""
        here, beside = torch.cuda.current_stream(x.device), _stream(x.device, 0)
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            folded = self._folded(x, self._each_on_a_stream)
        result = _base(layer, x)
        here.wait_stream(beside)
        return result, folded

    def _each_on_a_stream(self, product: Tensor, folded: Tensor) -> None:
        here = torch.cuda.current_stream(product.device)
        streams = [_stream(product.device, number) for number in range(1, len(self.apart))]
        for part, stream in zip(self.apart[1:], streams, strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                _fold(part, product, folded)
        _fold(self.apart[0], product, folded)
        for stream in streams:
            here.wait_stream(stream)


def _fold(part: _Part, product: Tensor, folded: Tensor) -> None:
    folded[part.rows, :, part.second] = part.fold(product[part.rows, :, part.first])


def _base(layer: MixtureLayer, x: Tensor) -> Tensor:
    result, quantised = layer.base_layer(x), layer.quantization_backend
    return result if quantised is None else quantised.maybe_clone_base_result(result)


_streams: dict[tuple[torch.device, int], torch.cuda.Stream] = {}


def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    if (device, number) not in _streams:
        _streams[device, number] = torch.cuda.Stream(device)
    return _streams[device, number]


def _rows_of(routing: Routing, rows: Tensor) -> Routing:
    folded = None if routing.folded is None else routing.folded[rows]
    return Routing(routing.probs[rows], routing.weights[rows], folded)


def _followed(first: Routing, second: Routing) -> Routing:
    folded = None if first.folded is None else torch.cat([first.folded, second.folded])
    return Routing(torch.cat([first.probs, second.probs]), torch.cat([first.weights, second.weights]), folded)
