"""Resilient fusion: task vectors cross a channel, some of them protected, and the fused model is realigned.

Made after the abstract of arXiv 2411.18220 (R-MTLLMF), whose formulas, settings and tables could not be read: this is
the studio's specification of it, and no result of it is one of the paper's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from core.fusion.combine import weights_of
from core.fusion.delta import TaskVector
from core.fusion.methods.r_mtllmf import RMtllmfOptions, split_arm
from core.fusion.resilient.channel import Channel
from core.fusion.resilient.protection import (
    RANKED,
    Protector,
    Shield,
    embedding_paths,
    group_of,
    layer_groups,
    without_effect,
)
from core.fusion.resilient.realign import Realigned, Recipe, Shots, draw_shots, mean_loss, realign
from core.fusion.resilient.sweep import sweep
from core.fusion.resilient.transmission import Received, Transmission
from core.fusion.setting import Fused, Setting

NAMED = 4  # groups of a ranking that are said


@dataclass
class Resilience:
    """The parts of one resilient fusion, each made once however often the vectors are sent."""

    setting: Setting
    options: RMtllmfOptions
    _rankings: dict[float, list[str]] = field(default_factory=dict)

    @cached_property
    def vectors(self) -> list[TaskVector]:
        """On the device."""
        device = self.setting.device
        return [
            TaskVector(vector.name, {path: delta.to(device) for path, delta in vector.deltas.items()})
            for vector in self.setting.vectors
        ]

    @cached_property
    def weights(self) -> list[float]:
        return weights_of(self.options, self.setting.names)

    @cached_property
    def embeddings(self) -> frozenset[str]:
        return embedding_paths(self.setting.candidate)

    @cached_property
    def transmission(self) -> Transmission:
        return Transmission(
            self.vectors, self.options.transmission, group_of=lambda path: group_of(path, self.embeddings)
        )

    @cached_property
    def protector(self) -> Protector:
        return Protector(
            self.vectors,
            self.embeddings,
            layer_groups(self.setting.candidate.paths, self.embeddings),
            self.transmission.sizes,
            self.options.budget,
            self.options.protected_tasks,
            self.ranking,
        )

    @cached_property
    def shots(self) -> Shots:
        setting = self.setting
        return draw_shots(
            setting.tasks,
            setting.encoder,
            shots=self.options.shots,
            seed=setting.seed,
            split=setting.spec.evaluation.split,
            max_length=setting.max_length,
        )

    @cached_property
    def recipe(self) -> Recipe:
        options, form = self.options, self.options.realign_form
        if form == "auto":
            whole = any(not delta.low_rank for vector in self.vectors for delta in vector.deltas.values())
            form = "whole" if whole else "adapter"
        return Recipe(form, options.realign_rank, options.steps, options.batch_size, options.learning_rate)

    def channel(self, snr: float | None, attack: str, seed: int) -> Channel:
        options = self.options
        kind, common = options.transmission, options.common_noise
        return Channel(snr, attack, kind, common_noise=common, shrinkage=options.shrinkage, seed=seed)

    def send(self, channel: Channel, shield: Shield) -> Received:
        return self.transmission.receive(self.weights, channel, shield)

    def realign(
        self,
        received: Received,
        seed: int,
        tell: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    ) -> Realigned:
        return realign(
            self.setting.candidate,
            received.deltas,
            self.shots,
            self.recipe,
            frozen=self.embeddings,
            pad_id=self.setting.encoder.pad_id,
            seed=seed,
            check=self.setting.check,
            tell=tell,
        )

    def ranking(self, snr: float) -> list[str]:
        """Layer groups by how much the loss on the shots rises where noise of this SNR reaches only one of them."""
        if snr not in self._rankings:
            paths, groups = frozenset(self.setting.candidate.paths), self.protector.groups
            clean = self._loss(Channel(None), Shield())
            rise = {
                name: self._loss(self.channel(snr, "awgn", self.setting.seed), Shield(clean=paths - frozenset(group)))
                - clean
                for name, group in groups.items()
            }
            self._rankings[snr] = sorted(groups, key=rise.__getitem__, reverse=True)
            first = ", ".join(f"{name} ({rise[name]:+.3f})" for name in self._rankings[snr][:NAMED])
            self.say(f"Noise at {snr:g} dB raises the loss of the shots most in {first}.")
        return self._rankings[snr]

    def _loss(self, channel: Channel, shield: Shield) -> float:
        self.setting.check()
        with self.setting.candidate.using(self.send(channel, shield).deltas) as model:
            return mean_loss(model, self.shots.all, self.setting.encoder.pad_id)

    def say(self, message: str, level: str = "info") -> None:
        self.setting.sink.emit("log", level=level, message=message)


def resilient(setting: Setting, options: RMtllmfOptions) -> Fused:
    """The sweep, if one is asked for, then the fused model of the options' own channel, protection and realignment."""
    lab = Resilience(setting, options)
    setting.check()
    setting.table("coefficients", ["run", "all"], list(zip(setting.names, lab.weights, strict=True)))
    _check_arms(lab)
    if options.sweep_snr:
        sweep(lab)
    ideal = lab.channel(options.snr, options.attack, setting.seed).ideal
    shield = lab.protector.shield(options.protection, None if ideal else options.snr, setting.seed)
    received = lab.send(lab.channel(options.snr, options.attack, setting.seed), shield)
    facts = _facts(lab, received, shield)
    if not options.realign:
        return Fused(received.deltas, facts=facts)
    done = lab.realign(received, setting.seed, _Teller(setting, options.steps))
    if done.before is not None:
        lab.say(
            f"Realigning: loss of the held-out shots {done.before:.4f} before, {done.after:.4f} at step {done.kept}."
        )
    return Fused(done.deltas, done.steps, facts | {"realigned_steps": done.kept})


def _check_arms(lab: Resilience) -> None:
    """Refuse arms that cannot be, and say which ones cannot do anything here."""
    options = lab.options
    arms = [options.protection, *(split_arm(arm)[0] for arm in options.sweep_protections if options.sweep_snr)]
    for arm in dict.fromkeys(arms):
        lab.protector.shield(arm, None, lab.setting.seed)
        if without_effect(arm, lab.embeddings):
            lab.say(f"{arm} has no effect by construction: no run changed the embeddings, so none are sent.")
    if any(arm in RANKED for arm in arms):
        sizes = lab.transmission.sizes
        whole = {name: sum(sizes[path] for path in paths) for name, paths in lab.protector.groups.items()}
        smallest = min(whole.values()) / sum(whole.values())
        if smallest > options.budget:
            message = (
                f"The budget of {options.budget:.0%} protects nothing: the smallest layer group is {smallest:.0%}."
            )
            lab.say(message, level="warning")


def _facts(lab: Resilience, received: Received, shield: Shield) -> dict[str, Any]:
    share = lab.transmission.protected_share(shield)
    lab.say(f"Relative MSE of the received updates: {received.relative_mse:.4g}; {share:.1%} of the entries protected.")
    facts = {"weights": lab.weights, "noise_seed": lab.setting.seed, "relative_mse": received.relative_mse}
    return facts | {"protected_share": share}


class _Teller:
    """Says the curve of realigning and how long it will go on."""

    def __init__(self, setting: Setting, steps: int) -> None:
        self.setting, self.steps, self.begun = setting, steps, time.monotonic()

    def __call__(self, step: int, values: dict[str, float]) -> None:
        left = (time.monotonic() - self.begun) / step * (self.steps - step)
        self.setting.sink.emit("metrics", step=step, values=values)
        self.setting.sink.emit("progress", step=step, total=self.steps, phase="realigning", seconds_left=round(left, 1))
