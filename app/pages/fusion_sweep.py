"""Score and disentanglement error against the channel's SNR as SVG: a line and a band for each protection arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from app.ui import components as ui
from core.figures.fusion import MEASURES, SweepLine, attacks, sweep_lines

W, H, LEFT, RIGHT, TOP, BOTTOM = 560, 320, 54, 20, 14, 44
FLAT = 0.02  # less of a difference is drawn in the middle of a wider axis
END = 44  # for the ideal channel, right of the numbers
WORDS = {"awgn": "white noise", "worst_sum": "worst case, all users", "worst_strongest": "worst case, strongest user",
         "gradient": "gradient"}  # fmt: skip
e = ui.escape


def choices(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """The attacks of a sweep."""
    return [(WORDS.get(name, name.replace("_", " ")), name) for name in attacks(frame)]


def chosen(frame: pd.DataFrame, attack: str) -> str:
    known = attacks(frame)
    return attack if attack in known else (known or [""])[0]


def pictures(run: str, frame: pd.DataFrame, attack: str) -> list[dict[str, Any]]:
    """The values of two figures: score, disentanglement error."""
    attack = chosen(frame, attack)
    found = []
    for measure, named in MEASURES.items():
        has = measure in frame and frame.loc[frame["snr"].notna(), measure].notna().any()
        html = _drawn(sweep_lines(frame, attack, measure), named) if has and attack else ""
        empty = f'<p class="waiting">No {e(named)} was measured.</p>'
        found.append({"html": html or empty, "name": f"{run}-{measure.replace('_', '-')}-{attack}"})
    return found


def _drawn(lines: Sequence[SweepLine], named: str) -> str:
    every = sorted({float(x) for line in lines for x in line.snr})
    ideal = any(line.ideal is not None for line in lines)
    right = W - RIGHT - (END if ideal else 0)
    ticks = _ticks(lines)

    def x(snr: float) -> float:
        return LEFT + 8 + (snr - every[0]) / ((every[-1] - every[0]) or 1) * (right - LEFT - 16)

    def y(value: float) -> float:
        return H - BOTTOM - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (H - TOP - BOTTOM)

    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{W - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in ticks
    ]
    last = -math.inf
    for snr in every:
        if x(snr) - last >= 26:
            parts.append(f'<text x="{x(snr):.1f}" y="{H - BOTTOM + 17}" text-anchor="middle">{snr:g}</text>')
            last = x(snr)
    if ideal:
        parts.append(f'<text x="{W - RIGHT - 12}" y="{H - BOTTOM + 17}" text-anchor="middle">ideal</text>')
    parts += [_line(line, index, x, y) for index, line in enumerate(lines)]
    mid, up = (LEFT + right) / 2, (TOP + H - BOTTOM) / 2
    parts.append(f'<text class="axis" x="{mid:.0f}" y="{H - 6}" text-anchor="middle">SNR of the channel (dB)</text>')
    parts.append(
        f'<text class="axis" x="12" y="{up}" transform="rotate(-90 12 {up})" text-anchor="middle">{e(named)}</text>'
    )
    names = ", ".join(line.protection for line in lines)
    svg = f'<svg viewBox="0 0 {W} {H}" role="img" aria-label="{e(named)} for {e(names)}">{"".join(parts)}</svg>'
    return svg + _keys(lines)


def _line(line: SweepLine, index: int, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    hue = f"var(--expert-{index % 8})"
    spread = np.nan_to_num(line.spread)
    there = [f"{x(s):.1f} {y(v):.1f}" for s, v in zip(line.snr, line.mean + spread, strict=True)]
    back = [f"{x(s):.1f} {y(v):.1f}" for s, v in zip(line.snr[::-1], (line.mean - spread)[::-1], strict=True)]
    band = f'<path class="band" style="fill:{hue}" d="M{"L".join([*there, *back])}Z"/>' if spread.any() else ""
    path = "L".join(f"{x(s):.1f} {y(v):.1f}" for s, v in zip(line.snr, line.mean, strict=True))
    dots = "".join(
        f'<circle style="fill:{hue}" cx="{x(s):.1f}" cy="{y(v):.1f}" r="3.4">'
        f"<title>{e(line.protection)}, {s:g} dB: {v:.3f}{'' if sd != sd else f' ± {sd:.3f}'}</title></circle>"
        for s, v, sd in zip(line.snr, line.mean, line.spread, strict=True)
    )
    clean = ""
    if line.ideal is not None:
        clean = (
            f'<circle class="ideal" style="stroke:{hue}" cx="{W - RIGHT - 12}" cy="{y(line.ideal):.1f}" r="4">'
            f"<title>{e(line.protection)}, ideal channel: {line.ideal:.3f}</title></circle>"
        )
    return f'{band}<path class="arm" style="stroke:{hue}" d="M{path}"/>{dots}{clean}'


def _keys(lines: Sequence[SweepLine]) -> str:
    keys = "".join(
        f'<span style="--hue:var(--expert-{i % 8})">{e(line.protection.replace("_", " "))}</span>'
        for i, line in enumerate(lines)
    )
    seeds = max((line.seeds for line in lines), default=1)
    band = f"band: one standard deviation over {seeds} seeds" if seeds > 1 else "one seed: no band"
    return f'<p class="sweep-keys">{keys}<small>{band}</small></p>'


def _ticks(lines: Sequence[SweepLine]) -> list[float]:
    """Round numbers around the data, at most seven."""
    spread = [np.nan_to_num(line.spread) for line in lines]
    found = np.concatenate(
        [np.concatenate([line.mean - s, line.mean + s]) for line, s in zip(lines, spread, strict=True)]
        + [[line.ideal for line in lines if line.ideal is not None]]
    )
    low, high = float(found.min()), float(found.max())
    if high - low < FLAT:
        low, high = low - FLAT, high + FLAT
    span = high - low
    step = next(s for d in range(-4, 6) for s in (10.0**d, 2 * 10.0**d, 5 * 10.0**d) if span / s <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * n, 10) for n in range(first, max(last, first + 1) + 1)]
