"""The figure of two pools of factors: any down factor can meet any up factor, with a weight for each pair."""

from __future__ import annotations

from app.ui.components import escape
from app.ui.mixture import BOX, DOWN, GATE, SHOWN, SUM, UP, Mixture, X, factors, hue

SLOT = 30.0
CELL = 12.0


def height(m: Mixture) -> float:
    return SLOT * min(max(m.pools), SHOWN)


def pairs(m: Mixture, top: float) -> list[str]:
    """Factors in two columns and the grid of their weights between, from ``top`` on."""
    middle = top + height(m) / 2
    shown = [_shown(count) for count in m.pools]
    ys = [[middle + (i - (len(numbers) - 1) / 2) * SLOT for i in range(len(numbers))] for numbers in shown]
    wide, tall = CELL * len(shown[0]), CELL * len(shown[1])
    left, right = GATE - wide / 2, GATE + wide / 2
    parts = []
    for x, letter, word, numbers, places in (
        (DOWN, "v", m.down, shown[0], ys[0]),
        (UP, "u", m.up, shown[1], ys[1]),
    ):
        for number, y in zip(numbers, places, strict=True):
            if number is None:
                parts.append(f'<text x="{x + BOX / 2}" y="{y + 5:.0f}" class="dots">⋮</text>')
                continue
            ends = ((X + 8, middle, DOWN, y), (DOWN + BOX, y, left, middle))
            if x == UP:
                ends = ((right, middle, UP, y), (UP + BOX, y, SUM - 12, middle))
            parts += [_curve(*end) for end in ends]
            parts.append(factors(x, y, SLOT * 0.74, letter, number, word, False))
    return [*parts, *_weights(m, left, middle - tall / 2, len(shown[0]), len(shown[1]))]


def _weights(m: Mixture, x: float, y: float, columns: int, rows: int) -> list[str]:
    return [
        f'<rect class="matrix-box word-{escape(m.gate)}" {hue(m.gate)} x="{x + c * CELL + 1:.1f}" '
        f'y="{y + r * CELL + 1:.1f}" width="{CELL - 2:.0f}" height="{CELL - 2:.0f}" rx="2"/>'
        for r in range(rows)
        for c in range(columns)
    ]


def _shown(count: int) -> list[int | None]:
    """The numbers of the factors that are drawn; None stands for those that are left out."""
    return list(range(count)) if count <= SHOWN else [*range(SHOWN - 2), None, count - 1]


def _curve(x1: float, y1: float, x2: float, y2: float) -> str:
    half = (x1 + x2) / 2
    return f'<path d="M{x1:.0f} {y1:.1f} C{half:.0f} {y1:.1f} {half:.0f} {y2:.1f} {x2:.0f} {y2:.1f}"/>'
