"""The loop of every learned fusion: steps, evaluations with guards, checkpoints, progress."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from core.errors import ConfigurationError
from core.fusion.delta import Delta
from core.fusion.learned.guards import PATIENCE, Guard
from core.fusion.learned.objective import Objective
from core.fusion.setting import Setting
from core.jobs.sinks import Cancelled
from core.training import checkpoints
from core.training.settings import fingerprint

TENSORS, BEST, FACTS = "learning.safetensors", "best.safetensors", "learning.json"
CHECKPOINTS, KEPT = 5, 2  # in a run; on disk


class Learner(Protocol):
    """What is learned, and one step of learning it. ``phase`` names it for people and in checkpoints."""

    phase: str

    def advance(self, step: int) -> None: ...

    def deltas(self) -> dict[str, Delta]:
        """The update of the base as it stands, without gradients; what is evaluated and kept."""
        ...

    def parameters(self) -> dict[str, Tensor]:
        """What the best evaluation is kept of."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None: ...

    def report(self, setting: Setting, step: int) -> dict[str, float]:
        """Its metrics; says its tables."""
        ...


@dataclass
class Resumed:
    """The newest checkpoint: where it stands and what it holds."""

    step: int
    phase: str
    tensors: dict[str, Tensor]
    best: dict[str, Tensor]
    guard: dict[str, Any]
    answers: dict[str, dict[str, list[int]]]


@dataclass
class Loop:
    """Runs learners one after the other over ``total`` steps."""

    setting: Setting
    objective: Objective
    total: int
    evaluate_every: int
    answers: dict[str, dict[str, list[int]]] = field(default_factory=dict)  # of experts: task -> number -> tokens
    resumed: Resumed | None = None
    guard: Guard = field(default_factory=Guard)
    _best: dict[str, Tensor] = field(default_factory=dict)
    _told: float = 0.0

    def __post_init__(self) -> None:
        if self.resumed is not None:
            self.guard, self._best = Guard(**self.resumed.guard), self.resumed.best

    def run(self, learner: Learner, begin: int, end: int) -> int:
        """Steps ``begin`` to ``end`` of the whole, or what is left of them; returns the last.

        Where an alert lasts, stops and goes back to the best evaluation. Raises Cancelled after a checkpoint.
        """
        step, resumed = begin, self.resumed
        if resumed is not None and resumed.phase == learner.phase:
            learner.load(resumed.tensors)
            step = resumed.step
        else:
            self.guard.begin_anew(step)
            self._keep(learner)
            if not begin:  # else the phase before has looked at the same model
                self._evaluate(learner, step)
        self.resumed = None
        began, first = time.monotonic(), step
        while step < end and not self.guard.stops:
            try:
                self.setting.check(step)
            except Cancelled:
                self._save(learner, step)
                raise
            learner.advance(step)
            step += 1
            if (step - begin) % self.evaluate_every == 0 or step == end:
                self._evaluate(learner, step)
            if step % max(1, self.total // CHECKPOINTS) == 0 and step < self.total:
                self._save(learner, step)
            self._progress(learner, step, began, first)
        return self._settle(learner, step)

    def _evaluate(self, learner: Learner, step: int) -> None:
        readings = self.objective.measure(learner.deltas())
        values = {"loss": sum(reading.loss for reading in readings.values())}
        for task, reading in readings.items():
            values[f"entropy/{task}"] = reading.entropy
            values[f"marginal_entropy/{task}"] = reading.marginal_entropy
            if reading.option_mass is not None:
                values[f"option_mass/{task}"] = reading.option_mass
        values |= learner.report(self.setting, step)
        self.setting.sink.emit("metrics", step=step, values=values)
        for name, message in self.guard.look(step, readings):
            self.setting.sink.emit("alarm", name=name, step=step, message=message)
        if self.guard.best_step == step:
            self._keep(learner)

    def _keep(self, learner: Learner) -> None:
        self._best = {name: value.detach().to("cpu", copy=True) for name, value in learner.parameters().items()}

    def _settle(self, learner: Learner, step: int) -> int:
        if not self.guard.stops:
            return step
        if step == self.guard.best_step and not self.guard.finite:
            raise ConfigurationError(
                "The entropy of the start is not finite, so nothing can be learned from it.",
                "Look at the fused runs, or lower method.options.start.",
            )
        for name, value in learner.parameters().items():
            value.detach().copy_(self._best[name])
        lasted = f"an alert lasted {PATIENCE} evaluations" if self.guard.finite else "the loss is not finite"
        message = f"Stopped {learner.phase} at step {step}: {lasted}. Kept step {self.guard.best_step}."
        self.setting.sink.emit("log", level="warning", message=message)
        return step

    def _progress(self, learner: Learner, step: int, began: float, first: int) -> None:
        now = time.monotonic()
        if now - self._told < 1 and step < self.total:
            return
        self._told = now
        left = round((now - began) / (step - first) * (self.total - step), 1)
        self.setting.sink.emit("progress", step=step, total=self.total, phase=learner.phase, seconds_left=left)

    def _save(self, learner: Learner, step: int) -> None:
        root = self.setting.folder.checkpoints
        facts = {"phase": learner.phase, "guard": self.guard.facts(), "answers": self.answers}

        def fill(folder: Path) -> None:
            checkpoints.save_tensors(folder / TENSORS, learner.state())
            checkpoints.save_tensors(folder / BEST, self._best)
            (folder / FACTS).write_text(json.dumps(facts), "utf-8")

        folder = checkpoints.write(root, step, fill, {"settings": _settings(self.setting)})
        checkpoints.prune(root, KEPT, after=step)
        self.setting.sink.emit("checkpoint", step=step, path=f"{root.name}/{folder.name}")


def resumed(setting: Setting) -> Resumed | None:
    """The newest whole checkpoint of this fusion, where it is to go on.

    Raises:
        ConfigurationError: it was made with other settings or of other runs.
    """
    if not setting.resume:
        return None
    for path, defect in checkpoints.newest(setting.folder.checkpoints):
        if defect:
            message = f"The checkpoint {path.name} cannot be used ({defect}); going back to the one before."
            setting.sink.emit("log", level="warning", message=message)
            continue
        if checkpoints.facts(path)["settings"] != _settings(setting):
            raise ConfigurationError(
                f"The checkpoint {path.name} was made with other settings than spec.json has now.",
                "Undo the change, or clone the run and start the clone.",
            )
        facts = json.loads((path / FACTS).read_text("utf-8"))
        tensors, best = (checkpoints.load_tensors(path / name) for name in (TENSORS, BEST))
        return Resumed(checkpoints.step_of(path), tensors=tensors, best=best, **facts)
    return None


def optimizer_state(optimizer: Optimizer, name: str) -> dict[str, Tensor]:
    """Its moments as flat tensors, named ``<name>.<parameter>.<moment>``."""
    entries = optimizer.state_dict()["state"].items()
    return {f"{name}.{index}.{key}": value for index, entry in entries for key, value in entry.items()}


def load_optimizer(optimizer: Optimizer, name: str, state: Mapping[str, Tensor]) -> None:
    found: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith(f"{name}."):
            index, moment = key.removeprefix(f"{name}.").split(".")
            found.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": found})


def _settings(setting: Setting) -> dict[str, Any]:
    return {"spec": fingerprint(setting.spec), "runs": setting.names}
