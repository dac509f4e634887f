"""The parts of a mixture's figure that hang on its words: what is drawn, and how each word's matrices look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.ui.components import escape

WIDE = 640
SHOWN = 8
X, DOWN, GATE, UP, SUM, Y = 34, 118, 300, 410, 540, 606  # where the parts stand from left to right
BOX = 74  # width of a matrix
BEFORE, BEFORE_BOX = 60, 40  # a shared matrix before those of the experts
SEES = {
    "token": "each token",
    "sequence": "the mean of the prompt",
    "task": "the name of the task",
    "rank": "each token, rank by rank",
    "label": "the prompt, taught the task",
    "intuition": "each token and what the prompt resembles",
    "conditional": "the sample",
}
COLOURED = (
    *("shared", "unique", "subspace", "none", "pool", "token", "sequence", "task", "rank", "label", "intuition"),
    *("identity", "task_transform", "conditional", "contrastive", "off", ""),
)  # words that have a colour in the style sheet
PLAIN = ("shared", "unique")  # words whose matrices have the projection's widths and the rank


@dataclass(frozen=True)
class Mixture:
    """What is drawn. ``selected``: experts used at a time; ``depth``: (block of layers, experts), lowest first.

    ``groups``: decisions of the gate beside each other; ``scope``: what has one gate; ``counts``: trainable parameters
    by part; ``frozen``: the base alone.
    """

    down: str
    gate: str
    up: str
    experts: int = 1
    selected: int = 1
    rank: int = 8
    inputs: int = 256
    outputs: int = 256
    projection: str = ""
    down_shared: bool = False
    up_shared: bool = False
    groups: int = 1
    scope: str = "projection"
    unit: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    frozen: bool = False
    depth: Sequence[tuple[str, int]] = ()

    @property
    def single(self) -> bool:
        return self.experts == 1 or (self.down_shared and self.up_shared)

    @property
    def pools(self) -> tuple[int, int]:
        """Down and up factors where any pair of them is an expert; (0, 0) for other mixtures."""
        if self.down != "pool" or self.up != "pool" or not {"down", "up"} <= set(self.counts):
            return 0, 0
        first, second = self.counts["down"] // self.inputs, self.counts["up"] // self.outputs
        return (first, second) if first * second == self.experts > 1 else (0, 0)

    @property
    def gated(self) -> bool:
        return not self.single and self.gate != "none"

    @property
    def sparse(self) -> bool:
        return self.gated and self.selected < self.experts


def down_part(m: Mixture, y: float, sides: tuple[float, float], number: int | None, faint: bool) -> str:
    """The down part of one expert, or the one of all."""
    left, right = sides
    if m.down == "identity":
        return f'<path class="straight" d="M{DOWN} {y:.1f} L{DOWN + BOX} {y:.1f}"/>'
    if m.down == "subspace":  # an expert's own small matrix; the shared one stands before all of them
        return matrix(DOWN, y, subspace_side(m, left, right), right, "P", number, m.down, faint)
    if m.down == "task_transform":
        side = max(16.0, min(26.0, right * 2))
        box = f'x="{DOWN + BOX - side:.1f}" y="{y - side / 2:.1f}" width="{side:.1f}" height="{side:.1f}"'
        return (
            matrix(DOWN, y, left, right, "D", number, m.down, faint, BOX - side - 6)
            + f'<g{opacity(faint)}><rect class="matrix-box word-task" {box} rx="3"/>'
            f'<text x="{DOWN + BOX - side / 2:.1f}" y="{y + 4:.1f}" text-anchor="middle" class="name">Λ</text></g>'
        )
    if m.down == "pool":
        return factors(DOWN, y, left, "v", number, m.down, faint)
    return matrix(DOWN, y, left, right, "D", number, m.down, faint)


def subspace_side(m: Mixture, left: float, right: float) -> float:
    """How tall the shared subspace is drawn, between the inputs and one expert's rank."""
    return max(right, min(0.7 * left, right * max(2, m.experts) / 2))


def subspace(m: Mixture, y: float, left: float, right: float) -> str:
    """The matrix into the subspace that all experts share."""
    return matrix(BEFORE, y, left, subspace_side(m, left, right), "S", None, m.down, False, BEFORE_BOX)


def up_part(m: Mixture, y: float, sides: tuple[float, float], number: int | None, faint: bool) -> str:
    if m.up == "pool":
        return factors(UP, y, sides[1], "u", number, m.up, faint)
    return matrix(UP, y, *sides, "U", number, m.up, faint)


def factors(x: float, y: float, tall: float, letter: str, number: int | None, word: str, faint: bool) -> str:
    """A factor of a pool: one vector of the projection's width, named beside it."""
    tall = max(12.0, tall)
    middle = x + BOX / 2
    return (
        f'<g{opacity(faint)}><rect class="matrix-box word-{escape(word)}" {hue(word)} x="{middle - 5:.1f}" '
        f'y="{y - tall / 2:.1f}" width="10" height="{tall:.1f}" rx="2"/><path d="M{x} {y:.1f} '
        f'L{middle - 5:.1f} {y:.1f} M{middle + 5:.1f} {y:.1f} L{x + BOX} {y:.1f}"/>'
        f'<text x="{middle + 12:.1f}" y="{y - 5:.1f}" class="name">{letter}{index(number)}</text></g>'
    )


def matrix(
    x: float,
    y: float,
    left: float,
    right: float,
    letter: str,
    number: int | None,
    word: str,
    faint: bool,
    width: float = BOX,
) -> str:
    """A trapezium whose upright sides are as long as the matrix is wide there; a thin one has its name above."""
    corners = ((x, y - left / 2), (x + width, y - right / 2), (x + width, y + right / 2), (x, y + left / 2))
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    high = (left + right) / 2
    line = y + 4 if high >= 14 else y - high / 2 - 3
    return (
        f'<g{opacity(faint)}><polygon class="matrix-box word-{escape(word)}" {hue(word)} points="{points}"/>'
        f'<text x="{x + width / 2:.1f}" y="{line:.1f}" text-anchor="middle" class="name">'
        f"{letter}{index(number)}</text></g>"
    )


def hue(word: str) -> str:
    """A colour for words that the style sheet does not know: the same for a name wherever it is drawn."""
    if word in COLOURED:
        return ""
    angle = (sum(ord(letter) * (i + 3) for i, letter in enumerate(word)) * 37) % 360
    return f'style="--w:hsl({angle} 45% 52%)"'


def opacity(faint: bool) -> str:
    return ' opacity=".3"' if faint else ""


def index(number: int | None) -> str:
    return "" if number is None else f'<tspan dy="3" font-size="9">{number}</tspan>'
