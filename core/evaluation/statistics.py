"""Errors of scores and of differences between scores. Numpy only.

The standard error of a mean is ``s / sqrt(n)`` with the sample standard deviation ``s`` (``n - 1`` below). For values
of 0 and 1 with mean ``p`` that is exactly ``sqrt(p (1 - p) / (n - 1))``. A score of which every row is 0, or every row
is 1, would get an error of nothing by that formula, as if more rows could not change it; see ``unanimous_error``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.errors import ConfigurationError, DataError
from core.evaluation.metrics import Metric, get
from core.evaluation.predictions import Predictions
from core.evaluation.resampling import bootstrap_weights

PERMUTATIONS = 10_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error (None where one row says nothing about it)."""

    value: float
    stderr: float | None
    rows: int


@dataclass(frozen=True, slots=True)
class Difference:
    """``a - b`` on the same rows. ``wins`` and ``losses``: rows where a is above, below b; None without row values."""

    metric: str
    value: float
    stderr: float | None
    p_value: float
    test: str  # mcnemar, sign-flip or bootstrap
    rows: int
    wins: int | None = None
    losses: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Seeds of one setting: mean, sample standard deviation (None for one seed), number of seeds."""

    mean: float
    std: float | None
    n: int


def mean_error(values: Sequence[float]) -> Estimate:
    """Mean and standard error over rows."""
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        raise DataError("There are no rows to score.", "Choose a split that has rows.")
    error = float(array.std(ddof=1) / math.sqrt(array.size)) if array.size > 1 else None
    return Estimate(float(array.mean()), error, array.size)


def unanimous_error(n: int) -> float:
    """The standard error of a score whose ``n`` rows all lie at the same end of its range: as if half a row did not.

    ``sqrt(p (1 - p) / (n + 1))`` with ``p = (n + 1/2) / (n + 1)``, the mean under Jeffreys' prior.
    """
    p = (n + 0.5) / (n + 1)
    return math.sqrt(p * (1 - p) / (n + 1))


def group_seeds(values: Sequence[float]) -> Group:
    """The scores of the seeds of one setting as one row of a table."""
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        raise DataError("A group of seeds needs at least one score.")
    return Group(float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None, array.size)


def estimate(metric: Metric, predictions: Predictions) -> Estimate:
    """The score that a metric gives to a set of answers; its value lies between 0 and 1."""
    rows = metric.corpus is None
    found = mean_error(predictions.values[metric.name]) if rows else corpus_estimate(metric, predictions)
    unanimous = found.rows > 1 and found.value in (0, 1)
    return replace(found, stderr=unanimous_error(found.rows)) if unanimous else found


def corpus_estimate(metric: Metric, predictions: Predictions) -> Estimate:
    """A metric over all rows at once; its standard error is the bootstrap's, over rows, with a fixed seed."""
    n = len(predictions.answers)
    if not n:
        raise DataError("There are no rows to score.", "Choose a split that has rows.")
    value = float(metric.corpus(predictions.answers, np.ones((1, n)))[0])
    if n == 1:
        return Estimate(value, None, 1)
    return Estimate(value, float(metric.corpus(predictions.answers, bootstrap_weights(n)).std(ddof=1)), n)


def compare(a: Predictions, b: Predictions, metric: str) -> Difference:
    """The paired difference ``a - b`` of two models on the same rows.

    Means of 0/1 values are tested with the exact McNemar test, other means by flipping the signs of the rows'
    differences; metrics over all rows at once (macro F1, BLEU) by a paired bootstrap. All p-values are two-sided.
    Raises ConfigurationError where the two were not scored on the same rows in the same way.
    """
    return compare_seeds([a], [b], metric)


def compare_seeds(a: Sequence[Predictions], b: Sequence[Predictions], metric: str) -> Difference:
    """As ``compare``, for the seeds of two settings: rows (or resamples) are averaged over the seeds first.

    The error is that of the rows alone: it says nothing about other seeds.
    """
    everyone = [*a, *b]
    if any(other.key != a[0].key or other.rows != a[0].rows for other in everyone):
        raise ConfigurationError(
            "These scores cannot be paired: their rows, prompts or scoring options differ.",
            "Score the runs on the same data set, split, template and options.",
        )
    chosen = get(metric)
    if chosen.corpus is not None:
        return _paired_bootstrap(chosen, a, b)
    for predictions in everyone:
        if metric not in predictions.values:
            raise ConfigurationError(
                f"These predictions were not scored by {metric}.", f"They have: {', '.join(predictions.values)}."
            )
    return paired(metric, *(np.mean([one.values[metric] for one in side], axis=0) for side in (a, b)))


def paired(metric: str, a: Sequence[float], b: Sequence[float]) -> Difference:
    """The difference of two means over the same rows, with the standard error of the rows' differences."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ConfigurationError(f"Paired scores need the same rows; there are {first.size} and {second.size}.")
    difference = first - second
    mean = mean_error(difference)
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    binary = bool(np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all())
    p = mcnemar(wins, losses) if binary else sign_flip(difference)
    return Difference(metric, mean.value, mean.stderr, p, "mcnemar" if binary else "sign-flip", mean.rows, wins, losses)


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided exact McNemar test: the binomial probability of a split as uneven as this one among unequal rows."""
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, float(2 * tail / 2**n)) if n else 1.0


def sign_flip(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided sign-flip test of a zero mean: exact up to 12 unequal rows, else from 10,000 drawn sign patterns."""
    unequal = differences[differences != 0]
    if not unequal.size:
        return 1.0
    observed = abs(unequal.sum()) * (1 - 1e-12)  # sums of the same numbers in another order differ in the last bit
    if unequal.size <= 12:
        bits = np.arange(2**unequal.size)[:, None] >> np.arange(unequal.size) & 1
        return float((np.abs((2.0 * bits - 1) @ unequal) >= observed).mean())
    generator = np.random.default_rng(seed)
    hits = 0
    for _ in range(10):  # in parts, so that thousands of rows stay small in memory
        signs = generator.integers(0, 2, (PERMUTATIONS // 10, unequal.size), dtype=np.int8) * 2.0 - 1
        hits += int((np.abs(signs @ unequal) >= observed).sum())
    return (hits + 1) / (PERMUTATIONS + 1)


def _paired_bootstrap(metric: Metric, a: Sequence[Predictions], b: Sequence[Predictions]) -> Difference:
    n = len(a[0].answers)
    weights = np.vstack([np.ones((1, n)), bootstrap_weights(n)])  # the rows as they are, then resamples
    first, second = (np.mean([metric.corpus(one.answers, weights) for one in side], axis=0) for side in (a, b))
    value, drawn = float(first[0] - second[0]), first[1:] - second[1:]
    below, above = ((drawn <= 0).sum() + 1) / (drawn.size + 1), ((drawn >= 0).sum() + 1) / (drawn.size + 1)
    error = float(drawn.std(ddof=1)) if n > 1 else None
    return Difference(metric.name, value, error, min(1.0, float(2 * min(below, above))), "bootstrap", n)
