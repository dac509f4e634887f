"""Concrete Task Arithmetic and Concrete AdaMerging: one learned mask for all task vectors (arXiv:2312.06173)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core.fusion.delta import Delta
from core.fusion.learned.adamerging import CoefficientLearner, coefficients_of, facts_of, loop_of
from core.fusion.learned.loop import load_optimizer, optimizer_state
from core.fusion.learned.masks import FinalMask, Masks, StructuredMasks
from core.fusion.learned.objective import Objective, pull
from core.fusion.learned.sums import Coefficients, Part, parts_of
from core.fusion.setting import Fused, Setting

if TYPE_CHECKING:
    from core.fusion.methods.concrete import ConcreteAdaMergingOptions, ConcreteOptions

FINAL = "final"  # begins the keys of masks that are kept
DRAWS = 3  # of the final mask, to see how much it matters which


def concrete_task_arithmetic(setting: Setting, options: ConcreteOptions) -> Fused:
    """Learn the mask with one fixed coefficient for all runs."""
    parts = parts_of(setting.vectors, setting.device)
    fixed = Coefficients(parts, setting.names, "task", options.start, "none")
    fixed.values.requires_grad_(False)
    loop = loop_of(setting, options, options.steps)
    learner = MaskLearner(parts, _masks(setting, options, parts), fixed, loop.objective, options)
    step = loop.run(learner, 0, options.steps)
    _say_spread(setting, loop.objective, learner, options)
    deltas = {path: delta.to("cpu") for path, delta in learner.deltas().items()}
    return Fused(deltas, step=step, facts=facts_of(setting, options, fixed) | _facts(options))


def concrete_adamerging(setting: Setting, options: ConcreteAdaMergingOptions) -> Fused:
    """Learn the mask, each step with coefficients that took one step of their own; then the coefficients on it."""
    parts, total = parts_of(setting.vectors, setting.device), options.steps + options.coefficient_steps
    loop = loop_of(setting, options, total)
    masks = _masks(setting, options, parts)
    coefficients = coefficients_of(setting, parts, options)
    if loop.resumed is None or loop.resumed.phase != MaskedCoefficients.phase:
        inner = Inner(coefficients, options.base_learning_rate, options.stale_inner)
        first = MaskLearner(parts, masks, coefficients, loop.objective, options, inner)
        loop.run(first, 0, options.steps)
        _say_spread(setting, loop.objective, first, options)
        coefficients.reset()
    learner = MaskedCoefficients(parts, masks, coefficients, loop.objective, options)
    step = loop.run(learner, options.steps, total)
    return Fused(learner.fused(), step=step, facts=facts_of(setting, options, coefficients) | _facts(options))


class Inner:
    """The lower level: one step of Adam on the coefficients, from their start each time, its moments kept.

    ``stale``: the gradient is that of the coefficients of the step before, as in the published code, which resets them
    without merging anew.
    """

    def __init__(self, coefficients: Coefficients, learning_rate: float, stale: bool = False) -> None:
        self.coefficients, self.stale = coefficients, stale
        self.optimizer = torch.optim.Adam([coefficients.values], lr=learning_rate)

    def step(self, parts: Mapping[str, Part], masks: Masks, objective: Objective, draw: int) -> None:
        """Leaves the coefficients where one step takes them under the mask that is drawn."""
        weights = self.coefficients
        self.optimizer.zero_grad()
        if not self.stale:
            weights.reset()
        made = {path: masks.apply(path, part.weighted(weights.of(path, part))) for path, part in parts.items()}
        pull(made, objective.gradients(made, [draw]))
        weights.reset()
        self.optimizer.step()
        weights.project()


class MaskLearner:
    """The upper level: Adam on the mask's logits, with coefficients that are constant in its gradient (first order).

    The same sample serves both levels; the levels read different batches.
    """

    phase = "learning the mask"

    def __init__(
        self,
        parts: dict[str, Part],
        masks: Masks,
        coefficients: Coefficients,
        objective: Objective,
        options: ConcreteOptions,
        inner: Inner | None = None,
    ) -> None:
        self.parts, self.masks, self.coefficients, self.objective = parts, masks, coefficients, objective
        self.inner, self._final = inner, options.final_mask
        self.optimizer = torch.optim.Adam(masks.logits.values(), lr=options.learning_rate, fused=True)

    def advance(self, step: int) -> None:
        self.masks.draw(f"step {step}")
        if self.inner is not None:
            self.inner.step(self.parts, self.masks, self.objective, 2 * step)
        with torch.no_grad():
            made = self._made()
        for delta in made.values():
            for tensor in filter(lambda tensor: tensor is not None, (delta.up, delta.down)):
                tensor.requires_grad_()
        gradients = self.objective.gradients(made, [step if self.inner is None else 2 * step + 1])
        del made
        with torch.no_grad():
            for path, part in self.parts.items():
                self.masks.learn_from(path, self._sum(path, part), gradients.pop(path))
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def deltas(self, draw: int = 0) -> dict[str, Delta]:
        """With the final mask, sample ``draw`` of it, and the coefficients' start where they are only a step's."""
        self.masks.draw(f"{FINAL} {draw}", self._final)
        if self.inner is None:
            return self._made()
        start = torch.full_like(self.coefficients.values, self.coefficients.start)
        return {
            path: self.masks.apply(path, part.weighted(start[part.runs, self.coefficients.column[path]]))
            for path, part in self.parts.items()
        }

    def parameters(self) -> dict[str, Tensor]:
        return {f"logits {name}": logits for name, logits in self.masks.logits.items()}

    def state(self) -> dict[str, Tensor]:
        state = {name: logits.detach() for name, logits in self.parameters().items()}
        state |= optimizer_state(self.optimizer, "meta")
        if self.inner is not None:
            state |= {"coefficients": self.coefficients.values.detach()} | optimizer_state(self.inner.optimizer, "base")
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        load_logits(self.masks, state)
        load_optimizer(self.optimizer, "meta", state)
        if self.inner is not None:
            self.coefficients.values.detach().copy_(state["coefficients"])
            load_optimizer(self.inner.optimizer, "base", state)

    def report(self, setting: Setting, step: int) -> dict[str, float]:
        values = report_density(self.masks, setting, step)
        setting.table("coefficients", ["run", *self.coefficients.labels], self.coefficients.rows(), step)
        return values | self.coefficients.metrics()

    def _made(self) -> dict[str, Delta]:
        return {path: self.masks.apply(path, self._sum(path, part)) for path, part in self.parts.items()}

    def _sum(self, path: str, part: Part) -> Delta:
        return part.weighted(self.coefficients.of(path, part).detach())


class MaskedCoefficients(CoefficientLearner):
    """Phase two of Concrete AdaMerging: coefficients on task vectors under one mask that stays."""

    phase = "learning coefficients under the mask"

    def __init__(
        self,
        parts: dict[str, Part],
        masks: Masks,
        coefficients: Coefficients,
        objective: Objective,
        options: ConcreteAdaMergingOptions,
    ) -> None:
        super().__init__(
            parts,
            coefficients,
            objective,
            learning_rate=options.coefficient_learning_rate,
            batches_per_step=options.batches_per_step,
            masked=masks.apply,
        )
        self.masks, self._final = masks, options.final_mask
        masks.draw(f"{FINAL} 0", self._final)

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"logits {name}": logits.detach() for name, logits in self.masks.logits.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        load_logits(self.masks, state)
        self.masks.draw(f"{FINAL} 0", self._final)
        super().load(state)

    def report(self, setting: Setting, step: int) -> dict[str, float]:
        return super().report(setting, step) | report_density(self.masks, setting, step)


def load_logits(masks: Masks, state: Mapping[str, Tensor]) -> None:
    for name, logits in masks.logits.items():
        logits.detach().copy_(state[f"logits {name}"])


def report_density(masks: Masks, setting: Setting, step: int) -> dict[str, float]:
    mean, rows = masks.density()
    setting.table("mask_density", ["path", "mean", "above_half"], rows, step)
    return {"mask_density": mean}


def _masks(setting: Setting, options: ConcreteOptions, parts: dict[str, Part]) -> Masks:
    kind = StructuredMasks if options.mask == "structured" else Masks
    return kind(parts, options.temperature, setting.seed)


def _say_spread(setting: Setting, objective: Objective, learner: MaskLearner, options: ConcreteOptions) -> None:
    """How much the result depends on the draw of the final mask: the loss on the same prompts under several."""
    if options.final_mask == "expected":
        return
    losses = [
        sum(reading.loss for reading in objective.measure(learner.deltas(draw)).values()) for draw in range(DRAWS)
    ]
    shown = ", ".join(f"{loss:.4f}" for loss in losses)
    message = (
        f"Loss under {DRAWS} draws of the final mask: {shown} (standard deviation {statistics.stdev(losses):.4f})."
    )
    setting.sink.emit("log", level="info", message=f"{message} The first is kept.")


def _facts(options: ConcreteOptions) -> dict[str, str]:
    kind: FinalMask = options.final_mask
    label = "structured Concrete (not the published method)" if options.mask == "structured" else "Concrete"
    return {"mask": label, "final_mask": kind}
