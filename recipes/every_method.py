"""Every method on the same three tasks: ``make methods``, or

    python -m recipes.every_method [--steps 100] [--only mosld,moa] [--out out/methods] [--device cpu]

Each preset trains on the demo's tasks with its own defaults on every projection of the bundled base, in this process
and without a queue. Printed are trainable parameters, the score of each task beside that of the untouched base, and the
routing sums: over the experts of a gate, the mean of the weights (1 where they are shares) and of what was selected.
A method that is done already is read, not trained again; delete its folder to train it anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core.adapters.methods import presets
from core.home import ASSETS, PROJECT, Home
from core.overrides import apply
from core.routing.snapshot import RoutingSnapshot
from core.schema import RunSpec
from core.studio import Studio

RECIPE = PROJECT / "recipes" / "demo.yaml"
OUT = PROJECT / "out" / "methods"
SPLIT = [  # one of one's own, so that the method without defaults is shown too
    {"modules": ["q_proj", "v_proj"], "experts": 4, "down": "shared", "gate": {"word": "token", "top_k": 2}},
    {"modules": ["o_proj"], "frozen": True},
    {"modules": "all-linear", "experts": 2, "gate": "sequence"},
]


@dataclass
class Outcome:
    """What one method came to."""

    method: str
    trainable: int = 0
    seconds: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    routing: str = "no gate"


def spec_of(name: str, steps: int, device: str) -> RunSpec:
    """The demo's run with another method; every option that is not named is the method's default."""
    spec = RunSpec.from_yaml(RECIPE.read_text("utf-8"))
    fields = presets()[name].options.model_fields if name in presets() else {}
    options = {"modules": "all-linear"} if "modules" in fields else {}
    method = {"name": name, "options": options, "cells": SPLIT if name == "split" else []}
    changes = {"name": name, "method": method, "train.steps": steps, "device": device, "tags": ["every-method"]}
    changes["evaluation.base"] = False  # it is scored once, by itself
    changes |= {"train.evaluate_every": max(1, steps // 2), "train.checkpoint_every": steps}
    return apply(spec, changes)


def run(studio: Studio, name: str, steps: int, device: str, out: Path) -> Outcome:
    """Train and score a method unless ``out`` holds it already."""
    folder, began = out / name, time.monotonic()
    events = list(_events(folder))
    if not any(event["kind"] == "finished" for event in events):
        studio.train_here(spec_of(name, steps, device), out=folder)
        (folder / "seconds.json").write_text(json.dumps(time.monotonic() - began), "utf-8")
        events = list(_events(folder))
    outcome = Outcome(name, seconds=json.loads((folder / "seconds.json").read_text("utf-8")))
    for event in events:
        if event["kind"] == "started":
            outcome.trainable = event["trainable"]
        elif event["kind"] == "score" and event["primary"]:
            outcome.scores[event["task"]] = event["value"]
        elif event["kind"] == "routing" and event["moment"] == "end":
            outcome.routing = routing_sums(RoutingSnapshot.load(folder / "routing" / event["file"]))
    return outcome


def routing_sums(snapshot: RoutingSnapshot) -> str:
    """The range, over tasks, roles and gates, of the summed mean weights and of the summed selection shares."""
    if not snapshot.sites:
        return "no gate"
    counted = snapshot.count > 0
    weights, selected = (np.nansum(values, -1)[counted] for values in (snapshot.mean_gate, snapshot.selection_share))
    return f"weights {_range(weights)}, selected {_range(selected)}"


def _range(values: np.ndarray) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.3f}" if high - low < 5e-4 else f"{low:.3f} to {high:.3f}"


def table(outcomes: list[Outcome]) -> str:
    """Markdown: a row for each method, a column for each task."""
    tasks = list(dict.fromkeys(task for outcome in outcomes for task in outcome.scores))
    lines = [
        f"| method | trainable | {' | '.join(tasks)} | mean | routing sums | seconds |",
        f"|---|---:|{'---:|' * len(tasks)}---:|---|---:|",
    ]
    for outcome in outcomes:
        figures = " | ".join(f"{outcome.scores[task]:.3f}" for task in tasks)
        mean = sum(outcome.scores[task] for task in tasks) / len(tasks)
        lines.append(
            f"| {outcome.method} | {outcome.trainable:,} | {figures} | {mean:.3f} | {outcome.routing} "
            f"| {outcome.seconds:.0f} |"
        )
    return "\n".join(lines)


def _events(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / "events.jsonl"
    if path.is_file():
        for line in path.read_text("utf-8").splitlines():
            yield json.loads(line)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps for each method")
    parser.add_argument("--only", default="", help="methods, separated by commas; all of them otherwise")
    parser.add_argument("--out", type=Path, default=OUT, help="where the run folders are kept")
    parser.add_argument("--device", default="cpu", help="cpu, auto or cuda")
    arguments = parser.parse_args()
    names = [name for name in arguments.only.split(",") if name] or ["base", *presets()]
    studio = Studio(Home.open(arguments.out / "home").root)
    if not studio.store.list():
        studio.upload(ASSETS / "demo", name="demo")
    outcomes = []
    for name in names:
        outcomes.append(run(studio, name, arguments.steps, arguments.device, arguments.out))
        print(f"{name}: {outcomes[-1].scores}", file=sys.stderr, flush=True)
    print(table(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
