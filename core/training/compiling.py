"""Whether and how training steps are compiled: torch.compile of each kind of block, CUDA graphs of whole steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from transformers.modeling_layers import GradientCheckpointingLayer

from core.data.batches import TaskDataset
from core.evaluation.capture import reason
from core.jobs.sinks import Sink
from core.schema import TrainSpec
from core.training.graphs import MOST

KINDS = 64  # different blocks that may be compiled: cells may give every layer words of its own
LOOKED_AT = 64  # rows whose lengths speak for all
PLAIN_RATE = 2e14  # floating-point operations a second of steps that are not compiled, on a large GPU
PLAIN_STEP = 0.01  # seconds that such a step takes at least
WORTH = 60.0  # seconds of plain steps from which on compiling, which takes up to half a minute, is earned back


@dataclass(frozen=True)
class Compiling:
    """What a run does. ``graphs``: most CUDA graphs of steps, 0 for none."""

    blocks: bool
    graphs: int

    @classmethod
    def of(cls, train: TrainSpec, device: str, model: nn.Module, dataset: TaskDataset, steps: int) -> Compiling:
        """Decided from the settings and the data alone, so that a resumed run computes as it began."""
        cuda = device.startswith("cuda")
        if train.compile == "off":
            return cls(False, 0)
        # Recomputing activations saves and restores random states, which a graph cannot hold.
        graphs = MOST if cuda and not train.activation_checkpointing else 0
        if train.compile == "on":
            return cls(True, graphs)
        return cls(cuda and _seconds(train, model, dataset, steps) >= WORTH, graphs)

    def prepare(self, model: nn.Module, sink: Sink) -> None:
        if not self.blocks:
            return

        def told(reason: str) -> None:
            message = f"Blocks are not compiled, which makes steps slower (train.compile): {reason}"
            sink.emit("log", level="warning", message=message)

        if count := compile_regions(model, told=told):
            message = f"The {count} blocks of the base are compiled; the first step takes up to half a minute longer."
            sink.emit("log", level="info", message=message)
        else:
            told("the base's blocks cannot be told apart")


def compile_regions(
    model: nn.Module, dynamic: bool | None = None, told: Callable[[str], None] = lambda reason: None
) -> int:
    """Compile every block of the model for training steps; returns how many blocks there are.

    Evaluation and passes without gradients run as before: they would need code of their own. ``dynamic``: whether
    shapes change from batch to batch; None finds out. ``told`` hears why a kind of block cannot be compiled on this
    machine; such blocks run as before.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if blocks:
        for limit, least in (("recompile_limit", KINDS), ("accumulated_recompile_limit", 8 * KINDS)):
            setattr(torch._dynamo.config, limit, max(least, getattr(torch._dynamo.config, limit)))
    compiled = {kind: _compiled(kind, dynamic, told) for kind in {type(block) for block in blocks}}
    for block in blocks:
        block.__class__ = compiled[type(block)]
    return len(blocks)


def _compiled(kind: type[nn.Module], dynamic: bool | None, told: Callable[[str], None]) -> type[nn.Module]:
    """The same kind of block with a compiled ``forward``.

    A class, as copies of a block compute with weights of their own, and transformers checkpoints what a class calls
    its ``forward``: recomputing goes on around compiled code, which could not hold what gates leave on the tape.
    """
    plain = kind.forward
    fast = torch.compile(plain, dynamic=dynamic)

    @functools.wraps(plain)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal fast
        if not (self.training and torch.is_grad_enabled()):
            return plain(self, *args, **kwargs)
        try:
            return fast(self, *args, **kwargs)
        except TorchDynamoException as error:
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                raise  # it is the capture that cannot hold it
            fast = plain
            told(reason(error))
            return plain(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__})


def _seconds(train: TrainSpec, model: nn.Module, dataset: TaskDataset, steps: int) -> float:
    """About how long the steps would take on a large GPU without compiling."""
    rows = range(0, len(dataset), max(1, len(dataset) // LOOKED_AT))
    length = sum(len(dataset[row]["input_ids"]) for row in rows) / len(rows)
    weights = sum(parameter.numel() for parameter in model.parameters())
    operations = 4 * weights * length * train.batch_size * train.gradient_accumulation
    return steps * max(operations / PLAIN_RATE, PLAIN_STEP * train.gradient_accumulation)
