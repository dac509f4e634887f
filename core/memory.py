"""How much memory training takes, from layer shapes alone. Imports no torch.

What eager PyTorch keeps of a Llama block for the backward pass is counted tensor by tensor; the constants below are
the only numbers that are not shapes. ``benchmarks/memory.py`` compares the estimate with measured peaks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from core.data import packing
from core.schema import ModelSpec, TrainSpec
from core.units import GIB, size

if TYPE_CHECKING:
    from core.adapters.cells import Site
    from core.catalog import BaseShapes

MASTER = 4  # adapters are float32, also over a bfloat16 base, and so are their gradients
MOMENTS = 8  # the two float32 moments of AdamW
QUANTISED = {"8bit": 1.03, "4bit": 0.55}  # bytes per weight of a linear layer, its scales included
AT_BEST = {"8bit": 1.0, "4bit": 0.5}  # the same without the scales: no weight takes less
BIT = 0.125  # bytes per weight of a base that was saved in few bits: no format has fewer
NORM = 4  # a norm computes in float32 and keeps that copy of its input
LOGIT = 12  # per logit at the loss: the float32 logits, their log-softmax and its gradient
MASK = 1  # a dropout mask is one byte per entry
GATE = (10, 16, 4)  # bytes per decision of a token gate: for each expert, for each one selected, once
TAPE = 8  # per expert and decision: probabilities and weights that the routing tape holds until the step ends
BACKWARD = 12  # bytes per token and hidden unit that a block's backward adds for a while: float32 of its norms
TIED = 2  # gradients of a tied embedding beside the one that stays, when those of its head and its inputs add up
WORKSPACE = {True: 40 * 2**20, False: 0}  # cuBLAS keeps 32 MiB on a large GPU, and small tensors round up
PROCESS = {True: 0, False: 600 * 2**20}  # on the CPU the whole process is measured: Python, torch and its libraries
CONTEXT = 600 * 2**20  # what CUDA itself takes of a device: on top of the peak that PyTorch reports
ESTIMATED, AT_LEAST = 1.25, GIB  # head-room of an estimate: scoring and libraries are not in it
MOST_DEVIATIONS = 3  # by how many the fullest batch of a run is fuller than the mean
ANSWER = 16  # tokens of an answer where no data say how long they are
ATTENTION = ("q_proj", "k_proj", "v_proj")
GATED = ("gate_proj", "gate_up_proj")
SHARED_INPUTS = (ATTENTION, ("gate_proj", "up_proj"))  # projections that read one and the same tensor
KEPT_INPUTS = ("o_proj", "out_proj")  # these read the attention's output, which attention keeps anyway


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch: ``rows`` of ``tokens`` each, of which ``answers`` on average carry the loss.

    ``pack``: how many rows of which length they are laid out in where samples share rows; attention then has a mask.
    """

    rows: int
    tokens: int
    answers: float = ANSWER
    pack: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.pack or (self.rows, self.tokens))

    @property
    def mask(self) -> int:
        """Entries of the attention mask."""
        return self.pack[0] * self.pack[1] ** 2 if self.pack else 0

    @classmethod
    def of(
        cls,
        train: TrainSpec,
        positions: int | None,
        longest: int | None = None,
        answers: float = ANSWER,
        usual: tuple[float, float] | None = None,
    ) -> Batch:
        """``longest``: tokens of the longest row, and ``usual``: mean and standard deviation, where data are known."""
        tokens = max(1, min(n for n in (train.max_length, positions, longest) if n))
        pack = None
        if train.packing and usual is not None and train.batch_size > 1:
            mean, deviation = min(usual[0], tokens), usual[1]
            most = train.batch_size * mean + MOST_DEVIATIONS * deviation * math.sqrt(train.batch_size)
            pack = packing.pays(packing.even(min(most, train.batch_size * tokens), tokens), train.batch_size, tokens)
        return cls(train.batch_size, tokens, min(answers, tokens), pack)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by part at the peak of training, as PyTorch counts what it has allocated."""

    weights: int
    adapter: int
    gradients: int
    optimiser: int
    activations: int
    process: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """By name; ``process`` only where it is counted."""
        return {name: value for name, value in asdict(self).items() if value or name != "process"}

    def describe(self) -> str:
        return f"about {size(self.total)} (an estimate)"


def estimate(
    sites: Sequence[Site], model: ModelSpec, base: BaseShapes, train: TrainSpec, batch: Batch, cuda: bool
) -> MemoryEstimate:
    """The peak of a training step on one device: at the loss, or in the backward of the last block.

    Gradients are counted whole: they grow while activations shrink, but accumulation keeps them from step to step.
    """
    width = _width(model, cuda)
    trainable = sum(site.parameters() for site in sites)
    kept = activations(sites, base, batch, width, train.activation_checkpointing) if sites else 0
    return MemoryEstimate(
        weights=_weights(model, base, width),
        adapter=trainable * MASTER,
        gradients=trainable * MASTER,
        optimiser=trainable * MOMENTS,
        activations=kept + WORKSPACE[cuda],
        process=PROCESS[cuda],
    )


def held(sites: Sequence[Site], model: ModelSpec, base: BaseShapes, cuda: bool) -> dict[str, int]:
    """Bytes by part that a training step cannot do without, whatever the batch is: no activations, no head-room.

    A job has one device, so nothing is split or kept twice, and a tied head counts once. Weights that lie in a file in
    the type they are used in could be read again at every step, on the CPU; such a run crawls, and counts as too large.
    """
    trainable = sum(site.parameters() for site in sites)
    return {
        "weights": least_weights(model, base, cuda),
        "adapter": trainable * MASTER,
        "gradients": trainable * MASTER,
        "optimiser": trainable * MOMENTS,
    }


def least_weights(model: ModelSpec, base: BaseShapes, cuda: bool) -> int:
    """Bytes that the weights of a base take at least where it is loaded."""
    return int(base.parameters * BIT) if base.few_bits else _weights(model, base, _width(model, cuda), AT_BEST)


def _width(model: ModelSpec, cuda: bool) -> int:
    """Bytes of a number of the compute type."""
    return 2 if model.dtype == "bfloat16" or (model.dtype == "auto" and cuda) else 4


def _weights(model: ModelSpec, base: BaseShapes, width: int, bits: Mapping[str, float] = QUANTISED) -> int:
    if model.quantization == "none":
        return base.parameters * width
    packed = [line for line in base.linears if not line.head and line.kind not in ("fused", "embedding")]
    linear = sum(line.in_features * line.out_features for line in packed)
    return int(linear * bits[model.quantization] + (base.parameters - linear) * width)


def activations(sites: Sequence[Site], base: BaseShapes, batch: Batch, width: int, checkpointing: bool) -> int:
    """What lies in memory at the peak besides weights and optimiser, in bytes."""
    by_layer: dict[int, list[Site]] = {}
    for site in sites:
        if site.kind != "embedding":
            by_layer.setdefault(site.layer or 0, []).append(site)
    table = sum(site.parameters() for site in sites if site.kind == "embedding")
    block = _block(base, batch, width)
    adapted = [_adapted(own, batch, width) for own in by_layer.values()]
    losses = sum(site.up.kept(site, batch.size) for site in sites)  # those of all blocks are differentiated together
    lowest = 0 if table else min(by_layer)  # gradients pass through no block below the first that is adapted
    blocks = base.layers - lowest
    head = batch.size * base.hidden * (NORM + width) + batch.mask * (width + 1)
    head += table * width if base.tied else 0  # in the compute type, as its product with the hidden states used it
    loss = round(batch.rows * batch.answers) * base.vocabulary * LOGIT
    backward = batch.size * base.hidden * BACKWARD
    last = table * MASTER * (TIED if base.tied else 1)
    if not checkpointing:
        return max(head + sum(adapted) + losses + block * blocks + max(loss, backward), last)
    boundaries = base.layers * batch.size * base.hidden * width
    tape = sum(TAPE * batch.size * site.experts for site in sites if site.gate.unit == "token")
    return max(head + boundaries + tape + losses + max(loss, block + max(adapted, default=0) + backward), last)


def _block(base: BaseShapes, batch: Batch, width: int) -> int:
    """What one block of the frozen base keeps, because gradients pass through it.

    Two norms: their input in float32. Attention: queries, keys, values and output; with a mask, keys and values are
    repeated for all heads. Feed-forward: what enters the activation, what
    leaves it and, where it is gated, the other factor.
    """
    outputs = {line.projection: line.out_features for line in base.linears}
    queries = outputs.get("q_proj", base.hidden)
    keys = queries if batch.pack else outputs.get("k_proj", queries)
    gated = any(name in outputs for name in GATED)
    per_token = (
        2 * NORM * base.hidden + width * (2 * queries + 2 * keys) + width * base.feed_forward * (3 if gated else 2)
    )
    return batch.size * per_token


def _adapted(sites: Sequence[Site], batch: Batch, width: int) -> int:
    """What the adapted projections of one block keep on top."""
    inputs: dict[object, int] = {}
    total = 0.0
    for site in sites:
        on_input = getattr(site.down, "dropout_on", "input") == "input"  # words without a choice drop what enters
        drops = on_input and getattr(site.down, "dropout", 0.0) > 0
        routed = site.gate.unit == "token" or (site.gate.unit == "sample" and site.gate.parameters(site) > 0)
        if drops:
            total += batch.size * site.in_features * (width + MASK)
        if (routed or not drops) and site.projection not in KEPT_INPUTS:
            inputs[_source(site.projection)] = site.in_features
        total += batch.size * _hidden(site, width) + _copies(site, width)
    return math.ceil(total + batch.size * width * sum(inputs.values()))


def _source(projection: str) -> object:
    """What stands for the tensor that a projection reads."""
    return next((group for group in SHARED_INPUTS if projection in group), projection)


def _hidden(site: Site, width: int) -> float:
    """Bytes per token: the down product, the router's logits, the gates, and the folded hidden state."""
    found = 0.0
    if site.down.parameters(site):  # without a down matrix the projection's own input takes this place
        down, folded = site.down.columns(site), site.up.columns(site)
        between = site.rank * site.experts if site.up.shared and site.experts > 1 else 0
        found = width * (down + folded + between)
    if site.gate.unit == "token":
        groups = getattr(site.gate, "groups", lambda _: 1)(site)
        each, selected, once = GATE
        found += groups * (width * site.experts + each * site.experts + selected * _chosen(site) + once)
    return found


def _chosen(site: Site) -> int:
    return site.selected if site.selected < site.experts else 0  # a dense gate sorts nothing


def _copies(site: Site, width: int) -> int:
    """Matrices in the compute type, as the products used them."""
    return width * site.parameters()


def claimed(estimated: int) -> int:
    """Bytes of a GPU to set aside for a run of this estimate: head-room for what it misses, and CUDA's own."""
    return max(int(estimated * ESTIMATED), estimated + AT_LEAST) + CONTEXT


def compared(estimated: int | None, peak: int | None) -> str:
    """``estimated 1.2 GiB, measured 1.3 GiB (estimate -8%)``, as far as both are known."""
    told = (f"{name} {size(value)}" for name, value in (("estimated", estimated), ("measured", peak)) if value)
    difference = f" (estimate {estimated / peak - 1:+.0%})" if estimated and peak else ""
    return ", ".join(told) + difference
