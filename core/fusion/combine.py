"""Ways to combine task vectors that learn nothing. Where PEFT has the function, PEFT computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.errors import ConfigurationError
from core.fusion.delta import Delta, TaskVector, paths_of, total
from core.fusion.setting import Fused, Setting

if TYPE_CHECKING:
    from core.fusion.methods.task_arithmetic import TaskArithmeticOptions


def default_coefficient(runs: int) -> float:
    """Task vectors add up, so the more there are the less each may count."""
    return {1: 1.0, 2: 0.5, 3: 0.4}.get(runs, 0.3)


def weights_of(options: TaskArithmeticOptions, names: Sequence[str]) -> list[float]:
    if not options.weights:
        given = options.coefficient
        return [default_coefficient(len(names)) if given is None else given] * len(names)
    if len(options.weights) != len(names):
        raise ConfigurationError(
            f"method.options.weights has {len(options.weights)} weights for {len(names)} runs ({', '.join(names)}).",
            "Give one for each run, in their order, or leave it empty and set coefficient.",
        )
    return options.weights


def weighted_sum(vectors: Sequence[TaskVector], weights: Sequence[float]) -> dict[str, Delta]:
    """``sum_k w_k tau_k`` on every projection."""
    return {
        path: total(
            [vector.deltas[path].scaled(w) for vector, w in zip(vectors, weights, strict=True) if path in vector.deltas]
        )
        for path in paths_of(vectors)
    }


def weighted(setting: Setting, weights: Sequence[float]) -> Fused:
    return Fused(weighted_sum(setting.vectors, weights), facts={"weights": list(weights)})
