"""Scores over SNR, protection, attack and seed: what a channel costs and what protects from it.

Points that come to the same transmission are computed once: on adapters that leave the embeddings alone, the arms that
protect embeddings are the unprotected one. Finished points are kept beside the checkpoints, so that a sweep goes on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.fusion.methods.r_mtllmf import split_arm
from core.fusion.resilient.protection import Shield
from core.fusion.resilient.scoring import Bench, Outcome, References
from core.home import read_json, write_json

if TYPE_CHECKING:
    from core.fusion.resilient.resilience import Resilience

COLUMNS = (
    "protection",
    "attack",
    "snr",
    "seed",
    "task",
    "score",
    "normalised",
    "disentanglement_error",
    "relative_mse",
    "resilience",
)
TABLES = 20  # times the whole table is said at most
SHAPES_RESULTS = {"model", "sources", "tasks", "method", "train", "evaluation", "seed"}


@dataclass(frozen=True)
class Point:
    """``snr`` None: the ideal channel."""

    arm: str
    attack: str
    snr: float | None
    seed: int


def points(lab: Resilience) -> list[Point]:
    """The ideal channel of every arm first, then a whole set of curves for each seed."""
    options, first = lab.options, lab.setting.seed
    attacks = [attack for attack in options.sweep_attacks if attack != "ideal"]
    return [Point(arm, "ideal", None, first) for arm in options.sweep_protections] + [
        Point(arm, attack, snr, seed)
        for seed in range(first, first + options.sweep_seeds)
        for attack in attacks
        for snr in sorted(options.sweep_snr, reverse=True)
        for arm in options.sweep_protections
    ]


def sweep(lab: Resilience) -> list[list[Any]]:
    """Score every point and say the table as it grows; returns its rows.

    With the setting's ``resume``, points that were finished are not computed again. Raises Cancelled between points.
    """
    plan = points(lab)
    bench = Bench(lab)
    kept = _Kept(lab)
    if kept.references is None:
        kept.keep_references(bench.references())
    lab.say(kept.references.sentence())
    rows: list[list[Any]] = []
    clock, said = _Clock(), 0
    for number, (point, shield, key) in enumerate(_resolved(lab, plan), 1):
        lab.setting.check()
        if key not in kept.outcomes:
            kept.keep(key, clock.timed(lambda point=point, shield=shield: _outcome(lab, bench, point, shield)))
        rows += _rows(point, kept.outcomes[key], kept.references)
        lab.setting.sink.emit(
            "progress", step=number, total=len(plan), phase="sweep", seconds_left=clock.left(len(plan) - number)
        )
        if number * TABLES // len(plan) > said:
            said = number * TABLES // len(plan)
            lab.setting.table("sweep", COLUMNS, rows)
    return rows


def _resolved(lab: Resilience, plan: list[Point]) -> Iterator[tuple[Point, Shield, str]]:
    """Every point with its shield and a key that is equal where nothing differs that counts."""
    for point in plan:
        protection, realigned = split_arm(point.arm)
        shield = lab.protector.shield(protection, point.snr, point.seed)
        parts = [sorted(shield.dropped), sorted(shield.clean), sorted(shield.users)]
        facts = json.dumps([point.attack, point.snr, point.seed, realigned, parts])
        yield point, shield, hashlib.sha256(facts.encode()).hexdigest()[:16]


def _outcome(lab: Resilience, bench: Bench, point: Point, shield: Shield) -> Outcome:
    received = lab.send(lab.channel(point.snr, point.attack, point.seed), shield)
    realigned = split_arm(point.arm)[1]
    deltas = lab.realign(received, point.seed).deltas if realigned else received.deltas
    return bench.outcome(deltas, received.relative_mse)


def _rows(point: Point, outcome: Outcome, references: References) -> list[list[Any]]:
    rows = []
    for task, score in outcome.scores.items():
        error = references.disentanglement_error(task, outcome.decisions[task])
        head = [point.arm, point.attack, point.snr, point.seed, task, score]
        rows.append(
            [
                *head,
                references.normalised(task, score),
                error,
                outcome.relative_mse,
                references.resilience(task, score),
            ]
        )
    return rows


class _Kept:
    """Finished points in a file, believed only where the settings that shape them are the same."""

    def __init__(self, lab: Resilience) -> None:
        self.path = lab.setting.folder.checkpoints / "sweep.json"
        shaping = lab.setting.spec.model_dump(mode="json", include=SHAPES_RESULTS)
        shaping |= {"options": lab.options.model_dump(mode="json"), "runs": lab.setting.names}
        self._settings = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()
        data = self._read() if lab.setting.resume else {}
        self.references = References(**data["references"]) if data.get("references") else None
        self.outcomes = {key: Outcome(**value) for key, value in data.get("outcomes", {}).items()}

    def keep_references(self, references: References) -> None:
        self.references = references
        self._write()

    def keep(self, key: str, outcome: Outcome) -> None:
        self.outcomes[key] = outcome
        self._write()

    def _read(self) -> dict[str, Any]:
        try:
            data = read_json(self.path)
        except (OSError, ValueError):
            return {}
        return data if data.get("settings") == self._settings else {}

    def _write(self) -> None:
        outcomes = {key: vars(outcome) for key, outcome in self.outcomes.items()}
        write_json(self.path, {"settings": self._settings, "references": vars(self.references), "outcomes": outcomes})


class _Clock:
    """Mean time of the points that were computed."""

    def __init__(self) -> None:
        self.seconds, self.count, self.passed = 0.0, 0, 0

    def timed(self, work: Any) -> Outcome:
        begun = time.monotonic()
        result = work()
        self.seconds += time.monotonic() - begun
        self.count += 1
        return result

    def left(self, points: int) -> float | None:
        """Seconds for so many more, taken to need computing as often as those before."""
        self.passed += 1
        return round(self.seconds / self.passed * points, 1) if self.count else None
