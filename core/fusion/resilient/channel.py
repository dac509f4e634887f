"""The channel that task vectors cross: noise by SNR, what a jammer makes of its budget, and the receiver.

Studio specification, after the abstract of arXiv 2411.18220: its formulas and SNR values could not be read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

HALVINGS = 200  # of the interval of the multiplier, in its logarithm: past the precision of float64


@dataclass(frozen=True)
class Channel:
    """``snr`` in dB, None: nothing is lost. ``common_noise``: against the mean power of all users, not each one's own.

    ``shrinkage``: the receiver scales what it hears to the least mean squared error, knowing the SNR and no attack.
    """

    snr: float | None
    attack: str = "awgn"  # ideal, awgn, worst_sum, worst_strongest
    transmission: str = "delta"  # or factors
    common_noise: bool = False
    shrinkage: bool = False
    seed: int = 0

    @property
    def ideal(self) -> bool:
        return self.snr is None or self.attack == "ideal"


def noise_variance(power: float, snr: float) -> float:
    """The variance of noise that a signal of mean square ``power`` is ``snr`` dB above."""
    return power * 10 ** (-snr / 10)


def normal(shape: Sequence[int], seed: int, *names: object, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal entries that depend on ``seed`` and ``names`` alone (and on the kind of device).

    The same entries serve every SNR, attack and protection, so that these are compared on the same noise.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(tuple(shape), generator=generator, device=device)


def shrinkage_weight(power: float, designed: float) -> float:
    """What a linear receiver multiplies a noisy entry with to the least mean squared error: ``P / (P + sigma^2)``."""
    return power / (power + designed) if power else 1.0


def worst_noise(
    signal: Sequence[float], budget: float, *, thermal: float = 0.0, sizes: Sequence[float] | None = None
) -> np.ndarray:
    """The noise powers ``n`` that minimise ``sum d log(1 + s / (n + v))`` with ``sum d n = budget``.

    ``signal``: eigenvalues or mean powers ``s``; ``sizes``: entries ``d`` of each (1); ``thermal``: ``v``.
    The stationary points are ``n = max(0, z - v)`` with ``s / (z (z + s)) = mu``; mu is found by bisection.
    """
    s = np.asarray(signal, dtype=np.float64)
    d = np.ones_like(s) if sizes is None else np.asarray(sizes, dtype=np.float64)
    if budget <= 0 or not s.any():
        return np.zeros_like(s)

    def noise(log_mu: float) -> np.ndarray:
        z = 2 * s * math.exp(-log_mu) / (np.sqrt(s * s + 4 * s * math.exp(-log_mu)) + s + (s == 0))  # no cancellation
        return np.maximum(0.0, z - thermal)

    positive, most = s[s > 0], budget / d[s > 0].min() + thermal
    low = math.log(positive.min()) - 2 * math.log(most + positive.max())  # each alone would take the whole budget
    high = math.log(d.sum() / budget)  # each takes less than an equal share
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(d @ noise(middle)) > budget else (low, middle)
    found = noise((low + high) / 2)
    return found * (budget / float(d @ found))
