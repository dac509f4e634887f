"""Fusion as figures: conflicts of task vectors, learned coefficients, curves, and a sweep over the channel's SNR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.errors import ConfigurationError, NotFoundError
from core.figures.static import PAGE, canvas, save
from core.figures.style import LOOKS, SERIES, Theme, layout, plotly_scale

INSPIRED = "R-MTLLMF-inspired, studio specification"
MEASURES = {"score": "score, mean over the tasks", "disentanglement_error": "weight disentanglement error"}
IDEAL = "ideal"


@dataclass(frozen=True)
class SweepLine:
    """One protection arm: ``mean`` and ``spread`` (std over seeds, NaN of one seed) at each ``snr`` (dB, rising).

    ``ideal``: the mean on a channel without noise, None where that was not measured.
    """

    protection: str
    snr: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    ideal: float | None
    seeds: int


def attacks(frame: pd.DataFrame) -> list[str]:
    """The attacks of a sweep, in order; the ideal channel is none."""
    return list(dict.fromkeys(frame.loc[frame["snr"].notna(), "attack"].astype(str)))


def sweep_lines(frame: pd.DataFrame, attack: str, measure: str = "score") -> list[SweepLine]:
    """One line for each protection arm under ``attack``: means over the tasks of each seed, then over the seeds.

    ``frame``: columns protection, attack, snr (dB, null: ideal channel), seed, task and ``measure``.
    """
    if measure not in frame:
        raise ConfigurationError(f"{measure!r} is no column of a sweep.", f"Choose one of {', '.join(MEASURES)}.")
    known = attacks(frame)
    if attack not in known:
        raise NotFoundError(f"This sweep has no attack {attack!r}.", f"It has {', '.join(known) or 'none'}.")
    noisy = frame[frame["snr"].notna() & (frame["attack"] == attack)]
    clean = frame[frame["snr"].isna() & frame["attack"].isin([attack, IDEAL])]
    lines = []
    for arm in dict.fromkeys(noisy["protection"].astype(str)):
        own = noisy[noisy["protection"] == arm].groupby(["snr", "seed"])[measure].mean().groupby("snr")
        still = clean.loc[clean["protection"] == arm, measure].mean() if len(clean) else np.nan
        lines.append(
            SweepLine(
                protection=arm,
                snr=own.mean().index.to_numpy(dtype=float),
                mean=own.mean().to_numpy(dtype=float),
                spread=own.std().to_numpy(dtype=float),
                ideal=None if np.isnan(still) else float(still),
                seeds=int(own.count().max()),
            )
        )
    return lines


def sweep_figure(frame: pd.DataFrame, attack: str = "", *, theme: Theme = "light", title: str = "") -> Any:
    """Score and disentanglement error against SNR, a line for each protection arm; the band is one std over seeds."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    attack = attack or (attacks(frame) or [""])[0]
    measures = [name for name in MEASURES if name in frame and frame[name].notna().any()]
    drawing = make_subplots(rows=1, cols=len(measures), horizontal_spacing=0.1)
    for column, measure in enumerate(measures, 1):
        for index, line in enumerate(sweep_lines(frame, attack, measure)):
            for trace in _sweep_traces(go, line, SERIES[index % len(SERIES)], column == 1):
                drawing.add_trace(trace, row=1, col=column)
        drawing.update_yaxes(title_text=MEASURES[measure], row=1, col=column)
    drawing.update_xaxes(title_text="SNR (dB); dotted: ideal channel", showgrid=False)
    legend = {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"}
    margin = {"l": 70, "r": 24, "t": 72 if title else 40, "b": 90}
    drawing.update_layout(**layout(theme, title), height=420, margin=margin, legend=legend)
    note = {"showarrow": False, "xref": "paper", "yref": "paper", "x": 1, "y": 1.02, "xanchor": "right"}
    dim = {"size": 12, "color": LOOKS[theme].dim}
    drawing.add_annotation(**note, yanchor="bottom", text=f"attack: {attack} · {INSPIRED}", font=dim)
    return drawing


def _sweep_traces(go: Any, line: SweepLine, colour: str, named: bool) -> list[Any]:
    spread = np.nan_to_num(line.spread)
    group = {"legendgroup": line.protection, "hoverinfo": "skip", "showlegend": False}
    band = go.Scatter(
        x=np.concatenate([line.snr, line.snr[::-1]]),
        y=np.concatenate([line.mean + spread, (line.mean - spread)[::-1]]),
        fill="toself",
        line={"width": 0},
        fillcolor=_faint(colour),
        **group,
    )
    tip = f"%{{x:g}} dB<br>%{{y:.3f}}<extra>{line.protection}</extra>"
    curve = go.Scatter(
        x=line.snr,
        y=line.mean,
        name=line.protection,
        legendgroup=line.protection,
        showlegend=named,
        mode="lines+markers",
        line={"color": colour, "width": 2},
        hovertemplate=tip,
    )
    if line.ideal is None:
        return [band, curve]
    dotted = {"color": colour, "width": 1, "dash": "dot"}
    still = go.Scatter(x=line.snr[[0, -1]], y=[line.ideal] * 2, mode="lines", line=dotted, **group)
    return [band, curve, still]


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def sweep_static(
    frame: pd.DataFrame,
    path: str | Path,
    attack: str = "",
    *,
    theme: Theme = "light",
    title: str = "",
    dpi: int = 220,
) -> Path:
    """The picture of ``sweep_figure`` as a file (.png, .svg or .pdf)."""
    look = LOOKS[theme]
    attack = attack or (attacks(frame) or [""])[0]
    measures = [name for name in MEASURES if name in frame and frame[name].notna().any()]
    with canvas(theme) as plt:
        size = (PAGE, 3.0 if title else 2.8)
        drawing, every = plt.subplots(1, len(measures), figsize=size, facecolor=look.paper, layout="constrained")
        for axes, measure in zip(np.atleast_1d(every), measures, strict=True):
            for index, line in enumerate(sweep_lines(frame, attack, measure)):
                colour, spread = SERIES[index % len(SERIES)], np.nan_to_num(line.spread)
                axes.fill_between(
                    line.snr, line.mean - spread, line.mean + spread, color=colour, alpha=0.16, linewidth=0
                )
                axes.plot(line.snr, line.mean, "o-", color=colour, markersize=3, linewidth=1.4, label=line.protection)
                if line.ideal is not None:
                    axes.axhline(line.ideal, color=colour, linewidth=0.8, linestyle=":")
            axes.set_facecolor(look.paper)
            axes.set_xlabel("SNR (dB); dotted: ideal channel", size=7, color=look.dim)
            axes.set_ylabel(MEASURES[measure], size=7, color=look.dim)
            axes.tick_params(length=0, labelsize=7, labelcolor=look.dim)
            axes.grid(axis="y", color=look.line, linewidth=0.5)
            axes.set_axisbelow(True)
            axes.spines[:].set_visible(False)
        handles, labels = np.atleast_1d(every)[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower left", ncols=min(5, len(labels)), frameon=False, fontsize=7)
        drawing.suptitle(title or " ", size=10 if title else 5, weight="bold", x=0.01, ha="left")
        drawing.text(0.995, 0.985, f"attack: {attack} · {INSPIRED}", size=6.2, color=look.dim, ha="right", va="top")
        return save(plt, drawing, path, dpi)


def conflict_heatmap(conflicts: Any, *, signs: bool = False, theme: Theme = "light", title: str = "") -> Any:
    """Pairs of task vectors x projections: cosine, or with ``signs`` the share of entries whose signs differ.

    ``conflicts``: a ``core.fusing.Conflicts``; pairs that conflict most stand on top.
    """
    pairs = list(combinations(range(len(conflicts.sources)), 2))
    if not pairs:
        raise NotFoundError("One task vector conflicts with nothing.", "Choose two runs or more.")
    pairs.sort(key=lambda pair: float(conflicts.overall_cosine[pair]))
    every = conflicts.disagreement if signs else conflicts.cosine
    values = np.array([every[:, a, b] for a, b in pairs], dtype=float)
    names = [f"{conflicts.sources[a]} × {conflicts.sources[b]}" for a, b in pairs]
    top = float(np.nanmax(np.abs(values), initial=1e-9))
    what = "signs that differ" if signs else "cosine"
    return _tiles(values, names, conflicts.paths, what, (None if signs else top), theme, title)


def coefficient_heatmap(frame: pd.DataFrame, *, theme: Theme = "light", title: str = "") -> Any:
    """Runs x projections: how much of each task vector the fused model takes.

    ``frame``: column run and one column for each projection, as the table ``coefficients`` has them.
    """
    values = frame.drop(columns="run").to_numpy(dtype=float)
    negative = bool((values[np.isfinite(values)] < 0).any())
    top = float(np.nanmax(np.abs(values), initial=1e-9))
    paths = [str(name) for name in frame.columns if name != "run"]
    return _tiles(values, [str(name) for name in frame["run"]], paths, "coefficient", top if negative else None, theme,
                  title)  # fmt: skip


def _tiles(
    values: np.ndarray,
    names: Sequence[str],
    paths: Sequence[str],
    what: str,
    signed: float | None,
    theme: Theme,
    title: str,
) -> Any:
    """One line of tiles for each name; ``signed``: the ends of a scale about 0."""
    import plotly.graph_objects as go

    scale = {"zmin": -signed, "zmax": signed} if signed else {}
    drawing = go.Figure(
        go.Heatmap(
            z=np.round(values, 5),
            x=list(paths),
            y=list(names),
            colorscale=plotly_scale(theme, signed=bool(signed)),
            xgap=0.5,
            ygap=1,
            hoverongaps=False,
            hovertemplate=f"%{{y}}<br>%{{x}}<br>{what} %{{z:.4f}}<extra></extra>",
            colorbar={"title": {"text": what, "side": "right"}, "thickness": 10, "outlinewidth": 0},
            **scale,
        )
    )
    every = max(1, len(paths) // 28)
    ticks = {"tickvals": list(paths)[::every], "ticktext": list(paths)[::every], "tickangle": -60}
    drawing.update_xaxes(showgrid=False, **ticks, tickfont={"size": 10})
    drawing.update_yaxes(autorange="reversed", showgrid=False)
    margin = {"l": 40 + 7 * max(map(len, names)), "r": 24, "t": 72 if title else 30, "b": 190}
    drawing.update_layout(**layout(theme, title), height=240 + 28 * len(names), margin=margin)
    return drawing


def fusion_curves(points: Any, *, theme: Theme = "light", title: str = "") -> Any:
    """What a method that learns learnt: entropy of each task and mean coefficient of each run, against the step.

    ``points``: a frame with columns name (``entropy/<task>``, ``coefficient/<run>``), step and value.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    frame = pd.DataFrame(points)
    heads = {"entropy": "entropy (nats)", "coefficient": "mean coefficient"}
    split = frame["name"].str.partition("/") if len(frame) else pd.DataFrame({0: [], 2: []})
    panels = [head for head in heads if len(frame) and (split[0] == head).any()]
    if not panels:
        raise NotFoundError("There are no curves of a fusion yet.", "Methods that learn nothing have none.")
    drawing = make_subplots(rows=1, cols=len(panels), horizontal_spacing=0.1)
    for column, head in enumerate(panels, 1):
        own = frame[split[0] == head]
        for index, (name, line) in enumerate(own.groupby("name", sort=False)):
            name = str(name).partition("/")[2]
            ink = {"color": SERIES[index % len(SERIES)], "width": 1.8}
            curve = go.Scatter(x=line["step"], y=line["value"], name=name, mode="lines", line=ink)
            drawing.add_trace(curve, row=1, col=column)
        drawing.update_yaxes(title_text=heads[head], row=1, col=column)
    drawing.update_xaxes(title_text="step", showgrid=False)
    margin = {"l": 70, "r": 24, "t": 72 if title else 30, "b": 90}
    legend = {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"}
    drawing.update_layout(**layout(theme, title), height=400, margin=margin, legend=legend)
    return drawing
