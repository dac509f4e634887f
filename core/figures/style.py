"""One look for all figures: paper and ink by day, slate by night."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

Theme = Literal["light", "dark"]

FONTS = ("Source Sans 3", "Source Sans Pro", "Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans")

SERIES = ("#0f6d7a", "#d08a2e", "#7a6bb0", "#5b9a55", "#c2574f", "#4a78c2", "#a8873d", "#b5679b")


@dataclass(frozen=True)
class Look:
    """Colours of one theme as hex strings; ``ramp``, ``less`` and ``more`` are OKLCH: lightness, chroma, hue."""

    paper: str
    panel: str
    ink: str
    dim: str
    line: str
    ramp: tuple[tuple[float, float, float], ...]
    less: tuple[float, float, float]
    more: tuple[float, float, float]


LOOKS: dict[Theme, Look] = {
    "light": Look(
        paper="#ffffff",
        panel="#ffffff",
        ink="#1d2733",
        dim="#667482",
        line="#d9d9d1",
        ramp=((0.968, 0.007, 120), (0.58, 0.076, 212), (0.235, 0.055, 264)),
        less=(0.47, 0.125, 45),
        more=(0.42, 0.085, 215),
    ),
    "dark": Look(
        paper="#10151b",
        panel="#171e26",
        ink="#dbe3ea",
        dim="#8a99a8",
        line="#2c3744",
        ramp=((0.27, 0.030, 258), (0.62, 0.080, 205), (0.955, 0.070, 110)),
        less=(0.78, 0.135, 55),
        more=(0.80, 0.105, 205),
    ),
}


@cache
def ramp(theme: Theme = "light", steps: int = 64) -> tuple[str, ...]:
    """A sequential colour scale whose perceived lightness (OKLab L) falls or rises in equal steps."""
    lightness, chroma, hue = np.array(LOOKS[theme].ramp).T
    at = np.linspace(lightness[0], lightness[-1], steps)
    a, b = chroma * np.cos(np.radians(hue)), chroma * np.sin(np.radians(hue))
    # a parabola through the three stops: no kink in hue or chroma that the eye would read as an edge in the data
    lab = np.stack([at, *(np.polyval(np.polyfit(lightness, axis, 2), at) for axis in (a, b))], axis=1)
    return tuple("#" + "".join(f"{round(255 * v):02x}" for v in rgb) for rgb in _srgb(lab))


@cache
def diverging(theme: Theme = "light", steps: int = 33) -> tuple[str, ...]:
    """From less over the paper's colour to more, in equal steps of perceived lightness on each side."""
    look = LOOKS[theme]
    ends = np.array([look.less, look.ramp[0], look.more])
    hues = np.radians(ends[:, 2])
    stops = np.stack([ends[:, 0], ends[:, 1] * np.cos(hues), ends[:, 1] * np.sin(hues)], axis=1)
    at = np.linspace(0, 2, steps)
    lab = np.stack([np.interp(at, (0, 1, 2), axis) for axis in stops.T], axis=1)
    return tuple("#" + "".join(f"{round(255 * v):02x}" for v in rgb) for rgb in _srgb(lab))


def plotly_scale(theme: Theme = "light", steps: int = 33, signed: bool = False) -> list[list[float | str]]:
    """``ramp``, or ``diverging`` about 0, as Plotly wants it: pairs of position and colour."""
    return [[i / (steps - 1), colour] for i, colour in enumerate((diverging if signed else ramp)(theme, steps))]


def layout(theme: Theme, title: str = "") -> dict[str, Any]:
    """What every Plotly figure of the studio shares."""
    look = LOOKS[theme]
    axis = {
        "gridcolor": look.line,
        "linecolor": look.line,
        "zeroline": False,
        "tickfont": {"color": look.dim, "size": 11},
        "title": {"font": {"color": look.dim, "size": 12}},
    }
    heading = {"text": f"<b>{title}</b>", "x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 24}}
    return {
        "template": {"layout": {"xaxis": axis, "yaxis": axis, "colorway": list(SERIES)}},
        "title": {**heading, "font": {"size": 17}} if title else None,
        "font": {"family": ", ".join(FONTS[:5]) + ", sans-serif", "color": look.ink, "size": 13},
        "paper_bgcolor": look.paper,
        "plot_bgcolor": look.paper,
        "hoverlabel": {"bgcolor": look.ink, "font": {"color": look.paper}, "bordercolor": look.ink},
    }


def _srgb(lab: np.ndarray) -> np.ndarray:
    """OKLab (n, 3) to sRGB in [0, 1] (Ottosson 2020); colours outside the gamut are clipped."""
    mixed = lab @ np.array(
        [
            [1.0, 1.0, 1.0],
            [0.3963377774, -0.1055613458, -0.0894841775],
            [0.2158037573, -0.0638541728, -1.2914855480],
        ]
    )
    linear = mixed**3 @ np.array(
        [
            [4.0767416621, -1.2684380046, -0.0041960863],
            [-3.3077115913, 2.6097574011, -0.7034186147],
            [0.2309699292, -0.3413193965, 1.7076147010],
        ]
    )
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
