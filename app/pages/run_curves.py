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
CHOICES = [(family.label, name) for name, family in FAMILIES.items()]


def family(name: Any) -> str:
    """A name from outside, or the loss."""
    return name if name in FAMILIES else "loss"


def members(name: str, known: Sequence[str]) -> list[str]:
    """The curves of a family that a run has."""
    one = FAMILIES[name]
    return [n for n in known if n in one.names] + [n for n in sorted(known) if one.below and n.startswith(one.below)]


def unit(curve: str) -> str:
    """What the axis of a single curve is called."""
    for one in FAMILIES.values():
        if curve in one.names or (one.below and curve.startswith(one.below)):
            return one.unit
    return curve.replace("_", " ")


def curves(studio: Studio, run: Mapping[str, Any], name: str, known: Sequence[str]) -> dict[str, Any]:
    """The value of the curve component."""
    one = FAMILIES[name]
    found = studio.watch.run_curves(run["id"], members(name, known), POINTS)
    job = next((job for job in run["jobs"] if job["kind"] == "train"), None)
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
    return f"This run recorded no {one.label.lower()}."
