"""Task vectors on the air: what is sent, how much noise reaches each part of it, and what the server makes of it.

In ``delta`` mode every entry of an update is sent, in ``factors`` mode the entries of its two factors, each with the
SNR of its own power. The product of noisy factors is not Gaussian: the two are different experiments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from core.errors import ConfigurationError
from core.fusion.combine import weighted_sum
from core.fusion.delta import Delta, TaskVector, paths_of, total
from core.fusion.resilient.channel import Channel, noise_variance, normal, shrinkage_weight, worst_noise
from core.fusion.resilient.protection import Shield


@dataclass(frozen=True)
class SentMatrix:
    """A matrix that one user sends. ``kind``: delta, up or down; ``energy``: the sum of its squares."""

    user: int
    path: str
    kind: str
    size: int
    energy: float


@dataclass(frozen=True)
class Received:
    """What the server fuses; energies are sums over the users of squares of weights (``injected``: of noise sent)."""

    deltas: dict[str, Delta]
    signal: float = 0.0
    error: float = 0.0
    injected: float = 0.0

    @property
    def relative_mse(self) -> float:
        """Energy of the error over that of the vectors that were sent, both as updates of weights."""
        return self.error / self.signal if self.signal else 0.0


@dataclass
class Transmission:
    """The parts that the users send and the noise each would get; made once, used for every channel.

    ``group_of`` names the layer group of a path: the jammer of ``worst_sum`` divides its budget over users and these.
    Raises ConfigurationError where factors are to be sent of an update that has none.
    """

    vectors: Sequence[TaskVector]
    kind: str
    group_of: Callable[[str], str]
    parts: list[SentMatrix] = field(init=False)
    _energies: dict[tuple[int, str], float] = field(init=False)  # of the updates themselves

    def __post_init__(self) -> None:
        if self.kind == "factors":
            _check_factors(self.vectors)
        keys = [(user, path) for user, vector in enumerate(self.vectors) for path in vector.deltas]
        of_updates = [energy(self.vectors[user].deltas[path]) for user, path in keys]
        self._energies = dict(zip(keys, _numbers(of_updates), strict=True))
        matrices = [
            (user, path, kind, matrix)
            for user, path in (keys if self.kind == "factors" else ())
            for kind, matrix in (
                ("up", self.vectors[user].deltas[path].up),
                ("down", self.vectors[user].deltas[path].down),
            )
        ]
        squares = _numbers([matrix.double().square().sum() for *_, matrix in matrices])
        self.parts = [
            SentMatrix(user, path, kind, matrix.numel(), square)
            for (user, path, kind, matrix), square in zip(matrices, squares, strict=True)
        ] or [
            SentMatrix(
                user, path, "delta", int(np.prod(self.vectors[user].deltas[path].shape)), self._energies[user, path]
            )
            for user, path in keys
        ]

    @property
    def sizes(self) -> dict[str, int]:
        """Entries that all users together send of each path."""
        found: dict[str, int] = {}
        for part in self.parts:
            found[part.path] = found.get(part.path, 0) + part.size
        return found

    def protected_share(self, shield: Shield) -> float:
        """Entries that are not sent, or sent without noise, over all that would be sent without protection (rho)."""
        safe = [p.size for p in self.parts if p.path in shield.dropped or shield.covers(p.user, p.path)]
        return sum(safe) / sum(part.size for part in self.parts)

    def variances(self, channel: Channel, shield: Shield) -> tuple[dict[SentMatrix, float], dict[SentMatrix, float]]:
        """The noise variance of every part that is sent: as the receiver expects it, and as it is."""
        sent = [part for part in self.parts if part.path not in shield.dropped]
        if channel.ideal:
            return dict.fromkeys(sent, 0.0), dict.fromkeys(sent, 0.0)
        powers = _powers(sent, channel)
        open_ = [part for part in sent if not shield.covers(part.user, part.path)]
        expected = dict.fromkeys(sent, 0.0) | {part: noise_variance(powers[part], channel.snr) for part in open_}
        budget = sum(part.size * expected[part] for part in open_)
        attacks = {"worst_sum": self._worst_sum, "worst_strongest": _worst_strongest}
        actual = attacks[channel.attack](open_, sent, budget) if channel.attack in attacks else {}
        return expected, dict.fromkeys(sent, 0.0) | (actual if channel.attack in attacks else expected)

    def _worst_sum(
        self, parts: Sequence[SentMatrix], sent: Sequence[SentMatrix], budget: float
    ) -> dict[SentMatrix, float]:
        groups: dict[tuple[object, ...], list[SentMatrix]] = {}
        for part in parts:
            key = (part.user, self.group_of(part.path)) if part.kind == "delta" else (part.user, part.path, part.kind)
            groups.setdefault(key, []).append(part)
        sizes = [sum(part.size for part in group) for group in groups.values()]
        powers = [sum(p.energy for p in group) / size for group, size in zip(groups.values(), sizes, strict=True)]
        noise = worst_noise(powers, budget, sizes=sizes)
        return {part: float(n) for group, n in zip(groups.values(), noise, strict=True) for part in group}

    def receive(self, weights: Sequence[float], channel: Channel, shield: Shield) -> Received:
        """``sum_k a_k w (tau_k + n_k)`` on every projection that is sent; w: 1, or that of the receiver."""
        expected, actual = self.variances(channel, shield)
        powers = _powers(list(expected), channel) if channel.shrinkage else {}
        hears: dict[tuple[int, str], list[tuple[SentMatrix, float]]] = {}
        for part, variance in actual.items():
            w = shrinkage_weight(powers[part], expected[part]) if channel.shrinkage else 1.0
            if variance or w != 1.0:
                hears.setdefault((part.user, part.path), []).append((part, w))
        deltas: dict[str, Delta] = {}
        signal, errors, noises = 0.0, [], []
        for path in paths_of(self.vectors):
            if path in shield.dropped:
                continue
            arrived = []
            for user, vector in enumerate(self.vectors):
                delta = vector.deltas.get(path)
                if delta is None:
                    arrived.append(TaskVector(vector.name, {}))
                    continue
                signal += self._energies[user, path]
                got = delta
                if told := hears.get((user, path)):
                    got, error, noise = _disturbed(delta, told, actual, channel.seed)
                    errors.append(error)
                    noises.append(noise)
                arrived.append(TaskVector(vector.name, {path: got}))
            deltas |= weighted_sum(arrived, weights)
        return Received(deltas, signal, sum(_numbers(errors)), sum(_numbers(noises)))


def _disturbed(
    delta: Delta, told: Sequence[tuple[SentMatrix, float]], variances: Mapping[SentMatrix, float], seed: int
) -> tuple[Delta, Tensor, Tensor]:
    """The update as the receiver has it, the energy of its error, and that of the noise on what was sent."""
    whole = told[0][0].kind == "delta"
    sent = {"delta": delta.dense()} if whole else {"up": delta.up, "down": delta.down}
    heard, injected = dict(sent), torch.zeros((), dtype=torch.float64, device=delta.up.device)
    for part, w in told:
        clean = sent[part.kind]
        noise = normal(clean.shape, seed, part.user, part.path, part.kind, device=clean.device)
        noise = noise.to(clean.dtype) * variances[part] ** 0.5
        injected = injected + noise.double().square().sum()
        heard[part.kind] = (clean + noise) * w
    if not whole:
        got = Delta(heard["up"], heard["down"])
        return got, energy(total([got, delta.scaled(-1)])), injected
    error = injected if told[0][1] == 1 else (heard["delta"] - sent["delta"]).double().square().sum()
    return Delta(heard["delta"]), error, injected


def _worst_strongest(parts: Sequence[SentMatrix], sent: Sequence[SentMatrix], budget: float) -> dict[SentMatrix, float]:
    """The whole budget, flat, on the user who sends the most energy of those that can be reached."""
    energies: dict[int, float] = {}
    for part in sent:
        energies[part.user] = energies.get(part.user, 0.0) + part.energy
    reachable = [part for part in parts if part.energy or part.kind == "delta"]  # a factor of no power gets no noise
    if not reachable:
        return {}
    strongest = max(sorted({part.user for part in reachable}), key=energies.__getitem__)
    flat = [part for part in reachable if part.user == strongest]
    size = sum(part.size for part in flat)
    return {part: budget / size for part in flat}


def _powers(parts: Sequence[SentMatrix], channel: Channel) -> dict[SentMatrix, float]:
    """The mean square that the SNR of each part is measured against: the user's vector's, or the factor's own."""
    whole = channel.transmission == "delta"
    key = (lambda part: part.user) if whole else (lambda part: (part.user, part.path, part.kind))
    sums: dict[object, list[float]] = {}
    for part in parts:
        entry = sums.setdefault(key(part), [0.0, 0])
        entry[0], entry[1] = entry[0] + part.energy, entry[1] + part.size
    powers = {name: square / size for name, (square, size) in sums.items()}
    if not channel.common_noise:
        return {part: powers[key(part)] for part in parts}
    alike = (lambda part: None) if whole else (lambda part: (part.path, part.kind))
    users: dict[object, dict[object, float]] = {}
    for part in parts:
        users.setdefault(alike(part), {})[key(part)] = powers[key(part)]
    return {part: float(np.mean(list(users[alike(part)].values()))) for part in parts}


def energy(delta: Delta) -> Tensor:
    """The sum of squares of an update, in float64, without building it where it has factors."""
    up = delta.up.double()
    if delta.down is None:
        return up.square().sum()
    down = delta.down.double()
    return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0)


def _check_factors(vectors: Sequence[TaskVector]) -> None:
    for vector in vectors:
        whole = next((path for path, delta in vector.deltas.items() if not delta.low_rank), None)
        if whole is not None:
            raise ConfigurationError(
                f"The update of {whole} in {vector.name} is one whole matrix: it has no factors to send.",
                "Set method.options.transmission to delta.",
            )


def _numbers(values: Sequence[Tensor]) -> list[float]:
    """Read from the device at once."""
    return torch.stack(list(values)).tolist() if values else []
