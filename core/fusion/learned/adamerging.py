"""AdaMerging and AdaMerging++: coefficients of task vectors by entropy on unlabelled prompts (arXiv:2310.02575)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from core.fusion.delta import Delta, TaskVector, paths_of
from core.fusion.learned.expert_answers import write_answers
from core.fusion.learned.guards import Guard
from core.fusion.learned.loop import Loop, load_optimizer, optimizer_state, resumed
from core.fusion.learned.objective import Objective, pull
from core.fusion.learned.prompts import TaskPrompts
from core.fusion.learned.sums import Coefficients, Part, parts_of
from core.fusion.setting import Fused, Setting
from core.fusion.trimming import above, entries, limit_of

if TYPE_CHECKING:
    from core.fusion.methods.adamerging import AdaMergingOptions, AdaMergingPPOptions
    from core.fusion.methods.learned import LearnedOptions

USUAL_START = 0.3  # of four runs or more


def adamerging(setting: Setting, options: AdaMergingOptions) -> Fused:
    """Learn the coefficients of the runs' task vectors; the result is their weighted sum, exactly."""
    return _learn(setting, options, parts_of(setting.vectors, setting.device))


def adamerging_pp(setting: Setting, options: AdaMergingPPOptions) -> Fused:
    """The same on whole task vectors that were trimmed and freed of what contradicts the elected signs."""
    with torch.no_grad():
        vectors = agreeing(setting.vectors, options.density, setting.device, exact=options.trim == "exact")
        parts: dict[str, Part] = {}
        for path in paths_of(vectors):  # so that the matrices are held twice for one projection at a time
            taken = [{path: vector.deltas.pop(path)} if path in vector.deltas else {} for vector in vectors]
            parts |= parts_of(
                [TaskVector(vector.name, deltas) for vector, deltas in zip(vectors, taken, strict=True)], setting.device
            )
    return _learn(setting, options, parts)


def _learn(setting: Setting, options: AdaMergingOptions, parts: dict[str, Part]) -> Fused:
    loop = loop_of(setting, options, options.steps)
    learner = CoefficientLearner(
        parts,
        coefficients_of(setting, parts, options),
        loop.objective,
        learning_rate=options.learning_rate,
        batches_per_step=options.batches_per_step,
    )
    step = loop.run(learner, 0, options.steps)
    return Fused(learner.fused(), step=step, facts=facts_of(setting, options, learner.coefficients))


class CoefficientLearner:
    """Adam on the coefficients; ``masks``: what each projection's sum is multiplied by (Concrete), None: by nothing."""

    phase = "learning coefficients"

    def __init__(
        self,
        parts: dict[str, Part],
        coefficients: Coefficients,
        objective: Objective,
        *,
        learning_rate: float,
        batches_per_step: int = 1,
        masked: Callable[[str, Delta], Delta] = lambda path, delta: delta,
    ) -> None:
        self.parts, self.coefficients, self.objective = parts, coefficients, objective
        self.batches, self._masked = batches_per_step, masked
        self.optimizer = torch.optim.Adam([coefficients.values], lr=learning_rate)

    def advance(self, step: int) -> None:
        self.optimizer.zero_grad()
        made = self._made()
        draws = range(step * self.batches, (step + 1) * self.batches)
        pull(made, self.objective.gradients(made, draws))
        self.optimizer.step()
        self.coefficients.project()

    @torch.no_grad()
    def deltas(self) -> dict[str, Delta]:
        return self._made()

    def fused(self) -> dict[str, Delta]:
        """On the CPU."""
        return {path: delta.to("cpu") for path, delta in self.deltas().items()}

    def parameters(self) -> dict[str, Tensor]:
        return {"coefficients": self.coefficients.values}

    def state(self) -> dict[str, Tensor]:
        return {"coefficients": self.coefficients.values.detach(), **optimizer_state(self.optimizer, "adam")}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.coefficients.values.detach().copy_(state["coefficients"])
        load_optimizer(self.optimizer, "adam", state)

    def report(self, setting: Setting, step: int) -> dict[str, float]:
        setting.table("coefficients", ["run", *self.coefficients.labels], self.coefficients.rows(), step)
        return self.coefficients.metrics()

    def _made(self) -> dict[str, Delta]:
        weights = self.coefficients
        return {path: self._masked(path, part.weighted(weights.of(path, part))) for path, part in self.parts.items()}


def loop_of(setting: Setting, options: LearnedOptions, total: int) -> Loop:
    """The loop of a learned fusion with its objective, and where a stopped one goes on."""
    before = resumed(setting)
    objective = objective_of(setting, options)
    answers = write_answers(setting, objective, before.answers if before else {})
    guard = Guard(patient=options.on_alert == "continue")
    return Loop(setting, objective, total, options.evaluate_every, answers=answers, resumed=before, guard=guard)


def objective_of(setting: Setting, options: LearnedOptions) -> Objective:
    """The entropy of the answers to the prompts of all tasks. Raises DataError where a task has none."""
    limit, count, seed = setting.max_length, options.prompt_rows, setting.seed
    tasks = [
        TaskPrompts(task, setting.encoder, options.prompts, limit=limit, count=count, seed=seed)
        for task in setting.tasks
    ]
    return Objective(
        setting.candidate,
        tasks,
        pad_id=setting.encoder.pad_id,
        kind=options.loss,
        batch_size=options.batch_size,
        normalise=options.normalise,
        mass_weight=options.mass_weight,
    )


def coefficients_of(setting: Setting, parts: dict[str, Part], options: AdaMergingOptions) -> Coefficients:
    start = options.start
    if start is None:
        start = USUAL_START if len(setting.vectors) > 3 else 1 / len(setting.vectors)
    return Coefficients(parts, setting.names, options.granularity, start, options.clamp)


def facts_of(setting: Setting, options: LearnedOptions, coefficients: Coefficients) -> dict[str, Any]:
    """What the adapter's config says of how it was learned."""
    return {
        "seed": setting.seed,
        "prompts": options.prompts,
        "transductive": options.prompts == "test",
        "columns": coefficients.labels,
        "coefficients": {name: values for name, *values in coefficients.rows()},
    }


def agreeing(
    vectors: Sequence[TaskVector], density: float, device: str | torch.device, *, exact: bool = False
) -> list[TaskVector]:
    """AdaMerging++'s task vectors, as whole matrices: trimmed, then zero where they oppose the elected sign.

    The ``density`` largest entries of each run are kept, of all projections together, with zeros where only other runs
    have one; as in the published code that is one entry more (and those that equal it), unless ``exact``. The sign of
    an entry is that of the trimmed sum; where that is zero, the sign that most entries were given. Nothing is averaged.
    """
    keep = max(1, int(density * entries(vectors)) + (not exact))
    limits = [limit_of(vector, keep, device) for vector in vectors]
    shapes = {path: vector.deltas[path].shape for vector in vectors for path in vector.deltas}

    def trimmed(path: str) -> dict[int, Tensor]:
        return {
            number: above(vector.deltas[path].to(device).dense(), limits[number])
            for number, vector in enumerate(vectors)
            if path in vector.deltas
        }

    majority = torch.stack([sum(trimmed(path).values()).sign().sum() for path in shapes]).sum().sign()
    kept: list[dict[str, Delta]] = [{} for _ in vectors]
    for path in paths_of(vectors):
        here = trimmed(path)
        elected = sum(here.values()).sign()
        elected = torch.where(elected == 0, majority, elected)
        for number, tensor in here.items():
            kept[number][path] = Delta(torch.where(tensor.sign() == elected, tensor, 0))
    return [TaskVector(vector.name, deltas) for vector, deltas in zip(vectors, kept, strict=True)]
