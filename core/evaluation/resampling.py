"""Bootstrap resamples as weights: how often each row was drawn."""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000
SEED = 20_240


def bootstrap_weights(rows: int, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """(resamples, rows) counts, each line summing to ``rows``; the same for the same arguments, so they pair."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(np.float64)
