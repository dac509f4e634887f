"""When a falling entropy is no good news: answers that leave the options, or one answer to everything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.fusion.learned.objective import TaskReading

SHARE = 0.5  # of its start, below which a value counts as fallen
PATIENCE = 3  # evaluations in a row
# Where a value starts below its floor nothing is left to lose: it is said once, and its halving is no alert.
MASS_FLOOR = 0.01  # probability of the options together
MARGINAL_FLOOR = 0.05  # nats


@dataclass
class Guard:
    """Compares evaluations with the first one; part of every checkpoint.

    ``best`` is the lowest total loss of an evaluation without alert, at ``best_step``; ``raised``: alerts that are on;
    ``patient``: alerts that last stop nothing.
    """

    mass: dict[str, float] = field(default_factory=dict)
    marginal: dict[str, float] = field(default_factory=dict)
    best: float = math.inf
    best_step: int = 0
    bad: int = 0  # evaluations with an alert, in a row
    raised: list[str] = field(default_factory=list)
    finite: bool = True
    patient: bool = False

    def look(self, step: int, readings: Mapping[str, TaskReading]) -> list[tuple[str, str]]:
        """Judge an evaluation; returns what it is the first to say, as (name, message)."""
        said = []
        if not self.marginal:
            self.mass = {name: r.option_mass for name, r in readings.items() if r.option_mass is not None}
            self.marginal = {name: r.marginal_entropy for name, r in readings.items()}
            said = list(self._lost_before())
        alerts = {f"{name} {task}": (name, message) for task, name, message in self._alerts(step, readings)}
        said += [alert for key, alert in alerts.items() if key not in self.raised]
        self.raised = list(alerts)
        self.bad = self.bad + 1 if alerts else 0
        self.finite = all(math.isfinite(reading.loss) for reading in readings.values())
        total = sum(reading.loss for reading in readings.values())
        if not alerts and total < self.best:
            self.best, self.best_step = total, step
        return said

    @property
    def stops(self) -> bool:
        """An alert has lasted, or numbers are no numbers."""
        return (self.bad >= PATIENCE and not self.patient) or not self.finite

    def begin_anew(self, step: int) -> None:
        """Another phase: what is compared with stays, the best does not."""
        self.best, self.best_step, self.bad, self.raised, self.finite = math.inf, step, 0, [], True

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def _lost_before(self) -> Iterator[tuple[str, str]]:
        """What is lost at the start already, so that learning cannot be watched by it."""
        for task, mass in self.mass.items():
            if mass < MASS_FLOOR:
                yield "option_mass", f"{task}: at the start the options have {mass:.1e} of the probability together."
        for task, marginal in self.marginal.items():
            if marginal < MARGINAL_FLOOR:
                yield "collapse", f"{task}: at the start nearly all answers are the same ({marginal:.1e} nats)."

    def _alerts(self, step: int, readings: Mapping[str, TaskReading]) -> Iterator[tuple[str, str, str]]:
        for task, reading in readings.items():
            if not math.isfinite(reading.loss):
                yield task, "not_finite", f"{task}: the loss is {reading.loss} at step {step}."
                continue
            mass, start = reading.option_mass, self.mass.get(task)
            if mass is not None and start is not None and start >= MASS_FLOOR and mass < SHARE * start:
                message = f"{task}: the probability of the options fell from {start:.2g} to {mass:.2g} by step {step}."
                yield task, "option_mass", message
            marginal, start = reading.marginal_entropy, self.marginal[task]
            if start >= MARGINAL_FLOOR and marginal < SHARE * start:
                message = (
                    f"{task}: answers collapse onto one: the entropy of their mean fell from {start:.3f} to "
                    f"{marginal:.3f} by step {step}."
                )
                yield task, "collapse", message
