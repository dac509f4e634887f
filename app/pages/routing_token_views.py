"""Pictures of one text's routing as values of their components, made from its trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from app.pages.routing_views import plain
from app.ui.components import escape
from core.figures import short

if TYPE_CHECKING:
    from core.chat.trace import Trace

AVERAGE = "average"


def projections(trace: Trace) -> list[str]:
    return trace.places


def layers(trace: Trace) -> list[int]:
    return sorted({site.layer for site in trace.sites if site.experts > 1})


def gates(trace: Trace, projection: str) -> np.ndarray:
    """(layer, token, expert) of one place, or averaged over those that a layer has; NaN where there is none."""
    known, widest = layers(trace), trace.weights.shape[-1]
    result = np.full((len(known), len(trace.tokens), widest), np.nan)
    for place, layer in enumerate(known):
        found = [
            trace.weights[i]
            for i, site in enumerate(trace.sites)
            if site.layer == layer and site.experts > 1 and projection in (site.place, AVERAGE)
        ]
        if found:
            alike = [one for one in found if np.isnan(one).sum() == np.isnan(found[0]).sum()]
            result[place] = np.mean(alike, axis=0)
    return result


def strip(trace: Trace, layer: int, projection: str, picked: int | None) -> dict[str, Any]:
    """The text, tinted by the experts of one layer."""
    found = gates(trace, projection)[layers(trace).index(layer)]
    size = int(np.isfinite(found[0]).sum()) if len(found) else 0
    tokens = [
        {"t": token, "g": [round(float(g), 4) for g in line[:size]], "role": role, "special": _special(token)}
        for token, line, role in zip(trace.tokens, found, trace.roles, strict=True)
    ]
    top = float(np.nanmax(found)) if size else 1.0
    where = f"layer {layer}, {named(projection)}"
    even, start = _even(trace, found)
    note = f"{where}; tint from {start} ({even:.3f}) to {top:.3f}; counts: tokens led" if size else where
    return {"tokens": tokens, "top": top, "even": even, "note": note, "picked": picked}


def _even(trace: Trace, found: np.ndarray) -> tuple[float, str]:
    """Where the tint of gates (..., expert) begins: at an even share, or where weights are no shares at the average."""
    size = int(np.isfinite(found).any(axis=tuple(range(found.ndim - 1))).sum())
    if all(site.sums_to_one for site in trace.sites):
        return 1 / max(size, 1), "an even share"
    return (float(np.nanmean(found)) if size else 0.0), "the average weight"


def ribbon(trace: Trace, layer: int, projection: str, token: int | None) -> dict[str, Any]:
    """The strongest expert of every token in every layer: ``[expert, strength 0 to 1, gate]``."""
    found, known = gates(trace, projection), layers(trace)
    best = []
    for line in found:
        size = int(np.isfinite(line[0]).sum())
        if size == 0:
            best.append([[-1, 0, 0]] * len(trace.tokens))
            continue
        shown = line[:, :size]
        top, even = float(shown.max()), _even(trace, shown)[0]
        strength = np.clip((shown.max(-1) - even) / max(top - even, 1e-6), 0, 1)
        best.append(
            [[int(e), round(float(s), 3), round(float(g), 4)]
             for e, s, g in zip(shown.argmax(-1), strength, shown.max(-1), strict=True)]
        )  # fmt: skip
    return {
        "tokens": trace.tokens,
        "roles": trace.roles,
        "layers": known,
        "best": best,
        "layer": known.index(layer),
        "token": -1 if token is None else token,
        "experts": int(np.isfinite(found).any(axis=(0, 1)).sum()),
        "note": named(projection),
        "caption": f"{trace.run}, {named(projection)}; tint: from {_even(trace, found)[1]} to a layer's largest gate",
        "name": f"{trace.run}-route-{projection}",
    }


def route(trace: Trace, token: int) -> dict[str, Any]:
    """One token's way through the model: layer x expert, a panel for each projection."""
    names, known = projections(trace), layers(trace)
    values = np.stack([gates(trace, name)[:, token] for name in names])
    wide = max(site.experts for site in trace.sites)
    values = values[..., :wide]
    text = trace.tokens[token].replace("\n", "⏎").strip() or "space"
    signed = any(site.signed for site in trace.sites)
    return {
        "rows": [f"{token + 1}: {text}"],
        "cols": names,
        "heads": list(map(short, names)),
        "layers": known,
        "experts": wide,
        "values": plain(values[None], np.isfinite(values)),
        "top": round(float(np.nanmax(np.abs(trace.weights))), 3) or 1.0,
        "mid": 0.0 if signed else None,
        "figure": "Gate: weight as applied" + ("" if all(s.sums_to_one for s in trace.sites) else ", no share"),
        "short": "gate",
        "unit": "token",
        "caption": f"{trace.run}, token {token + 1} of {len(trace.tokens)}, {trace.roles[token]}",
        "name": f"{trace.run}-token-{token + 1}",
    }


def facts(trace: Trace, origin: str) -> str:
    """What was read, under the text."""
    answers = trace.roles.count("answer")
    parts = [f"{len(trace.tokens) - answers:,} prompt tokens", f"{answers:,} answer tokens" if answers else "no answer"]
    if trace.task is not None and len(trace.tasks) > 1:
        parts.append(f"as task {trace.task}")
    if trace.cut:
        parts.append(f"{trace.cut:,} prompt tokens left out of the middle: the base reads no more")
    if {site.unit for site in trace.sites} == {"sample"}:
        parts.append("this gate decides once for the whole text, so all tokens are alike")
    parts.append(f"{trace.seconds:.2f} s on {trace.device}")
    answer = f"<p>Answer: <q>{escape(trace.answer.strip())}</q></p>" if answers and origin == "generated" else ""
    return f"{answer}<p class='num'>{escape(' · '.join(parts))}</p>"


def named(name: str) -> str:
    return "averaged over projections" if name == AVERAGE else name


def _special(token: str) -> bool:
    return token.startswith("<|") and token.endswith("|>")
