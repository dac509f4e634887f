"""A home as it is after a year of work: 500 runs of 50,000 points, 50 data sets, 10,000 chat messages.

``python -m benchmarks.load_fixture HOME`` makes one; rows go into the database in bulk and in one transaction, files of
equal content are links to one. Every run has ended, so a dispatcher finds nothing to do in it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert
from sqlalchemy.orm import Session

from core.data.store import DatasetInfo, DatasetStore
from core.home import Home, RunFolder
from core.jobs.routing_files import read_arrays
from core.jobs.sinks import FileSink
from core.records import Records
from core.units import MIB
from storage import models
from storage.queries import series
from storage.types import setting_hash
from tests.support import seed
from tests.support.seed import BEGAN, PARAMETERS, SKILL, TASKS, TOTAL

METHODS = ("mosld", "lora", "molora")
STEPS = 10_000
SPARSE = (3_300, 3_300, 3_300)  # points of the loss of each task
VALIDATED = 100
POINTS = 4 * STEPS + sum(SPARSE) + VALIDATED
MOMENTS = (("step-2500", 2_500), ("step-5000", 5_000), ("end", STEPS))
SEEDS = 3
ROUTED = 5  # one run in so many recorded routing
LONG = "a name that nobody wanted to be this long but a sweep wrote it " * 2
NAMES = ("plain", "Ünïcödé – größer", "名前の長い実験", "اسم بالعربية", "🙂 emoji", "<b>tags</b> & 'quotes'", LONG)
ENDS = ("done",) * 17 + ("failed", "cancelled", "lost")


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    runs: int = 500
    datasets: int = 50
    messages: int = 10_000


SMALL = Size(runs=50, datasets=8, messages=500)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--runs", type=int, default=Size.runs)
    arguments = parser.parse_args()
    began = time.perf_counter()
    build(arguments.home, Size(runs=arguments.runs))
    size = sum(path.stat().st_size for path in arguments.home.glob("tessera.db*")) / MIB
    print(f"{arguments.runs} runs of {POINTS:,} points in {time.perf_counter() - began:.1f} s, database {size:.0f} MiB")
    return 0


def build(root: str | Path, size: Size = Size()) -> list[str]:
    """Fill a new home; returns the ids of its runs, oldest first."""
    home = Home.open(root)
    sets = _datasets(home, size.datasets)
    records = Records(home)
    examples = Examples(home, sets[0])
    with records.write() as session:
        made = _runs(session, sets, size.runs)
        jobs = _jobs(session, made)
        for run, job in zip(made, jobs, strict=True):
            series.add_whole(session, run_id=run.id, job_id=job, curves=_curves(run.id, run.method))
            if run.state == "done":
                _found(session, examples, run, job)
            examples.folder(home.run(run.slug).create(), run)
        _messages(session, made, size.messages)
        ids = [run.slug for run in made]
    records.close()
    return ids


def _datasets(home: Home, count: int) -> list[DatasetInfo]:
    """Three tasks each, of other rows; one in ten has forty tasks."""
    store, found = DatasetStore(home.datasets), []
    for index in range(count):
        names = [f"{task} {place}" for place in range(14) for task in TASKS] if index % 10 == 9 else list(TASKS)
        splits = {
            split: {name: [_row(name, index, row) for row in range(rows)] for name in names}
            for split, rows in (("train", 40), ("validation", 8), ("test", 40))
        }
        name = f"{NAMES[index % len(NAMES)][:80].strip()} {index}"
        found.append(store.add(DatasetInfo(name=name, source="generated"), splits))
    return found


def _row(task: str, index: int, row: int) -> dict[str, Any]:
    plain = seed._row(task.partition(" ")[0], row)
    return plain | {"input": f"{plain['input']} {index}-{row}"}


def _runs(session: Session, sets: Sequence[DatasetInfo], count: int) -> list[models.Run]:
    """Three seeds of each setting; settings differ in method, data set and learning rate."""
    made = []
    for index in range(count):
        setting, data = index // SEEDS, sets[index // SEEDS % len(sets)]
        method, state = METHODS[setting % len(METHODS)], ENDS[index % len(ENDS)]
        began = BEGAN + timedelta(hours=index)
        name = f"{NAMES[index % len(NAMES)][:110]} {index}"
        spec = _spec(data.id, method, seed=index % SEEDS, learning_rate=round(1e-3 * (1 + setting // 60), 4), name=name)
        run = models.Run(
            slug=f"new-{index}",
            folder="",
            name=name,
            spec=spec,
            method=method,
            base=spec["model"]["base"],
            tasks=list(TASKS),
            seed=index % SEEDS,
            setting_hash=setting_hash(spec),
            state=state,
            created=began,
            started=began,
            finished=began + timedelta(minutes=50),
            trainable_parameters=PARAMETERS[method],
            total_parameters=TOTAL,
            notes="Notes. " * (index % 40),
        )
        made.append(run)
    session.add_all(made)
    session.flush()
    for run in made:
        run.slug = run.folder = f"run-{run.id}"
    tags = [{"run_id": r.id, "tag": t} for i, r in enumerate(made) for t in (f"batch {i // 50}", NAMES[i % 7][:60])]
    session.execute(insert(models.RunTag), tags)
    reads = [{"run_id": r.id, "dataset_id": sets[i // SEEDS % len(sets)].id} for i, r in enumerate(made)]
    session.execute(insert(models.RunDataset), reads)
    session.flush()
    return made


def _spec(dataset: str, method: str, *, learning_rate: float, **more: Any) -> dict[str, Any]:
    plain = seed.spec(dataset, method, **more).model_dump(mode="json")
    plain["train"] |= {"steps": STEPS, "learning_rate": learning_rate}
    return plain


def _jobs(session: Session, made: Sequence[models.Run]) -> list[int]:
    """A training job with one attempt and some lines for each run; returns their numbers."""
    failed = {"failure": "memory", "message": "The GPU ran out of memory.", "hint": "Halve the batch size."}
    none = dict.fromkeys(failed)
    rows = [
        {"run_id": run.id, "name": "train", "kind": "train", "state": run.state, "position": run.id, "step": STEPS}
        | {"total": STEPS, "submitted": run.created, "started": run.started, "finished": run.finished}
        | (failed if run.state == "failed" else none)
        for run in made
    ]
    statement = insert(models.Job).returning(models.Job.id, sort_by_parameter_order=True)
    jobs = list(session.scalars(statement, rows))
    attempts = [
        {"job_id": job, "number": 1, "outcome": run.state, "said": run.state, "token": f"fixture-{job}"}
        | {"created": run.created, "started": run.started, "ended": run.finished}
        for job, run in zip(jobs, made, strict=True)
    ]
    session.execute(insert(models.Attempt), attempts)
    lines = [
        {"run_id": run.id, "job_id": job, "attempt": 1, "at": run.created, "level": "info", "message": f"line {line}"}
        for job, run in zip(jobs, made, strict=True)
        for line in range(20)
    ]
    session.execute(insert(models.LogLine), lines)
    return jobs


def _curves(run: int, method: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """50,000 points: four curves of every step, one of each task, validation."""
    noise = np.random.default_rng(run)
    steps = np.arange(1, STEPS + 1)
    loss = 2 * np.exp(-steps / (900 + 2_000 * SKILL[method])) + 0.4 + 0.06 * noise.standard_normal(STEPS)
    found = {
        "loss": (steps, loss),
        "learning_rate": (steps, 2e-3 * (1 - steps / (STEPS + 1))),
        "grad_norm": (steps, 0.8 + 0.1 * noise.standard_normal(STEPS)),
        "tokens_per_second": (steps, 5_200 + 150 * noise.standard_normal(STEPS)),
        "validation": (steps[STEPS // VALIDATED - 1 :: STEPS // VALIDATED], loss[:: STEPS // VALIDATED] + 0.08),
    }
    for place, (task, count) in enumerate(zip(TASKS, SPARSE, strict=True)):
        found[f"loss/{task}"] = (steps[: 3 * count : 3], loss[: 3 * count : 3] + 0.1 * place)
    return found


def _found(session: Session, examples: Examples, run: models.Run, job: int) -> None:
    """Scores of a finished run and of its base; of some, routing."""
    owner = {"run_id": run.id, "job_id": job, "created": run.finished}
    session.execute(insert(models.Score), [owner | score for score in examples.scores(run.method, run.id)])
    if run.method == "lora" or run.id % ROUTED:
        return
    for (moment, step), (axes, arrays) in zip(MOMENTS, examples.routing, strict=True):
        told = {"moment": moment, "step": step, "split": "validation", "file": f"{moment}.npz", "axes": axes}
        taken = models.RoutingSnapshot(run_id=run.id, job_id=job, created=run.finished, **told)
        session.add(taken)
        session.flush()
        rows = [{"snapshot_id": taken.id, "name": name, **one} for name, one in arrays.items()]
        session.execute(insert(models.RoutingArray), rows)


class Examples:
    """What one real run of each method left behind; the files of all others are links to its files."""

    def __init__(self, home: Home, dataset: DatasetInfo) -> None:
        self._root, self._dataset = home.cache / "examples", dataset

    def scores(self, method: str, run: int) -> Iterator[dict[str, Any]]:
        """Rows of ``Score`` without their run; figures differ a little from run to run."""
        for event in self._said[method]:
            named = {"task", "dataset", "split", "model", "metric", "value", "stderr", "rows", "key", "predictions"}
            own = {name: event[name] for name in named} | {"primary": event["primary"], "chance": event["chance"]}
            moved = 0.0 if event["model"] == "base" else 0.0001 * (run % 300)
            yield own | {"value": min(0.99, event["value"] + moved), "extras": {"trivial": 0.3, "copy": None}}

    @cached_property
    def _said(self) -> dict[str, list[dict[str, Any]]]:
        found = {}
        for method in METHODS:
            folder = self._of(method).create()
            with closing(FileSink(folder.events, run=method, job="train", attempt=1)) as sink:
                for model in (method, "base"):
                    seed._score(sink.emit, folder, self._dataset.id, model, 0)
            found[method] = [json.loads(line) for line in folder.events.read_text("utf-8").splitlines()]
        return found

    @cached_property
    def routing(self) -> list[tuple[dict[str, Any], dict[str, dict[str, Any]]]]:
        """Axes and arrays of each moment as rows hold them."""
        room, found = self._of("mosld").create().routing, []
        for moment, step in MOMENTS:
            seed.snapshot(TASKS, 0, step / STEPS).save(room / f"{moment}.npz")
            axes, arrays = read_arrays(room, f"{moment}.npz")
            found.append((axes, {n: {"shape": list(a.shape), "data": a.tobytes()} for n, a in arrays.items()}))
        return found

    def folder(self, folder: RunFolder, run: models.Run) -> None:
        """Files of one run: what it was asked, what it printed, answers, routing, an adapter."""
        folder.spec.write_text(json.dumps(run.spec), "utf-8")
        folder.events.write_text("", "utf-8")
        (folder.logs / "train-1.log").write_text("loading the base\ntraining\n" * 20, "utf-8")
        if run.state != "done":
            return
        own = self._of(run.method)
        folder.adapter.mkdir(exist_ok=True)
        (folder.adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}', "utf-8")
        for path in sorted(own.predictions.glob("*.jsonl")):
            os.link(path, folder.predictions / path.name)
        if run.method != "lora" and run.id % ROUTED == 0:
            for path in sorted(self._of("mosld").routing.glob("*.npz")):
                os.link(path, folder.routing / path.name)

    def _of(self, method: str) -> RunFolder:
        return RunFolder(self._root / method)


def _messages(session: Session, made: Sequence[models.Run], count: int) -> None:
    """A fifth of all messages in one long conversation, the rest in conversations of ten questions; four models."""
    names = [run.slug for run in made if run.state == "done"]
    left, place = count, 0
    while left > 0:
        turns = count // 25 if place == 0 else min(10, -(-left // 5))
        chosen = ["base", *(names[(place + n * 7) % len(names)] for n in range(3))]
        _conversation(session, place, chosen, turns)
        left, place = left - 5 * turns, place + 1


def _conversation(session: Session, place: int, chosen: Sequence[str], turns: int) -> None:
    at = BEGAN + timedelta(hours=place)
    settings: Mapping[str, Any] = {"max_new_tokens": 128, "temperature": 0.7, "top_p": 0.9, "seed": 0, "system": ""}
    told = {"title": f"{NAMES[place % len(NAMES)][:60]} {place}", "settings": dict(settings), "created": at}
    owner = models.Conversation(models=list(chosen), changed=at, **told)
    session.add(owner)
    session.flush()
    shared = {"conversation_id": owner.id, "settings": dict(settings), "created": at}
    asked = [{**shared, "text": f"Question {turn}: which task is this? " + "word " * 12} for turn in range(turns)]
    statement = insert(models.Message).returning(models.Message.id, sort_by_parameter_order=True)
    questions = list(session.scalars(statement, asked))
    said = {"text": "An answer of some length. " * 16, "tokens": 96, "seconds": 3.1, "ended": "end"}
    answers = [{**shared, **said, "question_id": question, "model": name} for question in questions for name in chosen]
    session.execute(insert(models.Message), answers)


if __name__ == "__main__":
    raise SystemExit(main())
