"""Weight averaging and task arithmetic: weighted sums of task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from core.errors import ConfigurationError

from .base import FusionMethod, FusionOptions, refuse_factors

if TYPE_CHECKING:
    from core.data.tasks import Task
    from core.fusion.setting import Fused, Setting


class TaskArithmeticOptions(FusionOptions):
    coefficient: float | None = Field(
        None,
        ge=-1000,
        le=1000,
        description="Weight of every task vector; empty: 1, 0.5, 0.4 for one, two, three runs, 0.3 for more.",
    )
    weights: list[float] = Field(
        default_factory=list, description="A weight for each run in order, in place of the one coefficient."
    )


def check_weights(options: TaskArithmeticOptions, names: Sequence[str], tasks: Sequence[Task] = ()) -> None:
    """Raises ConfigurationError where the weights are not one for each run, or all 0."""
    if options.weights and len(options.weights) != len(names):
        raise ConfigurationError(
            f"method.options.weights has {len(options.weights)} weights for {len(names)} runs ({', '.join(names)}).",
            "Give one for each run, in their order, or leave it empty and set coefficient.",
        )
    if options.weights and not any(options.weights):
        raise ConfigurationError(
            "method.options.weights are all 0, so that nothing would be added to the base.",
            "Give at least one run another weight.",
        )


def check_entries(options: TaskArithmeticOptions, names: Sequence[str], tasks: Sequence[Task] = ()) -> None:
    """For methods that change single entries; raises ConfigurationError too where factors are asked for."""
    check_weights(options, names)
    refuse_factors(options)


def average(setting: Setting, options: FusionOptions) -> Fused:
    from ..combine import weighted

    return weighted(setting, [1 / len(setting.vectors)] * len(setting.vectors))


def task_arithmetic(setting: Setting, options: TaskArithmeticOptions) -> Fused:
    from ..combine import weighted, weights_of

    return weighted(setting, weights_of(options, setting.names))


METHODS = (
    FusionMethod(
        name="average",
        title="Weight averaging",
        summary="The mean of the fine-tuned weights: every task vector counts 1/K.",
        source="Wortsman et al. 2022 (model soups), arXiv:2203.05482",
        options=FusionOptions,
        fuse=average,
    ),
    FusionMethod(
        name="task_arithmetic",
        title="Task arithmetic",
        summary="The base plus the sum of all task vectors, each times one coefficient.",
        source="Ilharco et al. 2023, arXiv:2212.04089",
        options=TaskArithmeticOptions,
        fuse=task_arithmetic,
        check=check_weights,
    ),
)
