"""A micro-step as one CUDA graph: thousands of kernels are launched by one call.

Python needs tens of microseconds to launch a kernel and an H200 far less to run most of them, so that steps on short
samples wait for Python. Forward and backward pass of a batch are therefore captured once for each shape of batch and
replayed from then on; what they read lies in tensors of the graph, into which each batch is copied.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from core.evaluation.capture import capturing, reason

Outputs = dict[str, Tensor]
Work = Callable[[Mapping[str, Any]], tuple[Tensor, Outputs]]

FIRST = 2  # plain micro-steps before anything is captured: kernels are chosen and compiled in them
MOST = 48  # graphs; batches of further shapes are computed plainly
RAGGED = 64  # tensors of any length are filled up to a multiple of this


class StepGraphs:
    """Calls ``work`` on a batch, (loss, outputs), and adds the gradients of the loss to ``parameters``.

    The outputs are those of this batch until the next call. ``ragged`` names the tensors of the batch that may have
    any length, with the value that fills them up; what is computed of them may come back longer than they were.
    ``most`` graphs are made, none where it is 0; ``told`` hears once why there are no more, where one cannot be made.
    """

    def __init__(
        self,
        work: Work,
        parameters: Sequence[Tensor],
        *,
        ragged: Mapping[str, Any],
        told: Callable[[str], None] = lambda reason: None,
        most: int = MOST,
    ) -> None:
        self.work, self.parameters, self.ragged, self.told, self.most = work, list(parameters), ragged, told, most
        self.gradients: list[Tensor] = []
        self.graphs: dict[tuple, _Graph] = {}
        self._seen: Counter[tuple] = Counter()
        self._pool: Any = None
        self._stream = torch.cuda.Stream() if most else None

    def __call__(self, batch: Mapping[str, Any], settled: bool = True) -> Outputs:
        """``settled``: what is computed will be the same for later batches of this shape."""
        if not self.most:
            return self._plain(batch)
        key = self._key(batch)
        graph = self.graphs.get(key)
        if graph is None and settled and self._ripe(key):
            graph = self._captured(key, batch)
        if graph is None:
            return self._plain_beside_graphs(batch)
        self._hold_gradients()
        return graph.replay(batch)

    def _plain(self, batch: Mapping[str, Any]) -> Outputs:
        loss, outputs = self.work(batch)
        loss.backward()
        return {name: value.detach() for name, value in outputs.items()}

    def _plain_beside_graphs(self, batch: Mapping[str, Any]) -> Outputs:
        """On the stream of the captures: the nodes that collect gradients keep to the stream that they began on."""
        usual = torch.cuda.current_stream()
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            outputs = self._plain(batch)
        usual.wait_stream(self._stream)
        return outputs

    def _key(self, batch: Mapping[str, Any]) -> tuple:
        def shape(name: str, value: Tensor) -> tuple:
            return (-(-len(value) // RAGGED), *value.shape[1:]) if name in self.ragged else tuple(value.shape)

        return tuple((name, shape(name, value)) for name, value in batch.items() if isinstance(value, Tensor))

    def _ripe(self, key: tuple) -> bool:
        """Whether a batch of this shape was computed before, so that nothing new is compiled for it."""
        self._seen[key] += 1
        return self._seen[key] > 1 and self._seen.total() > FIRST and len(self.graphs) < self.most

    def _captured(self, key: tuple, batch: Mapping[str, Any]) -> _Graph | None:
        if not self.gradients:
            self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
            self._pool = torch.cuda.graph_pool_handle()
        gc.collect()  # what is left of earlier passes would tie their stream to the capture
        try:
            self.graphs[key] = _Graph(self, batch, self._pool, self._stream)
        except Exception as error:  # whatever a base or a method does that a graph cannot hold
            self.most = len(self.graphs)
            self.told(reason(error))
        return self.graphs.get(key)

    def _hold_gradients(self) -> None:
        """Let every parameter's gradient be the tensor that the graphs add to."""
        fresh = []
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if parameter.grad is None:
                fresh.append(gradient)
            elif parameter.grad is not gradient:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient
        if fresh:
            torch._foreach_zero_(fresh)


class _Graph:
    def __init__(self, steps: StepGraphs, batch: Mapping[str, Any], pool: Any, stream: Any) -> None:
        self.ragged = steps.ragged
        self.inputs = {name: self._own(name, value) for name, value in batch.items() if isinstance(value, Tensor)}
        self.graph = torch.cuda.CUDAGraph()
        with capturing(self.graph, pool=pool, stream=stream):
            loss, outputs = steps.work({**batch, **self.inputs})
            found = torch.autograd.grad(loss, steps.parameters, allow_unused=True)
            pairs = [(held, one) for held, one in zip(steps.gradients, found, strict=True) if one is not None]
            torch._foreach_add_([held for held, _ in pairs], [one for _, one in pairs])
            self.outputs = {name: value.detach() for name, value in outputs.items()}

    def replay(self, batch: Mapping[str, Any]) -> Outputs:
        self._fill(batch)
        self.graph.replay()
        return dict(self.outputs)

    def _own(self, name: str, value: Tensor) -> Tensor:
        if name not in self.ragged:
            return value.clone()
        return value.new_full((-(-len(value) // RAGGED) * RAGGED, *value.shape[1:]), self.ragged[name])

    def _fill(self, batch: Mapping[str, Any]) -> None:
        places, values = [], []
        for name, held in self.inputs.items():
            if name in self.ragged and len(batch[name]) < len(held):
                held[len(batch[name]) :].fill_(self.ragged[name])
                held = held[: len(batch[name])]
            places.append(held)
            values.append(batch[name])
        torch._foreach_copy_(places, values)
