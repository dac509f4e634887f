"""Comparisons of routing between tasks, from snapshots alone (numpy)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from .snapshot import RoutingSnapshot, SiteInfo

Measure = Literal["cosine", "js"]


def over_roles(snapshot: RoutingSnapshot, figure: str = "mean_gate", role: str | None = None) -> np.ndarray:
    """A figure for one role, or for both weighted by their counts: task x site (x expert), NaN where uncounted."""
    values, count = getattr(snapshot, figure), snapshot.count
    if role is not None:
        return values[snapshot.roles.index(role)]
    if figure == "count":
        sample = np.array([site.unit == "sample" for site in snapshot.sites], bool)
        return np.where(sample, count[0], count.sum(0))  # samples stand under both roles
    known = np.isfinite(values)
    weight = count.reshape(count.shape + (1,) * (values.ndim - count.ndim)) * known
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight.sum(0) > 0, (np.where(known, values, 0) * weight).sum(0) / weight.sum(0), np.nan)


def against_even(gates: np.ndarray, sites: Sequence[SiteInfo]) -> np.ndarray:
    """Mean gates (..., site, expert) over the average expert of their site: 1 is an even share.

    Where weights can be negative there is no such share, so it is NaN.
    """
    experts = np.array([site.experts for site in sites], float).reshape(-1, 1)
    shares = np.array([site.sums_to_one for site in sites], bool).reshape(-1, 1)
    signed = np.array([site.signed for site in sites], bool).reshape(-1, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.where(shares, 1.0, np.nansum(gates, -1, keepdims=True))
        return np.where(signed | (total <= 0), np.nan, gates * experts / total)


def task_similarity(
    snapshot: RoutingSnapshot, measure: Measure = "cosine", role: str | None = None, figure: str = "mean_gate"
) -> np.ndarray:
    """How alike tasks are routed: task x task, the mean over the sites that both reach; 1 is alike.

    cosine: between the vectors of a figure over the experts. js: one minus the Jensen-Shannon divergence in bits
    between the figures as distributions; where weights can be negative, one minus the square of ``site_distances``.
    """
    values = over_roles(snapshot, figure, role)
    tasks = len(snapshot.tasks)
    result = np.full((tasks, tasks), np.nan)
    for a in range(tasks):
        for b in range(tasks):
            found = [
                _alike(measure, site)(values[a, s, : site.experts], values[b, s, : site.experts])
                for s, site in enumerate(snapshot.sites)
                if np.isfinite(values[[a, b], s, : site.experts]).all()
            ]
            if found:
                result[a, b] = float(np.mean(found))
    return result


def site_distances(snapshot: RoutingSnapshot, role: str | None = None) -> np.ndarray:
    """Jensen-Shannon distance (root of the divergence in bits) of mean gates: site x task x task, NaN if uncounted.

    Where weights can be negative they are no distribution: there it is ``sqrt((1 - cosine) / 2)`` of the mean gates,
    which is 0 and 1 at the same ends.
    """
    return distances_of(over_roles(snapshot, "mean_gate", role), snapshot.sites)


def distances_of(gates: np.ndarray, sites: Sequence[SiteInfo]) -> np.ndarray:
    """``site_distances`` of mean gates (task, site, expert)."""
    values = np.asarray(gates, float)
    wide = np.arange(values.shape[-1]) < np.array([site.experts for site in sites]).reshape(-1, 1)
    known = (np.isfinite(values) | ~wide).all(-1).T  # site x task
    gates = np.where(wide & np.isfinite(values), values, 0.0).swapaxes(0, 1)
    signed = np.array([site.signed for site in sites], bool)[:, None, None]
    positive = np.maximum(gates, 0.0)
    p = positive / np.maximum(positive.sum(-1, keepdims=True), 1e-12)
    own, middle = _bits(p), _bits((p[:, :, None] + p[:, None]) / 2)
    divergence = middle - (own[:, :, None] + own[:, None]) / 2
    unit = gates / np.maximum(np.linalg.norm(gates, axis=-1, keepdims=True), 1e-12)
    divergence = np.clip(np.where(signed, (1 - unit @ unit.swapaxes(1, 2)) / 2, divergence), 0.0, 1.0)
    return np.where(known[:, :, None] & known[:, None], np.sqrt(divergence), np.nan)


def _bits(p: np.ndarray) -> np.ndarray:
    return -(p * np.log2(np.where(p > 0, p, 1.0))).sum(-1)


def by_layer(snapshot: RoutingSnapshot, figure: str = "entropy", role: str | None = None) -> np.ndarray:
    """A per-site figure averaged over the projections of each layer: task x layer, NaN where there is none."""
    values = over_roles(snapshot, figure, role)
    layers = np.array([site.layer for site in snapshot.sites], int)
    result = np.full((len(snapshot.tasks), int(layers.max(initial=-1)) + 1), np.nan)
    for layer in np.unique(layers[layers >= 0]):
        part = values[:, layers == layer]
        known = np.isfinite(part)
        with np.errstate(invalid="ignore", divide="ignore"):
            result[:, layer] = np.where(known.any(1), np.nansum(part, 1) / known.sum(1), np.nan)
    return result


def specialisation(snapshot: RoutingSnapshot, role: str | None = None) -> np.ndarray:
    """For every site, how much knowing the task says about the expert: mutual information over its bound, 0 to 1.

    Tasks weigh the same. 0: all tasks are routed alike; 1: every task has experts of its own; NaN where weights can
    be negative.
    """
    values = over_roles(snapshot, "mean_gate", role)
    result = np.full(len(snapshot.sites), np.nan)
    for s, site in enumerate(snapshot.sites):
        gates = values[:, s, : site.experts]
        gates = gates[np.isfinite(gates).all(1)]
        gates = gates / np.maximum(gates.sum(1, keepdims=True), 1e-12)
        bound = np.log2(min(len(gates), site.experts)) if len(gates) and not site.signed else 0
        if bound > 0:
            result[s] = (_entropy(gates.mean(0)) - np.mean([_entropy(row) for row in gates])) / bound
    return result


def _alike(measure: Measure, site: SiteInfo) -> Callable[[np.ndarray, np.ndarray], float]:
    if measure == "cosine":
        return _cosine
    return (lambda a, b: (1 + _cosine(a, b)) / 2) if site.signed else _js


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0] / max(p.sum(), 1e-12)
    return float(-(p * np.log2(p)).sum())


def _js(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a / max(a.sum(), 1e-12), b / max(b.sum(), 1e-12)
    return 1.0 - (_entropy((a + b) / 2) - (_entropy(a) + _entropy(b)) / 2)
