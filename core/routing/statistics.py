"""Comparisons of routing between tasks, from snapshots alone (numpy)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .snapshot import RoutingSnapshot, SiteInfo


def over_roles(snapshot: RoutingSnapshot, figure: str = "mean_gate", role: str | None = None) -> np.ndarray:
    """A figure for one role, or for both weighted by their counts: task x site (x expert), NaN where uncounted."""
    if figure == "relative_gate":
        return against_even(over_roles(snapshot, "mean_gate", role), snapshot.sites)
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
