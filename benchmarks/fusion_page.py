"""The generated part of docs/fusion.md: results of ``benchmarks/fusion.py`` as tables, and the figure of the sweep."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from benchmarks.fusion import COEFFICIENTS, FUSIONS, GENTLE, TASKS
from core.figures.fusion import sweep_static
from core.home import write_text

BLOCK = re.compile(r"(<!-- gpu: written by python benchmarks/fusion\.py page -->\n).*?(<!-- end -->)", re.S)
KINDS = {"lora": "LoRA adapters", "full": "full fine-tunes"}
ORDER = (
    "average", "task_arithmetic", "ties, sum", "ties, mean", "ties, sum, svd", "dare_linear", "dare_ties",
    "magnitude_prune", "adamerging, task-wise", "adamerging", "adamerging++", "concrete_task_arithmetic",
    "concrete_adamerging", "task arithmetic at 10 dB", "r_mtllmf, ideal", "r_mtllmf, 10 dB",
)  # fmt: skip
Run = dict[str, Any]


def write(out: Path, docs: Path) -> Path:
    """Rewrite the block of docs/fusion.md from the files that the benchmark left in ``out``."""
    experts, fused, more, swept = (_read(out / f"{name}.json") for name in ("experts", "fuse", "gentle", "sweep"))
    parts = [part for kind in KINDS for part in _kind(kind, experts, [*fused, *more])]
    parts += _coefficients(fused)
    frame = _sweep(swept)
    if not frame.empty:
        sweep_static(frame, docs / "figures" / "fusion-sweep.png")
        parts += ["![Score and disentanglement error against the SNR](figures/fusion-sweep.png)", "", *_worst(frame)]
    page = docs / "fusion.md"
    text = "\n".join(parts).rstrip() + "\n"
    write_text(page, BLOCK.sub(lambda match: match[1] + text + match[2], page.read_text("utf-8")))
    return page


def _read(path: Path) -> list[Run]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else []


def _kind(kind: str, experts: Sequence[Run], fused: Sequence[Run]) -> list[str]:
    own = [run for run in experts if run["kind"] == kind]
    alone, joint = [run for run in own if run["label"] != "joint"], [run for run in own if run["label"] == "joint"]
    rows = {
        "base": _by_seed((run["seed"], run["scores"]["base"]) for run in alone),
        "own expert": _by_seed((run["seed"], run["scores"]["adapter"]) for run in alone),
        "joint training": _by_seed((run["seed"], run["scores"]["adapter"]) for run in joint),
    }
    seconds: dict[str, float] = {}
    for label in (*ORDER, *(f"{label}, from {GENTLE}" for label in ORDER)):
        mine = [run for run in fused if run["kind"] == kind and run["label"] == label]
        if mine:
            rows[label] = _by_seed((run["seed"], run["scores"]["adapter"]) for run in mine)
            seconds[label] = fmean(_seconds(run) for run in mine)
    unlabelled = [name for name in rows if name in FUSIONS and not name.startswith("r_mtllmf")]
    best = max((fmean(_means(rows[name])) for name in unlabelled), default=0.0)
    head = f"| {KINDS[kind]} | mean | {' | '.join(TASKS)} | seconds |"
    lines = [head, "|" + "---|" * (len(TASKS) + 3)]
    for label, row in rows.items():
        mean = _shown(_means(row))
        if label in unlabelled and math.isclose(fmean(_means(row)), best):
            mean = f"**{mean}**"
        cells = [_shown([scores[task] for scores in row.values() if task in scores]) for task in TASKS]
        took = f"{seconds[label]:.0f}" if label in seconds else ""
        lines.append(f"| {label} | {mean} | {' | '.join(cells)} | {took} |")
    return [*lines, ""]


def _by_seed(found: Iterable[tuple[int, dict[str, float]]]) -> dict[int, dict[str, float]]:
    """Seed -> task -> score; the scores of several runs of a seed stand together."""
    rows: dict[int, dict[str, float]] = {}
    for seed, scores in found:
        rows.setdefault(seed, {}).update(scores)
    return rows


def _means(row: dict[int, dict[str, float]]) -> list[float]:
    return [fmean(scores.values()) for scores in row.values()]


def _shown(values: Sequence[float]) -> str:
    """Mean over the seeds, and its standard error where there are several."""
    if not values:
        return "-"
    mean = f"{100 * fmean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * stdev(values) / math.sqrt(len(values)):.1f}"


def _seconds(run: Run) -> float:
    """From the start of the job to the saved adapter."""
    began, saved = (datetime.fromisoformat(run[name]) for name in ("began", "saved"))
    return (saved - began).total_seconds()


def _coefficients(fused: Sequence[Run]) -> list[str]:
    """Mean score of task arithmetic and TIES (sum) for every coefficient, of the first seed."""
    values = sorted({*COEFFICIENTS, 0.3})
    lines = [f"| coefficient | {' | '.join(map(str, values))} |", "|" + "---|" * (len(values) + 1)]
    for kind, said in KINDS.items():
        for method, default in (("task_arithmetic", "task_arithmetic"), ("ties", "ties, sum")):
            cells = []
            for value in values:
                label = default if value == 0.3 else f"{method} {value}"
                mine = [run for run in fused if (run["kind"], run["label"], run["seed"]) == (kind, label, 0)]
                cells.append(f"{100 * fmean(mine[0]['scores']['adapter'].values()):.1f}" if mine else "-")
            lines.append(f"| {default}, {said} | {' | '.join(cells)} |")
    return [*lines, ""]


def _sweep(swept: Sequence[Run]) -> pd.DataFrame:
    """The points of all sweeps of full fine-tunes; where embeddings were frozen in training, the arm says so."""
    frames = []
    for run in swept:
        if run["kind"] != "lora" and "sweep" in run["tables"]:
            table = run["tables"]["sweep"]
            frames.append(pd.DataFrame(table["rows"], columns=table["columns"]))
    return pd.concat(frames, ignore_index=True).drop_duplicates() if frames else pd.DataFrame()


def _worst(frame: pd.DataFrame) -> list[str]:
    """Mean score by arm: the ideal channel, then the worst SNR under every attack."""
    lowest = frame["snr"].min()
    places = [("ideal", frame["snr"].isna())]
    places += [(f"{attack}, {lowest:g} dB", (frame["snr"] == lowest) & (frame["attack"] == attack))
               for attack in frame.loc[frame["snr"].notna(), "attack"].unique()]  # fmt: skip
    lines = [f"| arm | {' | '.join(name for name, _ in places)} |", "|" + "---|" * (len(places) + 1)]
    for arm in frame["protection"].unique():
        cells = []
        for _, chosen in places:
            mine = frame[chosen & (frame["protection"] == arm)]
            cells.append(_shown(mine.groupby("seed")["score"].mean().tolist()))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return [*lines, ""]
