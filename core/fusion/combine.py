"""Ways to combine task vectors that learn nothing. Where PEFT has the function, PEFT computes it.

Sums of adapters stay factors. All else is computed on whole updates, never on the factors: entries of A and B mean
nothing across adapters (``B A = (B M)(M^-1 A)``), and ``combination_type="linear"`` of PEFT, which sums A and B each by
itself, is no task arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge, task_arithmetic
from torch import Tensor

from core.fusion.delta import Delta, TaskVector, paths_of, total
from core.fusion.methods.task_arithmetic import check_weights
from core.fusion.setting import Fused, Setting
from core.fusion.trimming import above, dropped, entries, largest, limit_of

if TYPE_CHECKING:
    from core.fusion.methods.dare import DareOptions, DareTiesOptions
    from core.fusion.methods.magnitude_prune import MagnitudePruneOptions
    from core.fusion.methods.task_arithmetic import TaskArithmeticOptions
    from core.fusion.methods.ties import TiesOptions

Thin = Callable[[int, Tensor], Tensor]  # number of the run, its update -> what is left of it
Merge = Callable[[list[Tensor], Tensor], Tensor]  # an update of each run, their weights -> one update


def default_coefficient(runs: int) -> float:
    """Task vectors add up, so the more there are the less each may count."""
    return {1: 1.0, 2: 0.5, 3: 0.4}.get(runs, 0.3)


def weights_of(options: TaskArithmeticOptions, names: Sequence[str], default: float | None = None) -> list[float]:
    """A weight for each run: the ones given, else the one coefficient, else ``default``."""
    check_weights(options, names)
    usual = default_coefficient(len(names)) if default is None else default
    return options.weights or [usual if options.coefficient is None else options.coefficient] * len(names)


def weighted_sum(vectors: Sequence[TaskVector], weights: Sequence[float]) -> dict[str, Delta]:
    """``sum_k w_k tau_k`` on every projection."""
    return {
        path: total(
            [vector.deltas[path].scaled(w) for vector, w in zip(vectors, weights, strict=True) if path in vector.deltas]
        )
        for path in paths_of(vectors)
    }


def weighted(setting: Setting, weights: Sequence[float]) -> Fused:
    """The weighted sum of the runs' task vectors."""
    setting.check()
    _say(setting, weights)
    return Fused(weighted_sum(setting.vectors, weights), facts={"weights": list(weights)})


def magnitude_prune(setting: Setting, options: MagnitudePruneOptions) -> Fused:
    """The weighted sum of what is left when the smallest entries are taken away; nothing is rescaled."""
    weights = weights_of(options, setting.names)
    fused = _each(setting, weights, _trimming(setting, options), task_arithmetic)
    _say(setting, weights)
    return Fused(fused, facts={"weights": weights})


def ties(setting: Setting, options: TiesOptions) -> Fused:
    """Trim, elect a sign for every entry, merge what has it (Yadav et al. 2023, algorithm 1)."""
    weights = weights_of(options, setting.names, _usual(options))
    fused = _each(setting, weights, _trimming(setting, options), _agreeing(options))
    return Fused(fused, facts={"weights": weights})


def dare_linear(setting: Setting, options: DareOptions) -> Fused:
    """The weighted sum of updates that are dropped at random and rescaled."""
    weights = weights_of(options, setting.names)
    with _drawing(setting):
        fused = _each(setting, weights, _dropping(options), task_arithmetic)
    _say(setting, weights)
    return Fused(fused, facts={"weights": weights, "seed": setting.seed})


def dare_ties(setting: Setting, options: DareTiesOptions) -> Fused:
    """Random dropping in place of the trimming of TIES."""
    weights = weights_of(options, setting.names, _usual(options))
    with _drawing(setting):
        fused = _each(setting, weights, _dropping(options), _agreeing(options))
    return Fused(fused, facts={"weights": weights, "seed": setting.seed})


def elected(tensors: list[Tensor], weights: Tensor, merge: str = "mean", majority: str = "total") -> Tensor:
    """Per entry, the updates that have the majority's sign: their weighted sum, or that divided by their number.

    The vote is unweighted and a tie counts as positive, as in PEFT; entries that are zero neither vote nor count. So
    a weight scales what a run adds and does not move the mean's divisor.
    """
    stacked = torch.stack(tensors)
    chosen = calculate_majority_sign_mask(stacked, method=majority)
    scaled = stacked * weights.view(-1, *[1] * (stacked.dim() - 1))
    return disjoint_merge(scaled, chosen) if merge == "mean" else (scaled * chosen).sum(0)


def _usual(options: TiesOptions | DareTiesOptions) -> float:
    """A mean of runs may count fully, a sum of them may not."""
    return 1.0 if options.merge == "mean" else 0.3


def _agreeing(options: TiesOptions | DareTiesOptions) -> Merge:
    return lambda tensors, weights: elected(tensors, weights, options.merge, options.majority_sign)


def _each(setting: Setting, weights: Sequence[float], thin: Thin, merge: Merge) -> dict[str, Delta]:
    """``merge`` of the thinned whole updates of every projection, one projection at a time on the device."""
    paths, fused = paths_of(setting.vectors), {}
    factors = torch.tensor(weights, dtype=torch.float32, device=setting.device)
    with torch.no_grad():
        for number, path in enumerate(paths):
            setting.check()
            tensors = [thin(run, tensor) for run, tensor in enumerate(_dense(setting, path))]
            fused[path] = Delta(merge(tensors, factors).cpu())
            setting.sink.emit("progress", step=number + 1, total=len(paths), phase="fusing", seconds_left=None)
    return fused


def _dense(setting: Setting, path: str) -> list[Tensor]:
    """Every run's whole update of a projection, on the device; zeros where it has none."""
    shape = next(vector.deltas[path].shape for vector in setting.vectors if path in vector.deltas)
    return [
        vector.deltas[path].to(setting.device).dense()
        if path in vector.deltas
        else torch.zeros(shape, device=setting.device)
        for vector in setting.vectors
    ]


def _dropping(options: DareOptions | DareTiesOptions) -> Thin:
    return lambda run, tensor: dropped(tensor, options.density)


def _trimming(setting: Setting, options: TiesOptions | MagnitudePruneOptions) -> Thin:
    """Largest entries: of each projection, or of a whole run, in which a projection it does not touch is all zeros."""
    if options.trim == "tensor" or options.density >= 1:
        return lambda run, tensor: largest(tensor, options.density)
    keep = max(1, int(options.density * entries(setting.vectors)))
    limits = []
    for vector in setting.vectors:
        setting.check()
        limits.append(limit_of(vector, keep, setting.device))
    return lambda run, tensor: above(tensor, limits[run])


@contextmanager
def _drawing(setting: Setting) -> Iterator[None]:
    """Draws from the run's seed, the same each time on one kind of device, and leaves the caller's state alone."""
    device = torch.device(setting.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(setting.seed)
        yield


def _say(setting: Setting, weights: Sequence[float]) -> None:
    rows = [[name, weight] for name, weight in zip(setting.names, weights, strict=True)]
    setting.table("coefficients", ["run", "all"], rows)
