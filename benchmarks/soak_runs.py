"""What the people of a soak do: submit runs in twins, press twice, cancel, resume, score."""

from __future__ import annotations

import json
import random
import threading
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core import demo_data
from core.errors import StudioError
from core.schema import RunSpec
from core.studio import Studio

METHODS = ("lora", "mosld", "hydralora", "molora", "mtl_lora", "malora")
TASKS = ("opinion", "subject")
ROWS = {"train": 64, "validation": 8, "test": 12}
OPEN = ("queued", "starting", "running", "cancelling")
TWINS = 4  # runs of each setting and seed; nobody aims at the first one's worker


def small_data(studio: Studio, folder: Path) -> str:
    """Two of the demo's tasks, a few rows of each, stored; returns the data set's id."""
    made = demo_data.generate()
    for task in TASKS:
        (folder / task).mkdir(parents=True, exist_ok=True)
        for split, rows in made[task].items():
            lines = "".join(json.dumps(row) + "\n" for row in rows[: ROWS[split]])
            (folder / task / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    about = [one for one in demo_data.metadata() if one["name"] in TASKS]
    (folder / "tasks.json").write_text(json.dumps(about), encoding="utf-8")
    return str(studio.upload(folder, name="soak")["id"])


def settings(dataset: str, method: str, seed: int, steps: int) -> RunSpec:
    """A real run on the bundled base that saves often."""
    return RunSpec.parse(
        {
            "name": f"{method} {seed}",
            "tasks": [{"dataset": dataset, "max_new_tokens": 4}],
            "method": {"name": method},
            "seed": seed,
            "train": {
                "steps": steps,
                "batch_size": 4,
                "learning_rate": 3e-3,
                "max_length": 64,
                "log_every": 1,
                "evaluate_every": max(10, steps // 4),
                "validation_rows": 8,
                "checkpoint_every": 8,
                "routing_moments": 3,
            },
            "evaluation": {"batch_size": 16, "base": False},
            "device": "cpu",
        }
    )


@dataclass
class Ordered:
    """A run that somebody asked for; ``touched`` once its worker was killed, paused or cancelled."""

    id: str
    request: str
    group: tuple[str, int]
    spared: bool
    touched: bool = False


@dataclass
class People:
    """Everything here goes through ``Studio``, as pages and commands do."""

    studio: Studio
    dataset: str
    chance: random.Random
    steps: int
    methods: Sequence[str] = METHODS
    ordered: dict[str, Ordered] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)  # what was done -> how often
    problems: list[str] = field(default_factory=list)
    _next: int = 0

    def states(self) -> dict[str, str]:
        return {run["id"]: run["state"] for run in self.studio.runs(limit=1000)}

    def open_runs(self) -> list[str]:
        """Those whose state is not final, newest first."""
        return [run["id"] for run in self.studio.runs(limit=1000) if run["state"] in OPEN]

    def keep_queue(self, waiting: int) -> None:
        """Submit until so many wait."""
        for _ in range(waiting - list(self.states().values()).count("queued")):
            self.submit()

    def submit(self) -> str:
        """The next run in the order of the twins; now and then with a double click."""
        place, number = divmod(self._next, TWINS)
        self._next += 1
        group = (self.methods[place % len(self.methods)], place // len(self.methods))
        return self.order(group, spared=number == 0, twice=self.chance.random() < 0.2)

    def order(self, group: tuple[str, int], *, spared: bool, twice: bool = False) -> str:
        spec, request = settings(self.dataset, *group, self.steps), uuid.uuid4().hex
        ids: list[str] = []

        def press() -> None:
            ids.append(self.studio.submit(spec, request_id=request))

        clicks = [threading.Thread(target=press) for _ in range(2 if twice else 1)]
        for click in clicks:
            click.start()
        for click in clicks:
            click.join()
        if len(set(ids)) != 1 or len(ids) != len(clicks):
            self.problems.append(f"pressing Start {len(clicks)} times made {ids}")
        if not ids:
            return ""
        self._count("double clicks" if twice else "submissions")
        self.ordered[ids[0]] = Ordered(ids[0], request, group, spared)
        return ids[0]

    def cancel(self) -> str | None:
        """Somebody cancels a run that waits or works and is not spared."""
        victims = [run for run in self.open_runs() if run in self.ordered and not self.ordered[run].spared]
        if not victims:
            return None
        run = self.chance.choice(victims)
        self.ordered[run].touched = True
        self.studio.cancel(run)
        self._count("cancellations")
        return run

    def resume(self, share: float = 1.0, but: Collection[str] = ()) -> None:
        """Resume what ended otherwise than done, each with this chance."""
        for run, state in self.states().items():
            if state not in ("failed", "cancelled", "lost") or run in but or self.chance.random() > share:
                continue
            try:
                self.studio.resume(run)
            except StudioError as error:
                self.problems.append(f"{run} was {state} and cannot be resumed: {error}")
                continue
            self._count("resumptions")

    def score(self) -> None:
        """Score a finished run again, with the same key twice: one job."""
        finished = [run for run, state in self.states().items() if state == "done"]
        if not finished:
            return
        run, request = self.chance.choice(finished), uuid.uuid4().hex
        names = {self.studio.score(run, split="validation", base=False, request_id=request) for _ in range(2)}
        if len(names) != 1:
            self.problems.append(f"one request to score {run} made the jobs {sorted(names)}")
        self._count("scorings")

    def groups(self) -> dict[tuple[str, int], list[Ordered]]:
        found: dict[tuple[str, int], list[Ordered]] = {}
        for one in self.ordered.values():
            found.setdefault(one.group, []).append(one)
        return found

    def _count(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1
