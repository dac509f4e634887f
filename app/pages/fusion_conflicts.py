"""How task vectors lie to each other, before anything is fused: what is said of it, and its heatmaps as values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from app.pages.fusion_choice import ALL, FIGURES, Choice
from app.pages.fusion_grid import Grid, round_up
from app.ui import components as ui

if TYPE_CHECKING:
    from core.fusion_results import Conflicts

MOST_PAIRS = 12  # panels; the square beside them has every pair
ORTHOGONAL = 0.05  # cosines of less than this are called close to orthogonal
OWN = 1 - 1e-9  # a vector's cosine with itself is no conflict
UNEVEN = 1.5  # a task vector so many times longer than another is worth a sentence
MEANS = {
    "cosine": "Cosine between task vectors; below 0 they pull apart",
    "signs": "Share of entries whose signs differ",
    "norms": "Length of each task vector (Frobenius norm)",
}
SHORT = {"cosine": "cosine", "signs": "signs that differ", "norms": "norm"}
e = ui.escape


def findings(found: Conflicts) -> str:
    """What is seen, in sentences: the pair that conflicts most, where, and whether one vector outweighs another."""
    said = [_most(found), _where(found), _lengths(found)]
    return "<ul>" + "".join(f"<li>{one}</li>" for one in said if one) + "</ul>"


def _most(found: Conflicts) -> str:
    pairs = pairs_of(found)
    a, b = pairs[0]
    cosine, signs = found.overall_cosine[a, b], found.overall_disagreement[a, b]
    if not np.isfinite(cosine):
        return ""  # one of them is zero, which is said below
    named = f"<b>{e(found.sources[a])}</b> and <b>{e(found.sources[b])}</b>"
    numbers = f"cosine <b>{cosine:+.3f}</b> over all projections, <b>{signs:.0%}</b> of the entries with other signs"
    if cosine < -ORTHOGONAL:
        alone = "They pull against each other" if len(pairs) == 1 else f"Of {len(pairs)} pairs, they conflict most"
        return f"{named}: {numbers}. {alone}: a plain sum loses part of both."
    if cosine < ORTHOGONAL:
        alone = "" if len(pairs) == 1 else "No pair lies further apart. "
        return f"{named}: {numbers}. {alone}Close to orthogonal: a sum keeps most of each."
    alone = "They" if len(pairs) == 1 else "All pairs"
    return f"{named}: {numbers}. {alone} point the same way in part: they share what they learnt."


def _where(found: Conflicts) -> str:
    upper = np.triu_indices(len(found.sources), 1)
    values = np.where(np.isfinite(found.cosine), found.cosine, np.inf)[:, upper[0], upper[1]]
    if not values.size or not np.isfinite(values).any():
        return ""
    path, pair = np.unravel_index(int(values.argmin()), values.shape)
    if values[path, pair] >= 0:
        return "In no projection does a pair point against each other."
    against = float((values[np.isfinite(values)] < 0).mean())
    names = " and ".join(found.sources[index[pair]] for index in upper)
    where = f"<b>{e(found.paths[path])}</b> of {e(names)}"
    return (
        f"Most against each other: {where}, cosine {values[path, pair]:+.3f}; below 0 in {against:.0%} of all places."
    )


def _lengths(found: Conflicts) -> str:
    norms = np.asarray(found.overall_norms, dtype=float)
    low, high = int(norms.argmin()), int(norms.argmax())
    if norms[low] <= 0:
        return f"The task vector of <b>{e(found.sources[low])}</b> is zero: it changes nothing."
    factor = norms[high] / norms[low]
    if factor < UNEVEN:
        return f"Their norms are alike: {norms[low]:.3g} to {norms[high]:.3g}."
    long, brief = e(found.sources[high]), e(found.sources[low])
    return f"<b>{long}</b> is {factor:.1f} times as long as {brief}: with equal weights it outweighs it."


def pairs_of(found: Conflicts) -> list[tuple[int, int]]:
    """Pairs of sources, those that conflict most first."""
    pairs = list(combinations(range(len(found.sources)), 2))
    return sorted(pairs, key=lambda pair: float(np.nan_to_num(found.overall_cosine[pair], nan=np.inf)))


def heat(found: Conflicts, choice: Choice) -> dict[str, Any]:
    """Layer by projection: a panel for each pair, or of norms for each run."""
    pairs = pairs_of(found)[:MOST_PAIRS]
    if choice.figure == "norms":
        rows, values = list(found.sources), np.asarray(found.norms, dtype=float).T
    else:
        rows = [f"{found.sources[a]}×{found.sources[b]}" for a, b in pairs]
        every = found.cosine if choice.figure == "cosine" else found.disagreement
        values = np.array([every[:, a, b] for a, b in pairs], dtype=float).reshape(len(pairs), len(found.paths))
    few = len(found.sources) * (len(found.sources) - 1) // 2 > MOST_PAIRS and choice.figure != "norms"
    caption = f"the {MOST_PAIRS} pairs that conflict most" if few else ", ".join(found.sources[:6])
    grid = Grid.of(found.paths)
    return grid.panels(rows, values) | {
        **scale(values, choice.figure),
        "rowName": "run" if choice.figure == "norms" else "pair",
        "figure": MEANS[choice.figure],
        "short": SHORT[choice.figure],
        "caption": caption,
        "picked": grid.picked(choice.at),
        "name": f"conflicts-{choice.figure}",
    }


def square(found: Conflicts, choice: Choice) -> dict[str, Any]:
    """Every run with every other, over all projections or in one."""
    overall = choice.at not in found.paths
    index = None if overall else found.paths.index(choice.at)
    kinds = {"cosine": (found.overall_cosine, found.cosine), "signs": (found.overall_disagreement, found.disagreement)}
    whole, each = kinds.get(choice.figure, kinds["cosine"])
    values = np.array(whole if index is None else each[index], dtype=float)
    np.fill_diagonal(values, np.nan)
    figure = "signs" if choice.figure == "signs" else "cosine"
    return {
        "names": list(found.sources),
        "values": [[None if not np.isfinite(x) else round(float(x), 4) for x in line] for line in values],
        **scale(np.concatenate([each.ravel()[each.ravel() < OWN], values.ravel()]), figure),
        "figure": FIGURES[figure],
        "caption": "all projections together" if overall else choice.at,
        "name": f"conflicts-{figure}-{'all' if overall else choice.at}",
    }


def lengths(found: Conflicts, choice: Choice) -> str:
    """Norms as bars, over all projections or in one."""
    overall = choice.at not in found.paths
    norms = np.asarray(found.overall_norms if overall else found.norms[found.paths.index(choice.at)], dtype=float)
    top = float(np.nanmax(norms)) or 1.0
    bars = "".join(
        f'<div class="bar named"><b title="{e(name)}">{e(name)}</b><span class="track"><i style="width:{x / top:.1%};'
        f'background:var(--expert-{i % 8})"></i></span><em class="num">{x:.3g}</em></div>'
        for i, (name, x) in enumerate(zip(found.sources, np.nan_to_num(norms), strict=True))
    )
    return f"<h3>Norm</h3>{bars}<p>{e('all projections together' if overall else choice.at)}</p>"


def scale(values: np.ndarray, figure: str) -> dict[str, Any]:
    """Cosines about 0; shares of signs between the round numbers around them, one half marked; norms from 0."""
    finite = values[np.isfinite(values)]
    if figure == "cosine":
        return {"mid": 0.0, "top": round_up(float(np.abs(finite).max(initial=0.0))) or 1.0}
    if figure == "signs":
        low = float(np.floor(finite.min(initial=0.5) * 20) / 20)
        top = float(np.ceil(finite.max(initial=0.5) * 20) / 20)
        return {"low": low, "top": max(top, low + 0.05), "even": 0.5, "evenName": "unrelated"}
    return {"low": 0.0, "top": round_up(float(finite.max(initial=0.0))) or 1.0}


def projections(paths: Sequence[str], at: str) -> list[tuple[str, str]]:
    """What the square can show: everything together, or one projection."""
    more = [] if at in (ALL, *paths) else [(at, at)]
    return [("all projections", ALL), *((path, path) for path in paths), *more]
