"""Writes ``docs/first-results.md`` from run folders: every number in it is read from their events and predictions."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import NotFoundError
from core.evaluation.predictions import Predictions, read_predictions
from core.evaluation.statistics import Difference, compare_seeds
from core.figures import routing_heatmap_static, scores_static, similarity
from core.home import Home, RunFolder, read_json, write_text
from core.routing.snapshot import RoutingSnapshot
from core.schema import RunSpec
from recipes.first_results import METHODS, SETTINGS, events, finished

SHOWN = "mosld"
LABELS = {name for name in SETTINGS if name != "full"}


@dataclass(frozen=True)
class Result:
    """One finished run: its settings, primary scores by (task, model), and what its attempts said."""

    folder: RunFolder
    spec: RunSpec
    scores: dict[tuple[str, str], dict[str, Any]]
    started: dict[str, Any]
    seconds: float
    steps: int
    routing: dict[str, str]  # moment -> file

    def predictions(self, task: str, model: str) -> Predictions:
        return read_predictions(self.folder.predictions / self.scores[task, model]["predictions"])


def results(home: Home) -> list[Result]:
    """The finished runs of ``first_results`` below ``home``, each setting and seed once."""
    found = {}
    for path in sorted(home.runs.glob("*/spec.json")):
        folder = RunFolder(path.parent)
        spec = RunSpec.parse(read_json(path))
        if "first-results" in spec.tags and finished(folder):
            found[spec.name] = _result(folder, spec)
    if not found:
        raise NotFoundError(f"{home.runs} holds no finished run of the first results.", "Train them first.")
    return list(found.values())


def _result(folder: RunFolder, spec: RunSpec) -> Result:
    scores, started, routing, steps, times = {}, {}, {}, 0, []
    for event in events(folder):
        times.append(np.datetime64(event["at"][:23]))
        match event["kind"]:
            case "score" if event.get("primary"):
                scores[event["task"], event["model"]] = event
            case "started":
                started = event
            case "routing":
                routing[event["moment"]] = event["file"]
            case "metrics":
                steps = max(steps, event["step"])
    seconds = float((times[-1] - times[0]) / np.timedelta64(1, "s"))
    return Result(folder, spec, scores, started, seconds, steps, routing)


@dataclass(frozen=True)
class Alone:
    """A task alone against the best answer that learnt nothing; ``error`` is that of the difference."""

    task: str
    score: dict[str, Any]
    floors: dict[str, float | None]
    error: float

    @property
    def best(self) -> str:
        known = {name: value for name, value in self.floors.items() if value is not None}
        return max(known, key=known.__getitem__)

    @property
    def above(self) -> bool:
        return self.score["value"] - self.floors[self.best] > 2 * self.error


def alone(result: Result) -> Alone:
    """Against the untouched base the error is that of the paired difference, else the score's own."""
    task = next(name for name, model in result.scores if model == "adapter")
    score, base = result.scores[task, "adapter"], result.scores[task, "base"]
    floors = {"chance": score["chance"], "trivial": score.get("trivial"), "copy": score.get("copy")}
    floors["base"] = base["value"]
    found = Alone(task, score, floors, score["stderr"])
    if found.best != "base":
        return found
    paired = compare_seeds([result.predictions(task, "adapter")], [result.predictions(task, "base")], score["metric"])
    return Alone(task, score, floors, paired.stderr or score["stderr"])


def write_page(home: Home, docs: Path) -> Path:
    """Write the page and its figures below ``docs``; returns the page."""
    found = results(home)
    full = [r for r in found if not LABELS & set(r.spec.tags)] or found
    small = [r for r in found if r not in full]
    unseen = [r for r in full if "alone" in r.spec.tags]
    seen = [r for r in full if "seen" in r.spec.tags]
    parts = [_head(full)]
    if unseen:
        parts.append(_alone_section([alone(r) for r in unseen], unseen))
    if seen:
        parts.append(_seen_section([alone(r) for r in seen]))
    if together := by_method(full):
        parts.append(_together_section(together))
        parts.append(_figures(together, docs))
    if together := by_method(small):
        parts.append(_small_section(together, [r for r in small if "together" in r.spec.tags]))
    path = docs / "first-results.md"
    write_text(path, "\n\n".join(parts) + "\n")
    path.chmod(0o644)
    return path


def by_method(found: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs on several tasks, ordered by seed."""
    runs = [r for r in found if "together" in r.spec.tags]
    grouped = {method: [r for r in runs if r.spec.method.name == method] for method in METHODS}
    return {method: sorted(own, key=lambda r: r.spec.seed) for method, own in grouped.items() if own}


def _head(found: Sequence[Result]) -> str:
    first = found[0]
    devices = sorted({r.started["device"].partition(":")[0] for r in found})
    versions = first.started.get("versions", {})
    tools = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft") if name in versions)
    day = max(event["at"] for r in found for event in events(r.folder))[:10]
    size = first.started["total"] - first.started["trainable"]
    return "\n\n".join(
        [
            "# First results",
            _filled(
                f"""
                What the studio's own base model (`assets/base`, {size:,} parameters) learns of tasks that it has never
                seen, alone and together. {len(found)} runs of {day} on {" and ".join(devices)} ({tools}). This page is
                written from their folders by `python -m recipes.first_results page`; no number is typed. Scores are on
                held-out test rows, ± is the standard error over rows.
                """
            ),
            _filled(
                f"""
                To repeat it: `python -m recipes.first_results train --data DIR --home H --jobs 8`. The settings are
                `recipes/alone.yaml` and `recipes/together.yaml`, set once for all tasks and methods alike.
                {_reduced(found)}
                """
            ),
        ]
    )


def _reduced(found: Sequence[Result]) -> str:
    """Says so when the runs were smaller than the recipes."""
    first = min(found, key=lambda r: r.spec.train.steps or 10**9).spec
    if not first.train.steps:
        return ""
    rows, plan = first.tasks[0], first.train
    return (
        f"These runs are smaller: {plan.steps} steps of {plan.batch_size}, {rows.train_rows} training and"
        f" {rows.test_rows} test rows a task."
    )


def _alone_section(found: Sequence[Alone], runs: Sequence[Result]) -> str:
    above = [one for one in found if one.above]
    beyond = [one.task for one in found if not one.above]
    rest = f" Beyond this base, as trained here: {', '.join(beyond)}." if beyond else ""
    rank, trainable = runs[0].spec.method.options["rank"], runs[0].started["trainable"]
    head = ["task", "metric", "rows", "chance", "trivial", "copy", "base", "LoRA", "above the best of them"]
    return "\n\n".join(
        [
            "## Each unseen task alone, plain LoRA",
            _filled(
                f"""
                {len(above)} of {len(found)} tasks are more than two standard errors above the best answer that learns
                nothing: uniform chance, the trivial baseline of the data (the commonest answer, a fixed position, the
                longest or shortest choice), the input copied out, and the untouched base.{rest} Rank {rank},
                {trainable:,} trainable parameters.
                """
            ),
            _table(head, map(_alone_row, found)),
            _filled(
                """
                ● more than two standard errors above; the best of the four is in bold. The error of the last column is
                that of the paired difference where the base is the best of them, else the score's own.
                """
            ),
        ]
    )


def _alone_row(one: Alone) -> list[str]:
    floors = {name: "–" if value is None else f"{value:.3f}" for name, value in one.floors.items()}
    floors[one.best] = f"**{floors[one.best]}**"
    gain = one.score["value"] - one.floors[one.best]
    mark = "● " if one.above else ""
    named = one.score["metric"].replace("_", " ")
    shown = f"{mark}{gain:+.3f} ± {one.error:.3f}"
    return [one.task, named, f"{one.score['rows']:,}", *floors.values(), _shown(one.score), shown]


def _seen_section(found: Sequence[Alone]) -> str:
    rows = [[one.task, f"{one.score['rows']:,}", f"{one.floors['base']:.3f}", _shown(one.score)] for one in found]
    return "\n\n".join(
        [
            "## Two tasks of the base's own training",
            "Training rows of these were in the base's training text, test rows were not: is the base sound?",
            _table(["task", "rows", "base", "LoRA"], rows),
        ]
    )


def _together_section(together: dict[str, list[Result]]) -> str:
    first = together[next(iter(together))][0]
    tasks = [name for name, model in first.scores if model == "adapter"]
    seeds = ", ".join(f"{method} {len(runs)}" for method, runs in together.items())
    plan, rank = first.spec.train, first.spec.method.options["rank"]
    length = f"{plan.steps} steps" if plan.steps else f"{plan.epochs:g} epochs"
    return "\n\n".join(
        [
            f"## {len(tasks)} unseen tasks together: {', '.join(together)}",
            _filled(
                f"""
                One adapter for all of them. The runs share every setting ({length}, batch {plan.batch_size}, learning
                rate {plan.learning_rate:g}, rank {rank} on all linear layers) and differ in method and seed alone. What
                `together.yaml` does not name is the method's published default, but molora has mosld's 2-4-6-8 experts
                from lower to upper layers, which makes it MoLA; two experts for each token. Seeds: {seeds}. A score is
                the mean over seeds, its error that over
                rows; for the mean of the tasks ± is the standard deviation over seeds.
                """
            ),
            _table(["", *together, "base"], _together_rows(together, tasks)),
            "Differences on the same rows, seeds averaged first, with paired standard errors; ● beyond two of them:",
            _table(["", *_contrasts(together)], _difference_rows(together, tasks)),
        ]
    )


def _small_section(together: dict[str, list[Result]], runs: Sequence[Result]) -> str:
    first = runs[0]
    tasks = [name for name, model in first.scores if model == "adapter"]
    return "\n\n".join(
        [
            f"## The same in a small setting, on {first.started['device'].partition(':')[0]}",
            _filled(f"`--setting small --only seed`. {_reduced(runs)}"),
            _table(["", *together, "base"], _together_rows(together, tasks)),
        ]
    )


def _together_rows(together: dict[str, list[Result]], tasks: Sequence[str]) -> Iterable[list[str]]:
    base = together[next(iter(together))][0]
    for task in tasks:
        cells = []
        for runs in together.values():
            scores = [run.scores[task, "adapter"] for run in runs]
            cells.append(f"{np.mean([s['value'] for s in scores]):.3f} ± {np.mean([s['stderr'] for s in scores]):.3f}")
        metric = base.scores[task, "adapter"]["metric"].replace("_", " ")
        yield [f"{task} ({metric})", *cells, _shown(base.scores[task, "base"])]
    means = {
        m: [np.mean([r.scores[t, "adapter"]["value"] for t in tasks]) for r in runs] for m, runs in together.items()
    }
    spread = [f"{np.mean(v):.3f}" + (f" ± {np.std(v, ddof=1):.3f}" if len(v) > 1 else "") for v in means.values()]
    yield ["**mean of the tasks**", *spread, f"{np.mean([base.scores[t, 'base']['value'] for t in tasks]):.3f}"]
    yield ["trainable parameters", *(f"{runs[0].started['trainable']:,}" for runs in together.values()), "0"]
    yield [
        "seconds a run, beside other work",
        *(f"{np.mean([r.seconds for r in runs]):.0f}" for runs in together.values()),
        "",
    ]


def _contrasts(together: dict[str, list[Result]]) -> dict[str, tuple[str, str]]:
    pairs = [("mosld", "lora"), ("molora", "lora"), ("mosld", "molora")]
    return {f"{a} − {b}": (a, b) for a, b in pairs if a in together and b in together}


def _difference_rows(together: dict[str, list[Result]], tasks: Sequence[str]) -> Iterable[list[str]]:
    for task in tasks:
        cells = []
        for first, second in _contrasts(together).values():
            metric = together[first][0].scores[task, "adapter"]["metric"]
            sides = [[run.predictions(task, "adapter") for run in together[name]] for name in (first, second)]
            cells.append(_difference(compare_seeds(*sides, metric)))
        yield [task, *cells]


def _difference(found: Difference) -> str:
    error = found.stderr or 0.0
    mark = "● " if abs(found.value) > 2 * error > 0 else ""
    return f"{mark}{found.value:+.3f} ± {error:.3f}"


def _figures(together: dict[str, list[Result]], docs: Path) -> str:
    folder = docs / "figures"
    rows = [
        {**score, "run": method, "model": model}
        for method, runs in together.items()
        for (_, model), score in runs[0].scores.items()
    ]
    scores_static(rows, folder / "first-results-scores.png", title=f"Unseen tasks together, seed {_seed(together)}")
    text = "![Scores by task](figures/first-results-scores.png)"
    run = together.get(SHOWN, [None])[0]
    if run is None or "end" not in run.routing:
        return text
    shot = RoutingSnapshot.load(run.folder.routing / run.routing["end"])
    title = "MoSLD after training: which expert speaks for which task"
    routing_heatmap_static(shot, folder / "routing.png", title=title)
    return f"{text}\n\n## Who speaks when\n\n![Routing of MoSLD](figures/routing.png)\n\n{_alike(shot)}"


def _seed(together: dict[str, list[Result]]) -> int:
    return next(iter(together.values()))[0].spec.seed


def _alike(shot: RoutingSnapshot) -> str:
    tasks, values = similarity(shot)
    pairs = [(values[i, j], a, tasks[j]) for i, a in enumerate(tasks) for j in range(i + 1, len(tasks))]
    if not pairs:
        return ""
    (most, a, b), (least, c, d) = max(pairs), min(pairs)
    entropy = shot.entropy[list(shot.roles).index("answer")]
    several = [i for i, site in enumerate(shot.sites) if site.experts > 1]
    return _filled(
        f"Routed most alike are {a} and {b} (similarity {most:.3f}: 1 minus the Jensen-Shannon divergence of their mean"
        f" gates on answer tokens, averaged over all projections), least alike {c} and {d} ({least:.3f}). The router's"
        f" normalised entropy is {np.nanmean(entropy[:, several]):.2f} on average (0 certain, 1 undecided)."
    )


def _shown(score: dict[str, Any]) -> str:
    return f"{score['value']:.3f}" + ("" if score.get("stderr") is None else f" ± {score['stderr']:.3f}")


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = list(head)
    lines = ["| " + " | ".join(line) + " |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
