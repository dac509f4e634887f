"""k-means on the device that holds the points: k-means++ starts, Lloyd's rounds, the best of several restarts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ROUNDS = 300


def k_means(points: Tensor, clusters: int, *, seed: int, restarts: int = 10) -> tuple[Tensor, int]:
    """Centroids (clusters, width) in float32, the means of their points, and how many clusters there are.

    ``points`` (n, width). Equal for equal seeds on one kind of device. Where fewer points differ than there are
    clusters, each of them is one, and the centroids that are left over are zero.
    """
    chance = torch.Generator().manual_seed(seed)
    points = points.double() if points.device.type == "cpu" else points.float()
    runs = [_lloyd(points, _spread(points, clusters, chance)) for _ in range(restarts)]
    best = min(runs, key=lambda run: run[1])[0]
    found = torch.zeros(clusters, points.shape[1], dtype=torch.float32, device=points.device)
    found[: len(best)] = best.float()
    return found, len(best)


def _spread(points: Tensor, clusters: int, chance: torch.Generator) -> Tensor:
    """k-means++: the first centroid at random, each further one with a chance by its squared distance to the rest."""
    chosen = [int(torch.randint(len(points), (1,), generator=chance))]
    nearest = _distances(points, points[chosen]).squeeze(1)
    while len(chosen) < clusters:
        odds = nearest.double().cpu()
        odds[odds < 1e-9 * odds.max().clamp_min(1e-9)] = 0  # rounding sets equal points apart
        if not odds.sum() > 0:
            break
        chosen.append(int(torch.multinomial(odds, 1, generator=chance)))
        nearest = torch.minimum(nearest, _distances(points, points[chosen[-1:]]).squeeze(1))
    return points[chosen].clone()


def _lloyd(points: Tensor, centroids: Tensor) -> tuple[Tensor, float]:
    """The centroids once no point changes its cluster, and the sum of squared distances to them."""
    owner = None
    for _ in range(ROUNDS):
        nearest = _distances(points, centroids).min(-1)
        if owner is not None and torch.equal(nearest.indices, owner):
            break
        owner = nearest.indices
        member = functional.one_hot(owner, len(centroids)).to(points.dtype)  # a product, as its sum is repeatable
        counts = member.sum(0)
        means = member.t() @ points / counts.clamp_min(1).unsqueeze(1)
        farthest = nearest.values.argsort(descending=True)[: len(centroids)]
        places = (counts == 0).cumsum(0).sub(1).clamp_min(0)  # a cluster that lost its points starts anew far away
        centroids = torch.where((counts == 0).unsqueeze(1), points[farthest[places]], means)
    return centroids, float(_distances(points, centroids).min(-1).values.sum())


def _distances(points: Tensor, centroids: Tensor) -> Tensor:
    """Squared distances (n, k)."""
    lengths = points.square().sum(-1, keepdim=True) + centroids.square().sum(-1)
    return (lengths - 2 * points @ centroids.t()).clamp_min(0)
