"""One mixture as a picture: x to down to gate to up to y, with as many boxes as there are matrices."""

from __future__ import annotations

from app.ui.components import escape

SHOWN = 6
STEP = 32


def diagram(down: str, gate: str, up: str, experts: int, selected: int | None = None) -> str:
    """SVG of one split. ``selected``: experts used at a time, where fewer than all."""
    shown = min(experts, SHOWN)
    ys = [36 + i * STEP for i in range(shown)]
    middle = sum(ys) / len(ys)
    single = experts == 1 or (down == "shared" and up == "shared")
    downs = [middle] if single or down == "shared" else ys
    ups = [middle] if single or up == "shared" else ys
    gated = not single and gate != "none"
    parts = [_line(40, middle, 92, y) for y in downs]
    for i, y in enumerate(downs):
        parts.append(_box(92, y, "D", i if len(downs) > 1 else None, down))
    if gated:
        for i, y in enumerate(ys):
            dim = selected is not None and i >= selected
            parts += [
                _line(146, downs[i] if len(downs) > 1 else middle, 196, y, dim),
                f'<circle cx="209" cy="{y:.0f}" r="12"{_faint(dim)}/>'
                f'<text x="209" y="{y + 4:.0f}" text-anchor="middle">g{_index(i)}</text>',
                _line(222, y, 272, ups[i] if len(ups) > 1 else middle, dim),
            ]
    else:
        parts += [_line(146, a, 272, b) for a, b in _pairs(downs, ups)]
    for i, y in enumerate(ups):
        parts += [_box(272, y, "U", i if len(ups) > 1 else None, up), _line(326, y, 378, middle)]
    bottom = ys[-1] + 40
    parts += _router(gate, middle, ys[0]) if gated else []
    notes = []
    if experts > shown and not single:
        notes.append(f"{experts} experts in all")
    if gated and selected is not None and selected < experts:
        notes.append(f"the {selected} largest gates of {experts} speak")
    if notes:
        parts.append(
            f'<text x="209" y="{bottom - 4}" text-anchor="middle" class="dim">{escape("; ".join(notes))}</text>'
        )
    ends = (
        f'<text x="28" y="{middle + 5:.0f}" class="end">x</text>'
        f'<text x="384" y="{middle + 5:.0f}" class="end">+ W₀x</text>'
    )
    label = f"down {down}, gate {gate}, up {up}, {experts} experts"
    return (
        f'<svg viewBox="0 0 440 {bottom + 10:.0f}" role="img" aria-label="{escape(label)}">{"".join(parts)}{ends}</svg>'
    )


def _pairs(downs: list[float], ups: list[float]) -> list[tuple[float, float]]:
    longest = max(len(downs), len(ups))
    return [(downs[i % len(downs)], ups[i % len(ups)]) for i in range(longest)]


def _router(gate: str, middle: float, top: float) -> list[str]:
    """What the gate looks at, as a dashed line from the input."""
    sees = {"token": "each token", "sequence": "the prompt", "task": "the task"}.get(gate, gate)
    y = top - 24
    return [
        f'<path d="M40 {middle - 8:.0f} C60 {y:.0f} 120 {y:.0f} 209 {y:.0f}" stroke-dasharray="3 3"/>',
        f'<text x="216" y="{y + 4:.0f}" class="dim">gates from {escape(sees)}</text>',
    ]


def _line(x1: float, y1: float, x2: float, y2: float, dim: bool = False) -> str:
    half = (x1 + x2) / 2
    return f'<path d="M{x1} {y1:.0f} C{half} {y1:.0f} {half} {y2:.0f} {x2} {y2:.0f}"{_faint(dim)}/>'


def _faint(dim: bool) -> str:
    return ' opacity=".35"' if dim else ""


def _index(i: int) -> str:
    return f'<tspan dy="3" font-size="8">{i + 1}</tspan>'


def _box(x: float, y: float, letter: str, index: int | None, word: str) -> str:
    number = "" if index is None else _index(index)
    return (
        f'<rect class="matrix-box word-{escape(word)}" x="{x}" y="{y - 12:.0f}" width="54" height="24" rx="5"/>'
        f'<text x="{x + 27}" y="{y + 4:.0f}" text-anchor="middle">{letter}{number}</text>'
    )
