"""The channel alone: SNR to noise, attacks, receiver, and what is sent and heard of a task vector."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from core.errors import ConfigurationError
from core.fusion.combine import weighted_sum
from core.fusion.delta import Delta, TaskVector
from core.fusion.resilient.channel import (
    Channel,
    noise_variance,
    normal,
    shrinkage_weight,
    worst_noise,
)
from core.fusion.resilient.protection import Shield, group_of, layer_groups, within_budget
from core.fusion.resilient.transmission import Transmission, energy
from tests.fusion.resilient_support import EMBEDDING, entries, random_vectors

ATTACKS = ("awgn", "worst_sum", "worst_strongest")
EMBEDDINGS = frozenset([EMBEDDING])


# Closed forms that the checks hold the channel against


def shrinkage_mse(power: float, designed: float, actual: float) -> float:
    """The mean squared error of a receiver made for the noise variance ``designed`` where it is ``actual``."""
    w = shrinkage_weight(power, designed)
    return (1 - w) ** 2 * power + w**2 * actual


def worst_covariance(signal: np.ndarray, budget: float, thermal: float = 0.0) -> np.ndarray:
    """The covariance ``R`` of trace ``budget`` that minimises ``log det(I + (R + v I)^-1 S)``: aligned with ``S``."""
    values, vectors = np.linalg.eigh(signal)
    return (vectors * worst_noise(np.clip(values, 0, None), budget, thermal=thermal)) @ vectors.T


def rate(signal: np.ndarray, noise: np.ndarray, thermal: float = 0.0) -> float:
    """``log2 det(I + (R + v I)^-1 S)`` in bits."""
    received = noise + thermal * np.eye(len(signal))
    return float((np.linalg.slogdet(received + signal)[1] - np.linalg.slogdet(received)[1]) / math.log(2))


def product_noise_variance(up: Tensor, down: Tensor, up_std: float, down_std: float) -> Tensor:
    """The variance of every entry of ``(B + N_B)(A + N_A) - B A``, for noise of these standard deviations."""
    ranks = up.shape[1]
    of_up, of_down = up.square().sum(1, keepdim=True), down.square().sum(0, keepdim=True)
    return down_std**2 * of_up + up_std**2 * of_down + ranks * up_std**2 * down_std**2


def flip_probability(margin: float, gradient_norm: float, deviation: float) -> float:
    """The chance that Gaussian noise of this standard deviation on every weight turns a choice between two.

    To first order: ``Q(|m| / (q ||grad m||))`` with the margin ``m`` and its gradient by the weights.
    """
    return 0.5 * math.erfc(abs(margin) / (deviation * gradient_norm) / math.sqrt(2))


def sending(vectors: list[TaskVector], kind: str = "delta") -> Transmission:
    return Transmission(vectors, kind, group_of=lambda path: group_of(path, EMBEDDINGS))


def one(size: int, power: float = 1.0) -> TaskVector:
    chance = torch.Generator().manual_seed(3)
    return TaskVector("one", {"x": Delta(torch.randn(1000, size // 1000, generator=chance) * power**0.5)})


@pytest.mark.parametrize(("snr", "mse", "ratio"), [(20, 0.01, 0.1), (10, 0.1, 0.316), (0, 1, 1), (-10, 10, 3.16)])
def test_check_1_snr_gives_relative_mse_and_norm_ratio(snr: float, mse: float, ratio: float):
    vector = one(1_000_000)
    received = sending([vector]).receive([1.0], Channel(snr), Shield())
    noise = received.deltas["x"].dense() - vector.deltas["x"].dense()
    assert received.relative_mse == pytest.approx(mse, rel=0.01)
    assert float(noise.norm() / vector.deltas["x"].dense().norm()) == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize("kind", ["delta", "factors"])
@pytest.mark.parametrize("channel", [{"snr": None}, {"snr": 0.0, "attack": "ideal"}], ids=["no SNR", "ideal"])
def test_check_2_ideal_is_task_arithmetic_bitwise(kind: str, channel: dict):
    vectors, weights = random_vectors(), [0.3, 0.5, 0.2]
    received = sending(vectors, kind).receive(weights, Channel(transmission=kind, shrinkage=True, **channel), Shield())
    plain = weighted_sum(vectors, weights)
    assert list(received.deltas) == list(plain)
    for path, delta in plain.items():
        assert torch.equal(received.deltas[path].up, delta.up) and torch.equal(received.deltas[path].down, delta.down)
    assert received.relative_mse == 0


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("snr", [30.0, 0.0, -5.0])
def test_check_3_protected_entries_are_bitwise_clean(attack: str, snr: float):
    vectors, weights = random_vectors(low_rank=False, embedding=True), [0.3] * 3
    sent, plain = sending(vectors), weighted_sum(vectors, weights)
    dropped = sent.receive(weights, Channel(snr, attack), Shield(dropped=EMBEDDINGS))
    assert EMBEDDING not in dropped.deltas  # theta0 itself
    coded = sent.receive(weights, Channel(snr, attack), Shield(clean=EMBEDDINGS))
    assert torch.equal(coded.deltas[EMBEDDING].up, plain[EMBEDDING].up)
    others = plain.keys() - EMBEDDINGS
    assert all(not torch.equal(coded.deltas[path].up, plain[path].up) for path in others)
    frozen = random_vectors(low_rank=False)  # freeze_embed: trained without
    assert EMBEDDING not in sending(frozen).receive(weights, Channel(snr, attack), Shield()).deltas


def test_check_4_noise_of_eight_users_on_the_fused_weights():
    zero = [TaskVector(f"run-{k}", {"x": Delta(torch.zeros(1000, 1000))}) for k in range(8)]
    fused = weighted_sum(
        [
            TaskVector(v.name, {"x": Delta(v.deltas["x"].up + normal((1000, 1000), 0, k, "x", "delta") * 1e-3)})
            for k, v in enumerate(zero)
        ],
        [0.3] * 8,
    )
    assert float(fused["x"].dense().double().var()) == pytest.approx(7.2e-7, rel=0.01)


def test_check_4_through_the_channel():
    """As sent: every user has the power 1e-6 at 0 dB, and what is left without the clean sum is the noise."""
    vectors = [TaskVector(f"run-{k}", {"x": Delta(normal((1000, 1000), 99, k) * 1e-3)}) for k in range(8)]
    noisy = sending(vectors).receive([0.3] * 8, Channel(0.0), Shield()).deltas["x"].dense()
    noise = noisy - weighted_sum(vectors, [0.3] * 8)["x"].dense()
    assert float(noise.double().var()) == pytest.approx(7.2e-7, rel=0.01)


S, V = np.array([8, 2, 0.5]), 0.1


def value(noise: np.ndarray) -> float:
    return float(np.log2(1 + S / (noise + V)).sum())


def test_check_5_worst_noise_against_given_eigenvalues():
    worst = worst_noise(S, 3.0, thermal=V)
    assert worst == pytest.approx([1.3688, 1.0159, 0.6153], abs=1e-3)
    assert value(np.zeros(3)) == pytest.approx(13.3171, abs=1e-3)
    assert value(np.ones(3)) == pytest.approx(5.0837, abs=1e-3)
    assert value(worst) == pytest.approx(4.9347, abs=1e-3)
    assert value(3 * S / S.sum()) == pytest.approx(5.7274, abs=1e-3)
    assert value(np.array([3.0, 0, 0])) == pytest.approx(8.8175, abs=1e-3)
    small = worst_noise(S, 0.3, thermal=V)
    assert small == pytest.approx([0.1224, 0.1071, 0.0705], abs=1e-3)
    assert value(small) == pytest.approx(10.5975, abs=1e-3)


def test_check_6_no_covariance_of_the_same_trace_is_worse():
    signal, draws = np.diag(S), 200_000
    worst = worst_covariance(signal, 3.0, V)
    least = rate(signal, worst, V)
    assert np.trace(worst) == pytest.approx(3.0) and least == pytest.approx(4.9347, abs=1e-3)
    chance = np.random.default_rng(0)
    root = chance.standard_normal((draws, 3, 3))
    noise = root @ root.transpose(0, 2, 1)
    noise *= (3.0 / np.trace(noise, axis1=1, axis2=2))[:, None, None]
    received = noise + V * np.eye(3)
    rates = (np.linalg.slogdet(received + signal)[1] - np.linalg.slogdet(received)[1]) / math.log(2)
    assert least < rates.min() < least + 0.1  # the best of the draws comes near
    turned, _ = np.linalg.qr(chance.standard_normal((3, 3)))
    assert rate(signal, turned @ worst @ turned.T, V) > least
    full = turned @ signal @ turned.T  # in any basis
    assert rate(full, worst_covariance(full, 3.0, V), V) == pytest.approx(least, abs=1e-9)


def test_check_7_worst_noise_of_groups():
    power, sizes = np.array([4, 1, 0.25]), np.array([100, 1000, 500])
    noise = worst_noise(power, 800.0, thermal=1e-9, sizes=sizes)
    assert noise == pytest.approx([0.7234, 0.5508, 0.3537], abs=1e-3)
    assert sizes @ noise == pytest.approx(800)
    assert sizes @ np.log2(1 + power / noise) == pytest.approx(2149.7, abs=0.1)
    assert sizes @ np.log2(1 + power / 0.5) == pytest.approx(2194.4, abs=0.1)


def test_groups_without_power_get_no_noise():
    assert worst_noise([1.0, 0.0], 2.0).tolist() == [2.0, 0.0]
    assert worst_noise([0.0, 0.0], 2.0).tolist() == [0.0, 0.0]
    assert worst_noise([1e-12, 3e-10], 1e-13, sizes=[1000, 10]) @ [1000, 10] == pytest.approx(1e-13)


@pytest.mark.parametrize("kind", ["delta", "factors"])
@pytest.mark.parametrize("common", [False, True])
def test_check_8_attacks_inject_the_same_energy(kind: str, common: bool):
    vectors = random_vectors(low_rank=True)
    vectors = [
        TaskVector(v.name, {path: Delta(d.up.repeat(12, 1), d.down.repeat(1, 30)) for path, d in v.deltas.items()})
        for v in vectors
    ]
    sent = sending(vectors, kind)
    seeds = range(3 if kind == "delta" else 60)  # factors have fewer entries to average over
    energies = {
        attack: np.mean(
            [
                sent.receive([0.3] * 3, Channel(5.0, attack, kind, common_noise=common, seed=seed), Shield()).injected
                for seed in seeds
            ]
        )
        for attack in ATTACKS
    }
    assert max(energies.values()) / min(energies.values()) < 1.01


def test_the_strongest_attack_reaches_the_strongest_run_alone():
    vectors = random_vectors()  # c has the largest updates
    _, actual = sending(vectors).variances(Channel(0.0, "worst_strongest"), Shield())
    assert {part.user for part, variance in actual.items() if variance} == {2}
    assert len({variance for variance in actual.values() if variance}) == 1
    _, spared = sending(vectors).variances(Channel(0.0, "worst_strongest"), Shield(users=frozenset([2])))
    assert {part.user for part, variance in spared.items() if variance} == {1}


def test_the_sum_rate_attack_gives_strong_groups_more_noise_but_less_than_in_proportion():
    sent = sending(random_vectors())
    _, actual = sent.variances(Channel(0.0, "worst_sum"), Shield())
    groups = {(part.user, group_of(part.path, EMBEDDINGS)): variance for part, variance in actual.items()}
    weak, strong = groups[0, "block 0 MLP"], groups[2, "block 0 MLP"]
    assert weak < strong < 9 * weak  # the third run's updates are three times as large


def test_check_9_variance_of_the_product_of_noisy_factors():
    chance = torch.Generator().manual_seed(4)  # factors whose mean squares are near 0.01 and 1
    up, down = torch.randn(32, 4, generator=chance) * 0.1, torch.randn(4, 24, generator=chance)
    predicted = product_noise_variance(up, down, up_std=0.02, down_std=0.05)
    draws = 20_000
    noisy_up = up + 0.02 * torch.randn(draws, 32, 4, generator=chance)
    noisy_down = down + 0.05 * torch.randn(draws, 4, 24, generator=chance)
    assert float(predicted.mean()) == pytest.approx(0.00175, rel=0.01)
    simulated = (noisy_up @ noisy_down - up @ down).var(0)
    assert float(simulated.mean()) == pytest.approx(float(predicted.mean()), rel=0.01)
    assert torch.allclose(simulated, predicted, rtol=0.1)


def test_check_9_the_channel_sends_factors_so():
    """The noise that reaches a weight in ``factors`` mode has the predicted mean variance."""
    vector = random_vectors(("a",), rank=4)[0]
    path = "model.layers.0.mlp.up_proj"
    delta = vector.deltas[path]
    stds = [noise_variance(float(m.square().mean()), 10.0) ** 0.5 for m in (delta.up, delta.down)]
    predicted = float(product_noise_variance(delta.up, delta.down, *stds).mean())
    sent = sending([vector], "factors")
    found = [
        sent.receive([1.0], Channel(10.0, transmission="factors", seed=seed), Shield()).deltas[path].dense()
        - delta.dense()
        for seed in range(400)
    ]
    assert float(torch.stack(found).square().mean()) == pytest.approx(predicted, rel=0.03)


def test_factors_of_no_power_get_no_noise():
    cold = TaskVector("cold", {"x": Delta(torch.zeros(8, 2), torch.ones(2, 8))})
    for attack in ATTACKS:
        received = sending([cold], "factors").receive([1.0], Channel(0.0, attack, "factors"), Shield())
        assert not received.deltas["x"].up.any() and not torch.equal(received.deltas["x"].down, torch.ones(2, 8))


def test_the_strongest_attack_passes_over_a_run_whose_open_factors_have_no_power():
    """Its power is in what is protected, so that no noise can be put on it."""
    cold, warm = Delta(torch.zeros(8, 2), torch.zeros(2, 8)), Delta(torch.ones(8, 2), torch.ones(2, 8))
    vectors = [TaskVector("a", {"x": cold, "y": warm.scaled(9.0)}), TaskVector("b", {"x": warm})]
    shield, channel = Shield(clean=frozenset(["y"])), Channel(0.0, "worst_strongest", "factors")
    _, actual = sending(vectors, "factors").variances(channel, shield)
    assert {part.user for part, variance in actual.items() if variance} == {1}


def test_factors_of_whole_matrices_are_refused_by_name():
    with pytest.raises(ConfigurationError, match=r"model\.layers\.0.*in a is one whole matrix"):
        sending(random_vectors(low_rank=False), "factors")


def test_check_10_shrinkage_receiver():
    assert shrinkage_weight(1, 0.1) == pytest.approx(0.90909, abs=1e-5)
    assert shrinkage_mse(1, 0.1, 0.1) == pytest.approx(0.090909, abs=1e-6)
    assert shrinkage_mse(1, 0.1, 1.0) == pytest.approx(0.834711, abs=1e-6)


def test_check_10_the_receiver_has_that_error_on_what_it_hears():
    vector = one(1_000_000)
    received = sending([vector]).receive([1.0], Channel(10.0, shrinkage=True), Shield())
    assert received.relative_mse == pytest.approx(0.090909, rel=0.01)
    # Attacked otherwise than it expects: the strongest run alone, with twice the noise; the other's is shrunk anyway.
    twin = TaskVector("other", {"x": Delta(vector.deltas["x"].up * 0.999)})
    attacked = sending([vector, twin]).receive([1.0, 1.0], Channel(10.0, "worst_strongest", shrinkage=True), Shield())
    wanted = (shrinkage_mse(1, 0.1, 0.2) + shrinkage_mse(1, 0.1, 0.0)) / 2
    assert attacked.relative_mse == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize(("deviation", "chance"), [(0.1, 0.158655), (0.05, 0.022750)])
def test_check_11_flip_rule(deviation: float, chance: float):
    assert flip_probability(1, 10, deviation) == pytest.approx(chance, abs=1e-6)
    x = torch.full((100,), 1.0)  # gradient of w x by w; its norm is 10
    w = torch.full((100,), 0.01)  # margin 1
    noisy = w + deviation * normal((100_000, 100), 0)
    assert float(((noisy @ x) < 0).float().mean()) == pytest.approx(chance, abs=0.005)


def test_common_noise_is_one_power_for_all_runs():
    vectors = random_vectors()
    expected, _ = sending(vectors).variances(Channel(0.0, common_noise=True), Shield())
    own, _ = sending(vectors).variances(Channel(0.0), Shield())
    per_user = {part.user: variance for part, variance in own.items()}
    assert list(expected.values()) == pytest.approx([np.mean(list(per_user.values()))] * len(expected))
    assert len({round(v, 9) for v in per_user.values()}) == 3


def test_noise_depends_on_seed_user_and_path_alone():
    vectors = random_vectors()
    sent, weights = sending(vectors), [1.0] * 3

    def noise(channel: Channel, shield: Shield = Shield()) -> dict[str, torch.Tensor]:
        plain = weighted_sum(vectors, weights)
        return {p: d.dense() - plain[p].dense() for p, d in sent.receive(weights, channel, shield).deltas.items()}

    quiet, loud = noise(Channel(20.0)), noise(Channel(0.0))
    for path, value_ in quiet.items():
        assert torch.allclose(value_ * 10, loud[path], rtol=1e-3, atol=1e-5)  # the same draw, louder
    safe = Shield(clean=frozenset(list(quiet)[:1]))
    assert all(torch.equal(noise(Channel(0.0), safe)[path], loud[path]) for path in list(quiet)[1:])
    assert not torch.equal(noise(Channel(0.0, seed=1))[path], loud[path])


def test_energy_of_factors_is_that_of_their_product():
    for vector in random_vectors():
        for delta in vector.deltas.values():
            assert float(energy(delta)) == pytest.approx(float(delta.dense().double().square().sum()), rel=1e-5)


def test_layer_groups_and_budget():
    vectors = random_vectors(low_rank=False, embedding=True)
    groups = layer_groups(list(vectors[0].deltas), EMBEDDINGS)
    assert list(groups) == ["block 0 attention", "block 0 MLP", "block 1 attention", "block 1 MLP", "embeddings"]
    sent = sending(vectors)
    sizes = {name: sum(sent.sizes[path] for path in paths) for name, paths in groups.items()}
    assert sum(sizes.values()) == entries(vectors)
    order = ["block 1 MLP", "block 0 attention", "embeddings", "block 1 attention"]
    assert within_budget(order, sizes, 0.5) == ["block 1 MLP", "block 0 attention"]  # half is 1136 of 2272 a run
    shield = Shield(clean=frozenset(groups["embeddings"]))
    assert sent.protected_share(shield) == pytest.approx(480 / (480 + 2 * 256 + 2 * 640))
    assert sent.protected_share(Shield(users=frozenset([0]))) == pytest.approx(1 / 3)
