"""Three experts of the bundled base, each of one of the demo's tasks, fused by every method. On two cores, minutes:

    python -m recipes.fusion_demo [--home out/fusion] [--steps 60] [--fusion-steps 30] [--page]

Trains a LoRA for each task through the studio's own queue, fuses the three by every fusion method, and prints a table
of scores: the untouched base, each task's own expert, every fused model, and what was lost against the experts. The
table is written to ``fusion.md`` in the home, with ``--page`` into docs/fusion.md too. What is done already is read,
not computed again; delete the home to begin anew.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigurationError, StudioError
from core.fusion.methods import FusionMethod, fusion_methods
from core.home import ASSETS, PROJECT, write_text
from core.overrides import apply
from core.schema import RunSpec
from core.studio import Studio

RECIPE = PROJECT / "recipes" / "demo.yaml"
HOME = PROJECT / "out" / "fusion"
PAGE = PROJECT / "docs" / "fusion.md"
TASKS = ("opinion", "subject", "sentence_type")
TAG = "fusion-demo"
BLOCK = re.compile(r"(<!-- demo: written by python -m recipes\.fusion_demo --page -->\n).*?(<!-- end -->)", re.S)
ROWS = 200  # of each task's test rows
COEFFICIENTS, MASK = 1e-2, 5e-2  # learning rates: few steps, so long ones


@dataclass(frozen=True)
class Outcome:
    """A fused run: its score of each task, and the seconds that its job took."""

    method: FusionMethod
    run: str
    scores: Mapping[str, float]
    seconds: float


def expert(dataset: str, task: str, steps: int) -> RunSpec:
    """The demo's run as a plain LoRA of one task."""
    changes: dict[str, Any] = {"name": f"Expert: {task}", "method.name": "lora", "tags": [TAG]}
    changes["tasks"] = [{"dataset": dataset, "task": task, "test_rows": ROWS}]
    changes |= {"train.steps": steps, "train.learning_rate": 1e-3}
    changes |= {"train.evaluate_every": steps, "train.checkpoint_every": steps}
    return apply(RunSpec.from_yaml(RECIPE.read_text("utf-8")), changes)


def options(method: FusionMethod, steps: int) -> dict[str, Any]:
    """Defaults, saved whole so that no SVD is scored in place of the method; fewer steps of what learns."""
    if not method.learns:
        return {"form": "dense"}
    known = method.options.model_fields
    given = {"form": "dense", "steps": steps, "coefficient_steps": steps, "batch_size": 4, "evaluate_every": steps}
    given |= {"coefficient_learning_rate": COEFFICIENTS, "learning_rate": MASK if "mask" in known else COEFFICIENTS}
    return {name: value for name, value in given.items() if name in known}


def once(studio: Studio, spec: RunSpec) -> str:
    """The id of the finished run of these settings, which is computed unless there is one."""
    mark = f"{TAG}-{hashlib.sha256(spec.to_yaml().encode()).hexdigest()[:8]}"
    known = studio.runs(tag=mark, state="done")
    if known:
        return known[0]["id"]
    run = studio.submit(spec.model_copy(update={"tags": [*spec.tags, mark]}))
    for line in studio.follow(run):
        if not line.startswith(("training ", "scoring ", "fusing ")):
            print(f"{run}: {line}", file=sys.stderr, flush=True)
    if studio.run(run)["state"] != "done":
        raise StudioError(f"{run} ({spec.name}) is {studio.run(run)['state']}.", f"See {studio.home.run(run).logs}.")
    return run


def fused(studio: Studio, experts: list[str], method: FusionMethod, steps: int) -> Outcome:
    changes = {"method.options": options(method, steps), "evaluation.base": False, "tags": [TAG]}
    run = once(studio, studio.fusion_spec(experts, method=method.name, changes=changes))
    (job,) = [job for job in studio.run(run)["jobs"] if job["kind"] == "fuse"]
    return Outcome(method, run, scores(studio, run, "fused"), (job["finished"] - job["started"]).total_seconds())


def scores(studio: Studio, run: str, column: str) -> dict[str, float]:
    """Task -> a column of a fused run's table."""
    table = studio.fusion(run).table.set_index("task")
    return {task: float(table.loc[task, column]) for task in TASKS}


def table(base: Mapping[str, float], own: Mapping[str, float], outcomes: list[Outcome]) -> str:
    """Markdown: a row for the base, the experts and each method; what was lost is the mean against the experts."""
    best = sum(own.values()) / len(own)
    lines = [
        f"| | {' | '.join(TASKS)} | mean | lost | seconds |",
        f"|---|{'---:|' * len(TASKS)}---:|---:|---:|",
        _row("untouched base", base, best, ""),
        _row("each task's own expert", own, best, ""),
    ]
    lines += [_row(f"{o.method.title} (`{o.method.name}`)", o.scores, best, f"{o.seconds:.0f}") for o in outcomes]
    return "\n".join(lines)


def _row(name: str, values: Mapping[str, float], best: float, seconds: str) -> str:
    mean = sum(values[task] for task in TASKS) / len(TASKS)
    figures = " | ".join(f"{values[task]:.3f}" for task in TASKS)
    return f"| {name} | {figures} | {mean:.3f} | {best - mean:.3f} | {seconds} |"


def caption(steps: int, fusion_steps: int) -> str:
    """How the table came about, and how far its figures can be trusted."""
    told = (
        f"Experts: LoRA, {steps} steps each; fused models saved whole. Methods that learn took {fusion_steps} steps, "
        "the published ones hundreds to thousands; `r_mtllmf` alone saw answers, 16 of each task. "
        f"{ROWS} test rows for each task and one seed: the standard error of a score is at most {0.5 / ROWS**0.5:.3f}. "
        "*lost*: mean of the experts minus mean. *seconds*: fusing and scoring, on the CPU."
    )
    return textwrap.fill(told, 120)


def write_page(text: str) -> None:
    """Put the table between its markers in docs/fusion.md."""
    page = PAGE.read_text("utf-8")
    if not BLOCK.search(page):
        raise ConfigurationError(f"{PAGE} has no place for the table.", f"Add two lines that match {BLOCK.pattern}.")
    write_text(PAGE, BLOCK.sub(lambda match: f"{match[1]}{text}\n{match[2]}", page))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=HOME, help="the studio's folder for these runs")
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of each expert")
    parser.add_argument("--fusion-steps", type=int, default=30, help="steps of the fusion methods that learn")
    parser.add_argument("--page", action="store_true", help="write the table into docs/fusion.md too")
    arguments = parser.parse_args()
    began, studio = time.monotonic(), Studio(arguments.home)
    try:
        dataset = studio.upload(ASSETS / "demo", name="demo")["id"]
        experts = [once(studio, expert(dataset, task, arguments.steps)) for task in TASKS]
        methods = fusion_methods().values()
        outcomes = [fused(studio, experts, method, arguments.fusion_steps) for method in methods]
        base, own = (scores(studio, outcomes[0].run, column) for column in ("base", "own"))
    except StudioError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        studio.close()
    text = f"{table(base, own, outcomes)}\n\n{caption(arguments.steps, arguments.fusion_steps)}"
    write_text(arguments.home / "fusion.md", f"{text}\n")
    if arguments.page:
        write_page(text)
    print(text)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
