"""Alarms of a run: figures that say that it may be wasting its time, each raised once until it is calm again.

The thresholds and their reasons stand in docs/training.md. They compare a run with itself, since no loss or gradient
norm is large by itself, and are wide: an alarm that is often wrong is not read.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.routing.snapshot import RoutingSnapshot
from core.routing.statistics import against_even, over_roles

REMEMBERED = 30  # points with which the next one is compared
KNOWN = 5  # points before anything is compared
SPIKE, SPIKE_NATS = 2.0, 0.5  # a loss over twice the highest of these points, and by half a nat
GUESSING = 2.0  # a loss over twice that of guessing all tokens alike
GRADIENT = 10.0  # a norm over ten times the highest of these points, and over ten times what it is clipped to
DEAD, DEAD_SHARE = 0.01, 0.25  # experts with a hundredth of an even share; a quarter of all experts
COLLAPSED, COLLAPSED_SHARE = 0.95, 0.5  # one expert with 95% of the weight; half of the gates
FREE_GATES = ("none", "label")  # what these choose does not depend on what was learnt
CALM = 10  # points without cause until the same alarm may be raised again
MOST = 20  # times that one alarm is raised in a run


@dataclass(frozen=True)
class Alarm:
    """``name``: spike, gradient, dead experts or collapse."""

    name: str
    message: str


class Alarms:
    """What was seen of one run; part of every checkpoint, so that a resumed run does not stop at the same alarm."""

    def __init__(self, vocabulary: int, max_grad_norm: float) -> None:
        self.guessing = math.log(max(vocabulary, 2))
        self.clip = max_grad_norm
        self.losses: deque[float] = deque(maxlen=REMEMBERED)
        self.norms: deque[float] = deque(maxlen=REMEMBERED)
        self.raised: dict[str, int] = {}
        self.calm: dict[str, int] = {}  # points since the cause was gone; absent: it may be raised
        self.kept: int | None = None  # the checkpoint before the first trouble

    def look(self, loss: float, norm: float) -> list[Alarm]:
        """The alarms of a point of the curves: mean loss, and the highest gradient norm since the last point."""
        found = [self._judge("spike", self._spike(loss)), self._judge("gradient", self._gradient(norm))]
        if "spike" not in self.calm:
            self.losses.append(loss)  # what is out of order is no measure for what follows
        if "gradient" not in self.calm:
            self.norms.append(norm)
        return [alarm for alarm in found if alarm is not None]

    def look_at_routing(self, snapshot: RoutingSnapshot) -> list[Alarm]:
        """The alarms of a routing moment; of experts that are dead because one has all the weight, the latter."""
        shares = _shares(snapshot)
        collapse = self._judge("collapse", _collapse(shares))
        dead = self._judge("dead experts", "" if collapse or "collapse" in self.calm else _dead(shares))
        return [alarm for alarm in (collapse, dead) if alarm is not None]

    def _spike(self, loss: float) -> str:
        if len(self.losses) < KNOWN:
            return ""
        if loss > GUESSING * self.guessing:
            return f"The loss is {loss:.3g}: guessing every token alike would have {self.guessing:.3g}."
        highest = max(self.losses)
        if loss > SPIKE * highest and loss > highest + SPIKE_NATS:
            return f"The loss is {loss:.3g}; it was {highest:.3g} at most in the {len(self.losses)} points before."
        return ""

    def _gradient(self, norm: float) -> str:
        highest = max(self.norms, default=math.inf)
        if len(self.norms) >= KNOWN and norm > GRADIENT * highest and norm > GRADIENT * self.clip:
            before = f"it was {highest:.3g} at most in the {len(self.norms)} points before"
            return f"The gradient norm is {norm:.3g}; {before}, and gradients are clipped to {self.clip:g}."
        return ""

    def _judge(self, name: str, message: str) -> Alarm | None:
        """An alarm where there is a message and the last of its name is over."""
        if not message:
            if name in self.calm:
                self.calm[name] += 1
                if self.calm[name] >= CALM:
                    del self.calm[name]
            return None
        fresh = name not in self.calm and self.raised.get(name, 0) < MOST
        self.calm[name] = 0
        if not fresh:
            return None
        self.raised[name] = self.raised.get(name, 0) + 1
        last = " It is not raised again in this run." if self.raised[name] == MOST else ""
        return Alarm(name, message + last)

    def state(self) -> dict[str, Any]:
        lists = {"losses": list(self.losses), "norms": list(self.norms)}
        return {**lists, "raised": dict(self.raised), "calm": dict(self.calm), "kept": self.kept}

    def restore(self, state: dict[str, Any]) -> None:
        self.losses.extend(state["losses"])
        self.norms.extend(state["norms"])
        self.raised, self.calm, self.kept = dict(state["raised"]), dict(state["calm"]), state["kept"]


def _shares(snapshot: RoutingSnapshot) -> list[np.ndarray]:
    """For every gate that has a choice, the share of the weight that each expert has over all tasks; sums to 1."""
    gates = over_roles(snapshot, "mean_gate")  # task x site x expert
    counts = over_roles(snapshot, "count")[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(gates * counts, 0) / np.nansum(np.where(np.isfinite(gates), counts, 0), 0)
        even = against_even(mean, snapshot.sites)
    found = []
    for index, site in enumerate(snapshot.sites):
        alone = site.gate in FREE_GATES or site.gate == "task" and len(snapshot.tasks) < 2
        share = even[index, : site.experts] / site.experts
        if site.experts > 1 and not alone and np.isfinite(share).all():
            found.append(share / max(share.sum(), 1e-12))
    return found


def _collapse(shares: list[np.ndarray]) -> str:
    caught = sum(bool(share.max() >= COLLAPSED) for share in shares)
    if not caught or caught < COLLAPSED_SHARE * len(shares):
        return ""
    return f"The router has collapsed: in {caught} of {len(shares)} gates one expert has {COLLAPSED:.0%} of the weight."


def _dead(shares: list[np.ndarray]) -> str:
    dead = sum(int((share < DEAD / len(share)).sum()) for share in shares)
    total = sum(map(len, shares))
    if not dead or dead < DEAD_SHARE * total:
        return ""
    return f"{dead} of {total} experts are dead: each has less than a hundredth of an even share of the weight."
