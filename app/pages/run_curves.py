"""Which curves of a run are drawn together, and with which unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from core.studio import Studio

POINTS = 300


class Family(NamedTuple):
    """Curves on one axis: those named, and those whose names begin with ``below``."""

    label: str
    unit: str
    names: tuple[str, ...] = ()
    below: str = ""


FAMILIES: dict[str, Family] = {
    "loss": Family("Loss", "loss (nats per answer token)", ("loss", "validation")),
    "tasks": Family("Loss by task", "loss (nats per answer token)", below="loss/"),
    "validation": Family("Validation", "validation loss (nats per token)", ("validation",), "validation/"),
    "learning_rate": Family("Learning rate", "learning rate", ("learning_rate",)),
    "speed": Family("Tokens per second", "tokens per second", ("tokens_per_second",)),
    "memory": Family("Memory", "memory (GiB)", ("memory_gib",)),
    "gradient": Family("Gradient norm", "gradient norm", ("grad_norm",)),
    "balance": Family("Auxiliary losses", "auxiliary loss", ("auxiliary_loss",), "auxiliary_loss/"),
}
# What fusing learns, and how it combines the runs.
LEARNT: dict[str, Family] = {
    "entropy": Family("Entropy by task", "entropy (nats)", below="entropy/"),
    "loss": Family("Objective", "learned objective", ("loss",)),
    "option_mass": Family("Option mass", "probability of the options", below="option_mass/"),
    "marginal_entropy": Family("Marginal entropy", "entropy of the mean answer (nats)", below="marginal_entropy/"),
}
COMBINED: dict[str, Family] = {
    "coefficient": Family("Coefficients", "mean coefficient", below="coefficient/"),
    "mask": Family("Mask density", "mean of the mask", ("mask_density",)),
    "bound": Family("At a bound", "share of coefficients at a bound", ("coefficients_at_bound",)),
}
FUSED = {**LEARNT, **COMBINED, **{name: one for name, one in FAMILIES.items() if name not in LEARNT}}
EVERY = {**LEARNT, **COMBINED, **FAMILIES}
CHOICES = [(family.label, name) for name, family in FAMILIES.items()]


def family(name: Any) -> str:
    """A name from outside, or the loss."""
    return name if name in EVERY else "loss"


def families(run: Mapping[str, Any]) -> dict[str, Family]:
    """Those that a run may have; the loss of a fused run is what it learns to minimise."""
    return FUSED if run["spec"].get("sources") else FAMILIES


def offered(run: Mapping[str, Any], known: Sequence[str]) -> list[tuple[str, str]]:
    """Choices of the menu: all of a trained run, of a fused one those that have points."""
    if not run["spec"].get("sources"):
        return CHOICES
    found = [(one.label, name) for name, one in FUSED.items() if members(one, known)]
    return found or [(FUSED["loss"].label, "loss")]


def members(one: Family, known: Sequence[str]) -> list[str]:
    """The curves of a family that a run has."""
    return [n for n in known if n in one.names] + [n for n in sorted(known) if one.below and n.startswith(one.below)]


def unit(curve: str) -> str:
    """What the axis of a single curve is called."""
    for one in EVERY.values():
        if curve in one.names or (one.below and curve.startswith(one.below)):
            return one.unit
    return curve.replace("_", " ")


def curves(studio: Studio, run: Mapping[str, Any], name: str, known: Sequence[str]) -> dict[str, Any]:
    """The value of the curve component."""
    one = families(run)[name]
    found = studio.watch.run_curves(run["id"], members(one, known), POINTS)
    job = next((job for job in run["jobs"] if job["kind"] in ("train", "fuse")), None)
    return {
        "name": f"{run['id']}-{name}",
        "series": [{"name": _short(n, one), "points": points} for n, points in found.items()],
        "xmax": job["total"] if job and job["total"] and job["state"] in ("starting", "running") else 0,
        "x": "step",
        "y": one.unit,
        "empty": _empty(run, one),
    }


def _short(name: str, one: Family) -> str:
    if one.below and name.startswith(one.below):
        return name.removeprefix(one.below)  # a task's name, as it is spelt everywhere
    return {"tokens_per_second": "tokens/s", "memory_gib": "memory"}.get(name, name.replace("_", " "))


def _empty(run: Mapping[str, Any], one: Family) -> str:
    if run["state"] == "queued":
        return "Curves begin when the run starts."
    if run["state"] in ("starting", "running"):
        return f"No points of {one.label.lower()} yet."
    if run["spec"].get("sources"):
        return "Nothing was learnt while it was fused, so there is no curve."
    return f"This run recorded no {one.label.lower()}."
