"""The demo: three methods on tasks that come with the studio, trained on the CPU through the real queue."""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from core.errors import StudioError
from core.home import ASSETS, BUNDLED_BASE_FOLDER, PROJECT
from core.schema import RunSpec

if TYPE_CHECKING:
    from core.compare import Comparison
    from core.studio import Studio

METHODS = ("lora", "molora", "mosld")
SHOWN = "mosld"  # whose routing is drawn
RECIPE = PROJECT / "recipes" / "demo.yaml"
OUT = PROJECT / "out" / "demo"
PROGRESS_SECONDS = 5.0
MARK = re.compile(r"demo-[0-9a-f]{8}")  # a tag of the demo's own runs
ALIVE = ("queued", "starting", "running")


@dataclass(frozen=True)
class Demo:
    """What the demo made. ``runs``: method -> run id; ``comparison`` is None while the runs are not followed."""

    runs: dict[str, str]
    trained: list[str]
    seconds: float
    comparison: Comparison | None = None
    gains: dict[str, float] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def text(self) -> str:
        if self.comparison is None:
            return "\n".join(
                f"{run}: {method}. Follow it: python app.py logs {run} -f" for method, run in self.runs.items()
            )
        parts = [self.comparison.render(), self._summary()]
        parts.append("\n".join(f"Routing of {SHOWN}: {path}" for path in self.files))
        return "\n\n".join(part for part in parts if part)

    def _summary(self) -> str:
        ids = " ".join(self.runs.values())
        worst = min(self.gains, key=self.gains.__getitem__)
        if self.trained:
            made = f"Trained {', '.join(self.trained)} in {self.seconds:.0f} s."
        else:
            made = "Nothing was trained: these runs are of an earlier demo. Train again: python app.py demo --again"
        return "\n".join(
            [
                made,
                f"Smallest gain over the untouched base: {self.gains[worst]:+.3f} ({worst}).",
                f"Again: python app.py compare {ids} --baseline {self.runs[METHODS[0]]}",
                f"Its routing as a table: python app.py routing {self.runs[SHOWN]}",
                f"Talk to them: python app.py chat {ids} base",
                "The studio: python app.py serve, then http://127.0.0.1:7860",
            ]
        )


def run_demo(
    studio: Studio,
    *,
    follow: bool = True,
    out: Path | None = None,
    again: bool = False,
    say: Callable[[str], None] | None = None,
    recipe: Path = RECIPE,
    data: Path | None = None,
) -> Demo:
    """Train what ``recipe`` describes with each of ``METHODS``, compare the scores and draw the routing of one run.

    Finished runs of the same settings, data and base are shown instead of trained anew, and it is said so; ``again``
    trains new ones. Without ``follow`` the runs are only queued. Progress goes to ``say``, standard error by default.
    Raises StudioError when a run does not finish.
    """
    say = say or _to_stderr
    began = time.monotonic()
    with FileLock(studio.home.dispatcher / "demo.lock"):  # asked for twice at once, there is still one set of runs
        runs, trained = _start(studio, _specs(studio, recipe, data or ASSETS / "demo"), again, say)
    if not follow:
        return Demo(runs, trained, time.monotonic() - began)
    for method, run in runs.items():
        _wait(studio, method, run, say)
    comparison = studio.compare(list(runs.values()))
    folder = out or OUT
    folder.mkdir(parents=True, exist_ok=True)
    files = studio.routing_files(runs[SHOWN], html=folder / "routing.html", png=folder / "routing.png")
    return Demo(runs, trained, time.monotonic() - began, comparison, gains(comparison, runs), files)


def _start(
    studio: Studio, specs: dict[str, RunSpec], again: bool, say: Callable[[str], None]
) -> tuple[dict[str, str], list[str]]:
    """Method -> run, queued or found; and the methods that are trained."""
    runs, trained = {}, []
    for method, spec in specs.items():
        known = None if again else _earlier(studio, spec)
        if known is not None:
            say(f"{method}: {known['id']} of {known['created']:%Y-%m-%d %H:%M} UTC is {known['state']} already.")
            runs[method] = known["id"]
            trained += [method] if known["state"] in ALIVE else []
        else:
            runs[method] = studio.submit(spec)
            trained.append(method)
            say(f"{method}: queued as {runs[method]}.")
    return runs, trained


def gains(comparison: Comparison, runs: dict[str, str]) -> dict[str, float]:
    """``method on task`` -> score minus the untouched base's."""
    methods = {run: method for method, run in runs.items()}
    base = next(i for i, column in enumerate(comparison.columns) if not column.runs)
    return {
        f"{methods[column.runs[0]]} on {row.task}": cell.value - row.cells[base].value
        for row in comparison.rows
        for column, cell in zip(comparison.columns, row.cells, strict=True)
        if column.runs and cell is not None and row.cells[base] is not None
    }


def _specs(studio: Studio, recipe: Path, data: Path) -> dict[str, RunSpec]:
    """One spec for each method; a tag marks runs of equal settings, data and base."""
    from core.adapters.methods import preset_named
    from core.evaluation.base_scores import fingerprint

    stored = studio.upload(data, name="demo")["id"]
    specs = {}
    for method in METHODS:
        name = f"{preset_named(method).title} on the demo's tasks"
        changes = {"name": name, "method.name": method, "tasks.0.dataset": stored}
        spec = studio.read_spec(recipe, changes=changes)[0]
        told = spec.to_yaml() + (fingerprint(BUNDLED_BASE_FOLDER) if spec.model.base == "tessera-base" else "")
        mark = hashlib.sha256(told.encode()).hexdigest()[:8]
        specs[method] = spec.model_copy(update={"tags": [*spec.tags, f"demo-{mark}"]})
    return specs


def cloned(data: dict[str, Any]) -> RunSpec:
    """A run's settings for a clone: no name, and no tag that marks settings, data and base as the demo's own."""
    spec = RunSpec.parse(data)
    return spec.model_copy(update={"name": "", "tags": [tag for tag in spec.tags if not MARK.fullmatch(tag)]})


def _earlier(studio: Studio, spec: RunSpec) -> dict[str, Any] | None:
    """The newest run of ``spec`` that is done or on its way."""
    found = studio.runs(tag=spec.tags[-1])
    return next((run for run in found if run["state"] in ("done", *ALIVE)), None)


def _wait(studio: Studio, method: str, run: str, say: Callable[[str], None]) -> None:
    if studio.run(run)["state"] in ALIVE:
        quiet = 0.0
        for line in studio.follow(run):
            if line.startswith(("training ", "scoring ")):
                if time.monotonic() < quiet:
                    continue
                quiet = time.monotonic() + PROGRESS_SECONDS
            say(f"{method}: {line}")
    state = studio.run(run)["state"]
    if state != "done":
        raise StudioError(f"The demo's run {run} ({method}) is {state}.", f"See why: python app.py logs {run}")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
