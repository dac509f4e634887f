"""One mixture as a figure: the frozen matrix above, and below it what is trained, drawn to relative size.

Down matrices narrow from the projection's inputs to the rank, up matrices widen to its outputs: one box where experts
share a matrix, one for each expert where they do not. Selected gates are filled, the others are faint. A word that no
function here knows is drawn by what all words say of themselves: shared or not, its decisions, its parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.ui import pools
from app.ui.components import escape
from app.ui.mixture import (
    BEFORE,
    BEFORE_BOX,
    BOX,
    DOWN,
    GATE,
    PLAIN,
    SEES,
    SHOWN,
    SUM,
    UP,
    WIDE,
    Mixture,
    X,
    Y,
    down_part,
    hue,
    index,
    opacity,
    subspace,
    up_part,
)  # fmt: skip

ROOM = 56  # letters beside the router
TOP = 118  # the mixture begins here; the frozen matrix lies above


def diagram(mixture: Mixture) -> str:
    """SVG of one mixture, with the experts of each block of layers below where their numbers differ."""
    m = mixture
    if m.frozen:
        return _base_alone(m)
    if any(m.pools):
        bottom = TOP + pools.height(m)
        middle, first = (TOP + bottom) / 2, TOP + pools.SLOT / 2
        inner = [*pools.pairs(m, TOP), *_router(m, middle, first), *_sum(m, middle)]
    else:
        lanes = _lanes(m)
        first, last = lanes[0][0], lanes[-1][0]
        middle, bottom = (first + last) / 2, last + _slot(m) / 2
        inner = _mixture(m, lanes, middle)
    parts = [_frozen(m, middle), *inner, *_ends(m, middle), *_counts(m, bottom + 20)]
    height = bottom + 52
    if len({experts for _, experts in m.depth}) > 1:
        picture, tall = _depth(m, height + 4)
        parts.append(picture)
        height += tall
    parts.append(formula(m, height + 16))
    return (
        f'<svg class="mixture" viewBox="0 0 {WIDE} {height + 30:.0f}" role="img" aria-label="{escape(describe(m))}">'
        f"{''.join(parts)}</svg>"
    )


def describe(m: Mixture) -> str:
    """The figure in words."""
    if m.frozen:
        return f"The frozen base alone: {m.inputs:,} inputs, {m.outputs:,} outputs"
    if m.single:
        return f"One low-rank pair of rank {m.rank}" if m.down != "identity" else "One update of full rank"
    who = _sees(m)
    gates = "added up" if m.gate == "none" else f"weighted by {who}"
    return f"{m.experts} experts of rank {m.rank}: down {m.down}, up {m.up}, {gates}, {m.selected} used at a time"


def _slot(m: Mixture) -> float:
    """Height that one expert has."""
    return 96.0 if m.single else {2: 62.0, 3: 50.0, 4: 42.0}.get(m.experts, 32.0)


def _lanes(m: Mixture) -> list[tuple[float, int | None]]:
    """(height, number of the expert) from the top; None stands for those that are left out."""
    numbers: list[int | None] = list(range(1 if m.single else m.experts))
    if len(numbers) > SHOWN:
        numbers = [*numbers[: SHOWN - 2], None, m.experts - 1]
    slot = _slot(m)
    return [(TOP + slot / 2 + i * slot, number) for i, number in enumerate(numbers)]


def _mixture(m: Mixture, lanes: list[tuple[float, int | None]], middle: float) -> list[str]:
    """From x through down, gate and up to the sum."""
    one_down, one_up = m.single or m.down_shared, m.single or m.up_shared
    scale = 0.84 * _slot(m) / max(m.inputs, m.outputs)
    size = {"down": (m.inputs * scale, max(5.0, m.rank * scale)), "up": (max(5.0, m.rank * scale), m.outputs * scale)}
    chosen = _chosen(m, [number for _, number in lanes])
    lines, shapes, start = [], [], X + 8
    if m.down == "subspace":
        start = BEFORE + BEFORE_BOX
        lines.append(_curve(X + 8, middle, BEFORE, middle, False))
        shapes.append(subspace(m, middle, *size["down"]))
    for y, number in lanes:
        if number is None:
            shapes += [f'<text x="{x}" y="{y + 5:.0f}" class="dots">⋮</text>' for x in _columns(m)]
            continue
        faint = m.sparse and number not in chosen
        down_y, up_y = (middle if one_down else y), (middle if one_up else y)
        lines.append(_curve(start, middle, DOWN, down_y, faint and not one_down))
        if m.gated:
            lines.append(_curve(DOWN + BOX, down_y, GATE - 13, y, faint))
            lines.append(_curve(GATE + 13, y, UP, up_y, faint))
            shapes.append(_gate(y, number, faint, m))
        else:
            lines.append(_curve(DOWN + BOX, down_y, UP, up_y, False))
        lines.append(_curve(UP + BOX, up_y, SUM - 12, middle, faint and not one_up))
        if not one_down or number == lanes[0][1]:
            name, dim = (None, False) if one_down else (number, faint)
            shapes.append(down_part(m, down_y, size["down"], name, dim))
        if not one_up or number == lanes[0][1]:
            shapes.append(up_part(m, up_y, size["up"], number if not one_up else None, faint))
    return [*dict.fromkeys(lines), *_router(m, middle, lanes[0][0]), *shapes, *_sum(m, middle)]


def _columns(m: Mixture) -> list[float]:
    """Where something stands for each expert."""
    found = [(DOWN + BOX / 2, not m.down_shared), (GATE, m.gated), (UP + BOX / 2, not m.up_shared)]
    return [x for x, several in found if several]


def _chosen(m: Mixture, numbers: Sequence[int | None]) -> set[int]:
    """The experts that the figure shows as selected: spread, since which ones they are changes from token to token."""
    known = [number for number in numbers if number is not None]
    if not m.sparse:
        return set(known)
    count = min(m.selected, len(known))
    return {known[(2 * i + 1) * len(known) // (2 * count)] for i in range(count)}


def _gate(y: float, number: int, faint: bool, m: Mixture) -> str:
    css = "gate" if faint else "gate on"
    if m.groups > 1:  # a weight for each rank or block of ranks: a column of small gates
        shown = min(m.groups, 4)
        step = min(9.0, (_slot(m) - 4) / shown)
        dots = "".join(
            f'<circle class="{css} word-{escape(m.gate)}" {hue(m.gate)} cx="{GATE}" '
            f'cy="{y + (i - (shown - 1) / 2) * step:.1f}" r="{step / 2 - 0.6:.1f}"/>'
            for i in range(shown)
        )
        return (
            f'<g{opacity(faint)}>{dots}<text x="{GATE + 15}" y="{y + 4:.1f}" class="name">g{index(number)}</text></g>'
        )
    return (
        f'<g{opacity(faint)}><circle class="{css} word-{escape(m.gate)}" {hue(m.gate)} cx="{GATE}" '
        f'cy="{y:.1f}" r="12"/>'
        f'<text x="{GATE}" y="{y + 4:.1f}" text-anchor="middle" class="name">g{index(number)}</text></g>'
    )


def _router(m: Mixture, middle: float, first: float) -> list[str]:
    """What the gates are decided from, as a dashed line from the input."""
    if not m.gated:
        return []
    y = first - max(22.0, _slot(m) / 2 + 8)
    how = f"top {m.selected} of {m.experts}" if m.sparse else f"all {m.experts}"
    how += {"block": " · shared in a block", "model": " · shared by all layers"}.get(m.scope, "")
    start = f"M{X + 8} {middle - 14:.0f} C{X + 50} {y:.0f} {X + 80} {y:.0f} {GATE - 60} {y:.0f}"
    path = f"{start} L{GATE - 14} {y:.0f} Q{GATE} {y:.0f} {GATE} {y + 9:.0f}"
    return [
        f'<path class="router word-{escape(m.gate)}" {hue(m.gate)} d="{path}"/>',
        *_told(f"gates from {_sees(m)}", how, y),
    ]


def _told(sees: str, how: str, y: float) -> list[str]:
    """What the gates see and how many are used: on one line where there is room, else on two."""
    together = f"{sees} · {how}"
    lines = [together] if len(together) <= ROOM else [sees, how]
    return [
        f'<text x="{GATE + 12}" y="{y + 4 - 13 * (len(lines) - 1 - i):.0f}" class="dim">{escape(line)}</text>'
        for i, line in enumerate(lines)
    ]


def _sees(m: Mixture) -> str:
    """What the gates are decided from; an unknown word says what one of its decisions covers."""
    return SEES.get(m.gate) or f"{m.gate.replace('_', ' ')}, for each {m.unit or 'sample'}"


def _base_alone(m: Mixture) -> str:
    """The frozen matrix between x and y, and nothing beside it."""
    middle = 44.0
    tall, wide = 52 * min(1.0, m.outputs / m.inputs), 52 * min(1.0, m.inputs / m.outputs)
    x = (DOWN + UP + BOX) / 2
    vectors = "".join(
        f'<rect class="vector" x="{at}" y="{middle - 30 * size / max(m.inputs, m.outputs):.1f}" width="8" '
        f'height="{60 * size / max(m.inputs, m.outputs):.1f}" rx="2"/>'
        f'<text x="{at + side}" y="{middle + 5:.0f}" class="end">{letter}</text>'
        for at, size, letter, side in ((X, m.inputs, "x", -14), (Y, m.outputs, "y", 20))
    )
    return (
        f'<svg class="mixture" viewBox="0 0 {WIDE} 104" role="img" aria-label="{escape(describe(m))}">'
        f'<path d="M{X + 8} {middle} L{x - wide / 2:.0f} {middle} M{x + wide / 2:.0f} {middle} L{Y} {middle}"/>'
        f'{vectors}<rect class="frozen" x="{x - wide / 2:.0f}" y="{middle - tall / 2:.0f}" width="{wide:.0f}" '
        f'height="{tall:.0f}" rx="3"/><text x="{x:.0f}" y="92" text-anchor="middle" class="dim">{escape(m.projection)} '
        f"{m.inputs:,} → {m.outputs:,}, frozen: y = W{index(0)}x</text></svg>"
    )


def _frozen(m: Mixture, middle: float) -> str:
    """The matrix of the base: to scale with itself alone, so that it fits; it is never trained."""
    y, x = 44, (DOWN + UP + BOX) / 2
    tall, wide = 52 * min(1.0, m.outputs / m.inputs), 52 * min(1.0, m.inputs / m.outputs)
    left = f"M{X + 8} {middle - 6:.0f} C{X + 40} {y} {X + 40} {y} {X + 70} {y} L{x - wide / 2:.0f} {y}"
    right = f"M{x + wide / 2:.0f} {y} L{SUM} {y} Q{Y - 26} {y} {Y - 26} {y + 30} L{Y - 26} {middle - 13:.0f}"
    name = f"W{index(0)}"
    roomy = min(tall, wide) >= 20
    inside = f'<text x="{x:.0f}" y="{y + 4}" text-anchor="middle" class="name">{name}</text>' if roomy else ""
    shape = f"{escape(m.projection)} {m.inputs:,} → {m.outputs:,}, frozen"
    return (
        f'<path d="{left}"/><path d="{right}"/><rect class="frozen" x="{x - wide / 2:.0f}" y="{y - tall / 2:.0f}" '
        f'width="{wide:.0f}" height="{tall:.0f}" rx="3"/>{inside}'
        f'<text x="{x + wide / 2 + 12:.0f}" y="{y - 8}" class="dim">{"" if roomy else name + ", "}'
        f'<tspan dy="{0 if roomy else -3}">{shape}</tspan></text>'
    )


def _ends(m: Mixture, middle: float) -> list[str]:
    """x on the left and y on the right, as vectors of the right relative length."""
    longest = max(m.inputs, m.outputs)
    found = []
    for x, size, letter, side in ((X, m.inputs, "x", -14), (Y, m.outputs, "y", 20)):
        tall = 84 * size / longest
        found.append(
            f'<rect class="vector" x="{x}" y="{middle - tall / 2:.1f}" width="8" height="{tall:.1f}" rx="2"/>'
            f'<text x="{x + side}" y="{middle + 5:.0f}" class="end">{letter}</text>'
        )
    plus = Y - 26
    return [
        *found,
        f'<path d="M{SUM + 12} {middle:.0f} L{plus - 9} {middle:.0f} M{plus + 9} {middle:.0f} L{Y} {middle:.0f}"/>',
        f'<circle class="node" cx="{plus}" cy="{middle:.0f}" r="9"/>'
        f'<text x="{plus}" y="{middle + 5:.0f}" text-anchor="middle" class="sign">+</text>',
    ]


def _sum(m: Mixture, middle: float) -> list[str]:
    scale = f'<text x="{SUM}" y="{middle + (18 if m.single else 28):.0f}" text-anchor="middle" class="dim">α ∕ r</text>'
    if m.single:
        return [f'<path d="M{SUM - 12} {middle:.0f} L{SUM + 12} {middle:.0f}"/>', scale]
    return [
        f'<circle class="node" cx="{SUM}" cy="{middle:.0f}" r="12"/>'
        f'<text x="{SUM}" y="{middle + 5:.0f}" text-anchor="middle" class="sign">Σ</text>',
        scale,
    ]


def _counts(m: Mixture, y: float) -> list[str]:
    """How many matrices of which shape stand above."""
    downs = 1 if m.single or m.down_shared else m.experts
    ups = 1 if m.single or m.up_shared else m.experts
    found = [
        (DOWN + BOX / 2, "" if m.single else m.down, _size(m, "down", m.down, f"{downs} × ({m.rank} × {m.inputs:,})")),
        (UP + BOX / 2, "" if m.single else m.up, _size(m, "up", m.up, f"{ups} × ({m.outputs:,} × {m.rank})")),
    ]
    if m.gated:
        rows = "tasks" if m.gate == "task" else f"{m.inputs:,}"
        found.append((GATE, m.gate, _size(m, "gate", m.gate, f"{m.experts} × {rows}")))
    return [
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle" class="shape">{escape(shape)}</text>'
        f'<text x="{x:.0f}" y="{y + 15:.0f}" text-anchor="middle" '
        f'class="word word-{escape(word)}" {hue(word)}>{escape(word.replace("_", " "))}</text>'
        for x, word, shape in found
    ]


def _size(m: Mixture, part: str, word: str, plain: str) -> str:
    """The shapes of plain matrices and routers; of other words, how many parameters they bring."""
    if m.down == "identity" and part == "up":
        return f"{m.experts} × ({m.outputs:,} × {m.inputs:,})"
    if any(m.pools) and part != "gate":
        return f"{m.pools[part == 'up']} × {m.inputs if part == 'down' else m.outputs:,}"
    if word in (*PLAIN, "token", "sequence", "task") or part not in m.counts:
        return plain
    return f"{m.counts[part]:,} parameters" if m.counts[part] else "no parameters"


def _depth(m: Mixture, top: float) -> tuple[str, float]:
    """A row of squares for each block of layers, the upper layers on top, as they lie in the model."""
    row, most = 17.0, max(experts for _, experts in m.depth)
    cell = min(15.0, 300 / most)
    parts = [f'<text x="{DOWN}" y="{top + 12:.0f}" class="head">Experts in each block of layers</text>']
    for i, (name, experts) in enumerate(reversed(m.depth)):
        y = top + 22 + i * row
        parts.append(
            f'<text x="{DOWN + BOX}" y="{y + 11:.1f}" text-anchor="end" class="dim">layers {escape(name)}</text>'
        )
        parts += [
            f'<rect class="matrix-box word-{escape(m.up)}" {hue(m.up)} x="{GATE - 70 + e * cell:.1f}" y="{y + 1:.1f}" '
            f'width="{cell - 2.5:.1f}" height="12" rx="2"/>'
            for e in range(experts)
        ]
        parts.append(f'<text x="{GATE - 60 + experts * cell:.1f}" y="{y + 11:.1f}" class="shape">{experts}</text>')
    return "".join(parts), 34 + row * len(m.depth)


def formula(m: Mixture, y: float) -> str:
    """The sentence of the mixture, with indices where experts differ."""
    sub = '<tspan dy="3" font-size="10">{}</tspan><tspan dy="-3">​</tspan>'
    e = sub.format("e")
    own_down = "" if m.single or m.down_shared else e
    up = "U" if m.single or m.up_shared else f"U{e}"
    gate = f"g{e}(x) " if m.gated else ""
    if m.gated and m.groups > 1:
        gate = f"g{e}(x) ⊙ "
    down = {"identity": "", "subspace": f"P{e} S ", "task_transform": f"Λ{sub.format('t')}D{own_down} "}.get(
        m.down, f"D{own_down} "
    )
    if m.down == "pool" and m.up == "pool":
        up, down = f"u{sub.format('j')}", f"v{sub.format('i')}ᵀ "
        gate = gate and f"g{sub.format('ij')}(x) "
    total = "" if m.single else f"Σ{sub.format('e ∈ top ' + str(m.selected) if m.sparse else 'e')} "
    inner = f"{up} ({gate}{down}x)" if m.gated and m.groups > 1 else f"{gate}{up} {down}x"
    return (
        f'<text x="{WIDE / 2}" y="{y:.0f}" text-anchor="middle" class="formula">'
        f"y = W{sub.format('0')}x + (α ∕ r) {total}{inner}</text>"
    )


def _curve(x1: float, y1: float, x2: float, y2: float, faint: bool) -> str:
    half = (x1 + x2) / 2
    return f'<path d="M{x1:.0f} {y1:.1f} C{half:.0f} {y1:.1f} {half:.0f} {y2:.1f} {x2:.0f} {y2:.1f}"{opacity(faint)}/>'
