"""Whether a run fits in the memory of the device that it would get: probably, and whether it can at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from core import capacity, catalog, memory
from core.adapters.cells import Site
from core.errors import OutOfMemoryError, StudioError
from core.jobs.devices import Device
from core.memory import Batch, MemoryEstimate
from core.schema import ModelSpec, TrainSpec
from core.units import size

if TYPE_CHECKING:
    from pathlib import Path

    from core.lengths import Lengths

SOME = 0.1  # share of what is needed from which on a part is worth a remedy of its own


class Fit(BaseModel):
    """The estimate of the memory against a device."""

    parts: dict[str, int] = Field(default_factory=dict, description="Bytes by part.")
    total: int = 0
    device: str = Field("", description="What the run would train on.")
    capacity: int | None = Field(None, description="Bytes that the device has; empty where it does not say.")
    fits: bool | None = None
    tokens: int = Field(0, description="Tokens of the longest row that a batch is taken to hold.")
    rows: int = Field(0, description="Rows of a micro-batch.")
    together: int = Field(1, description="How many such runs would share the device.")
    one_row: int | None = Field(None, description="Bytes with one row at a time, where even that is too much.")
    problem: str = Field("", description="Why the run is refused: no device has what it must hold.")
    remedy: str = Field("", description="What would help then.")

    def text(self) -> str:
        told = ", ".join(f"{name} {size(number)}" for name, number in self.parts.items())
        held = "" if self.capacity is None else f" of {size(self.capacity)} ({self.device})"
        warning = " (it does not fit)" if self.fits is False else ""
        beside = f"; {self.together} such runs at once" if self.together > 1 else ""
        return f"about {size(self.total)}{held}{warning}: {told}{beside}"

    @property
    def advice(self) -> str:
        """What to do about a run that probably does not fit."""
        if self.one_row is None:
            return "Lower train.batch_size, or train.max_length if rows are that long; or checkpoint activations."
        return (
            f"Even one row of {self.tokens:,} tokens at a time takes about {size(self.one_row)}: shorten "
            "train.max_length, checkpoint activations, adapt less or choose a smaller base."
        )

    def verdict(self) -> list[str]:
        """The sentence on a run that is refused or probably does not fit; none where it fits."""
        if self.problem:
            return [f"Refused: {self.problem} {self.remedy}"]
        return [f"Note: {self.advice}"] if self.fits is False else []

    def refusal(self) -> OutOfMemoryError | None:
        """The error that submitting the run raises; None where it may fit."""
        return OutOfMemoryError(self.problem, self.remedy) if self.problem else None


def examine(
    sites: Sequence[Site],
    model: ModelSpec,
    base: catalog.BaseShapes,
    train: TrainSpec,
    wish: str,
    rows: Lengths | None = None,
) -> tuple[MemoryEstimate, Fit]:
    """The peak of training, and whether the device that a run with this ``wish`` gets has that much.

    ``rows``: how long the rows are; without them they are taken to be as long as they may be.
    """
    device = capacity.device_for(wish)
    known = (rows.longest, rows.answers, rows.usual) if rows else ()
    batch = Batch.of(train, base.positions, *known)
    cuda = capacity.on_gpu(device)
    estimate = memory.estimate(sites, model, base, train, batch, cuda)
    fit = against(estimate, batch, device)
    if fit.fits is False:
        alone = Batch.of(train.model_copy(update={"batch_size": 1}), base.positions, *known)
        least = _needed(memory.estimate(sites, model, base, train, alone, cuda), device)
        fit.one_row = least if least > (fit.capacity or 0) else None
    if (refused := refusal(sites, model, base, wish)) is not None:
        fit.problem, fit.remedy = refused.message, refused.hint
    return estimate, fit


def against(estimate: MemoryEstimate, batch: Batch, device: Device | None) -> Fit:
    """An estimate against a device; None: nothing is known of it."""
    has = capacity.capacity_of(device)
    shared = capacity.on_gpu(device)
    return Fit(
        parts=estimate.parts(),
        total=estimate.total,
        device=device.title if device else "",
        capacity=has,
        fits=None if has is None else _needed(estimate, device) <= has,
        tokens=batch.tokens,
        rows=batch.rows,
        together=int(1 / device.share_for(memory.claimed(estimate.total)) + 1e-6) if device and shared else 1,
    )


def _needed(estimate: MemoryEstimate, device: Device | None) -> int:
    """Bytes of the device: CUDA itself takes some beside what PyTorch counts."""
    return estimate.total + (memory.CONTEXT if capacity.on_gpu(device) else 0)


def refusal(sites: Sequence[Site], model: ModelSpec, base: catalog.BaseShapes, wish: str) -> OutOfMemoryError | None:
    """Why a run cannot be trained on any device that it could get; None where it may fit, or no device is known."""
    place = capacity.largest(wish)
    if place is None:
        return None
    parts = memory.held(sites, model, base, capacity.on_gpu(place[0]))
    return capacity.refusal(parts, place, "With any batch size the run", _remedies(sites, model, base, place[0], parts))


def _remedies(
    sites: Sequence[Site], model: ModelSpec, base: catalog.BaseShapes, device: Device, parts: Mapping[str, int]
) -> list[str]:
    need, found = sum(parts.values()), []
    if need - parts["weights"] > SOME * need:
        low_rank = any(site.down.word != "identity" for site in sites)
        found += ["a lower rank", "fewer experts"] if low_rank else ["a low-rank method such as lora"]
        found += ["fewer modules or layers"]
    if parts["weights"] > SOME * need:
        found += of_base(model, base, device)
    return found + [
        f"device {one.name}"
        for one in capacity.devices()
        if one.name != device.name and _may_hold(one, sites, model, base)
    ]


def _may_hold(device: Device, sites: Sequence[Site], model: ModelSpec, base: catalog.BaseShapes) -> bool:
    cuda, has = capacity.on_gpu(device), capacity.capacity_of(device, swap=True) or 0
    return (cuda or model.quantization == "none") and sum(memory.held(sites, model, base, cuda).values()) <= has


def of_base(model: ModelSpec, base: catalog.BaseShapes, device: Device) -> list[str]:
    """What makes the weights of a base smaller."""
    found = []
    if capacity.on_gpu(device) and model.quantization != "4bit" and not base.few_bits:
        found.append("model.quantization 4bit")
    if memory.least_weights(model, base, capacity.on_gpu(device)) == 4 * base.parameters:
        found.append("model.dtype bfloat16")
    return [*found, "a smaller base"]


def require_loaded(model: ModelSpec, wish: str, cache: Path, what: str) -> None:
    """Raise OutOfMemoryError for a base that no device can hold which a job with this ``wish`` can get."""
    if refused := too_large(model, capacity.largest(wish), cache, what):
        raise refused


def too_large(model: ModelSpec, place: capacity.Place | None, cache: Path, what: str) -> OutOfMemoryError | None:
    """Why a base cannot be loaded on a device; None where it may fit or its shapes cannot be read."""
    if place is None:
        return None
    try:
        base = catalog.shapes(model, cache)
    except (StudioError, OSError):  # loading says what is wrong
        return None
    parts = {"weights": memory.least_weights(model, base, capacity.on_gpu(place[0]))}
    return capacity.refusal(parts, place, what, of_base(model, base, place[0]))
