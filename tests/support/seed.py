"""Runs of every state in a home, made through the real events, ingest and storage: what pages are tested on.

``few`` writes run folders with FileSink and ingests them; ``many`` stores rows alone, for pages that must stay light.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from core.data.store import DatasetInfo, DatasetStore
from core.evaluation.metrics import judge, select
from core.evaluation.predictions import Answer, write_predictions
from core.evaluation.statistics import estimate
from core.home import Home, RunFolder, write_json
from core.jobs.ingest import ingest_events
from core.jobs.sinks import FileSink
from core.routing.snapshot import RoutingSnapshot, SiteInfo
from core.schema import RunSpec
from core.studio import Studio
from storage import models
from storage.queries import attempts, jobs, series
from storage.queries import runs as stored_runs
from storage.types import setting_hash

BEGAN = datetime(2026, 5, 4, 9, 0, tzinfo=UTC)
OPTIONS = {"topic": ("sport", "science", "music", "politics"), "mood": ("good", "bad")}
TASKS = ("topic", "mood", "words")
SKILL = {"base": 0.35, "lora": 0.72, "molora": 0.8, "mosld": 0.84}  # share of right answers
PARAMETERS = {"lora": 294_912, "molora": 1_245_184, "mosld": 737_280, "hydralora": 811_008}
TOTAL = 13_893_632
LAYERS, EXPERTS, PROJECTIONS = 8, 4, ("q_proj", "v_proj", "up_proj")
ROWS = {"train": 60, "validation": 12, "test": 40}


@dataclass
class Seeded:
    """The runs of ``few`` by what they are."""

    home: Path
    dataset: str = ""
    mosld: list[str] = field(default_factory=list)  # three seeds of one setting, done
    lora: str = ""
    molora: str = ""
    failed: str = ""
    cancelled: str = ""
    running: str = ""
    queued: list[str] = field(default_factory=list)

    @property
    def done(self) -> list[str]:
        return [*self.mosld, self.lora, self.molora]


class QuietStudio(Studio):
    """Starts no dispatcher: what is queued in a test stays queued."""

    def dispatcher(self, action: str = "status") -> dict[str, Any]:
        return super().dispatcher("status" if action in ("start", "run") else action)


def dataset(home: Path, name: str = "reviews") -> DatasetInfo:
    """Three tasks: two with labels, one with free text; stored as real rows."""
    splits = {split: {task: [_row(task, i) for i in range(size)] for task in TASKS} for split, size in ROWS.items()}
    return DatasetStore(Home.open(home).datasets).add(DatasetInfo(name=name), splits)


def _row(task: str, index: int) -> dict[str, Any]:
    if task == "words":
        return {"instruction": "Count the words.", "input": "word " * (index % 7 + 1), "output": f"{index % 7 + 1}"}
    labels = OPTIONS[task]
    label = labels[(index * 7 // 3) % len(labels)]
    text = f"Text {index} about {label}, <b>raw</b> & plain."
    return {"instruction": f"Name the {task}.", "input": text, "output": label, "choices": list(labels)}


def few(home: str | Path) -> Seeded:
    """Ten runs: three seeds of mosld, lora and molora are done, one failed, one was cancelled, one works, two wait."""
    studio = QuietStudio(home)
    seeded = Seeded(studio.home.root, dataset(studio.home.root).id)
    for seed in range(3):
        seeded.mosld.append(finished(studio, seeded.dataset, "mosld", seed=seed, tags=["paper"]))
    seeded.lora = finished(studio, seeded.dataset, "lora", tags=["paper", "baseline"])
    seeded.molora = finished(studio, seeded.dataset, "molora", parent=seeded.lora)
    seeded.failed = failed(studio, seeded.dataset)
    seeded.cancelled = cancelled(studio, seeded.dataset)
    seeded.running = running(studio, seeded.dataset)
    seeded.queued = [queued(studio, seeded.dataset, seed=seed) for seed in range(2)]
    studio.close()
    return seeded


def spec(dataset: str, method: str = "mosld", *, seed: int = 0, **more: Any) -> RunSpec:
    options = {"rank": 8} if method == "lora" else {"rank": 8, "experts": EXPERTS}
    tasks = [{"dataset": dataset, "task": task, "max_new_tokens": 8} for task in TASKS]
    train = {"steps": 120, "learning_rate": 2e-3, "log_every": 1}
    head = {"name": f"{method} on {len(TASKS)} tasks", "method": {"name": method, "options": options}}
    return RunSpec.parse({**head, "tasks": tasks, "train": train, "seed": seed, "device": "cpu", **more})


def finished(
    studio: Studio, dataset: str, method: str, *, seed: int = 0, parent: str | None = None, **more: Any
) -> str:
    run, folder = _add(studio, spec(dataset, method, seed=seed, **more), parent)
    with _events(folder) as say:
        _training(say, folder, method, seed, until=120)
        for model in (method, "base"):
            _score(say, folder, dataset, model, seed)
        say("finished", step=120)
    _adapter(folder)
    ingest_events(studio.records.database, folder)
    return run


def fused(studio: Studio, dataset: str, sources: Sequence[str], method: str = "adamerging", **options: Any) -> str:
    """A fusion of runs that is done; one that learns has curves of its objective, entropies and coefficients."""
    plain = spec(dataset).model_dump(mode="json") | {"name": f"{method} of {', '.join(sources)}"}
    made = {"method": {"name": method, "options": options}, "sources": list(sources)}
    run, folder = _add(studio, RunSpec.parse(plain | made))
    with _events(folder, job="fuse") as say:
        say("started", step=0, device="cpu", versions={}, trainable=0)
        for step in range(0, 9, 2) if method == "adamerging" else ():
            values = {"loss": 1.4 - 0.01 * step, "coefficients_at_bound": 0.0}
            values |= {f"entropy/{task}": 0.6 - 0.01 * step for task in TASKS}
            values |= {f"coefficient/{source}": 0.5 + 0.01 * step for source in sources}
            say("metrics", step=step, values=values)
        say("finished", step=8)
    _adapter(folder)
    ingest_events(studio.records.database, folder)
    return run


def failed(studio: Studio, dataset: str) -> str:
    run, folder = _add(studio, spec(dataset, "hydralora", name="too large <for> this GPU"))
    tail = [*(f'  File "core/training/run.py", line {n}' for n in range(60, 90)), "CUDA out of memory. Tried 20 GiB"]
    with _events(folder) as say:
        _training(say, folder, "mosld", 5, until=31)
        say(
            "alarm",
            name="diverged",
            step=30,
            message="The loss is 4.2 times its lowest value: lower the learning rate.",
        )
        hint = "Halve the batch size and double gradient_accumulation."
        say("failed", failure="memory", message="The GPU ran out of memory at step 31.", hint=hint, tail=tail)
    (folder.logs / "train-1.log").write_text("\n".join(["loading the base", *tail]) + "\n", encoding="utf-8")
    ingest_events(studio.records.database, folder)
    return run


def cancelled(studio: Studio, dataset: str) -> str:
    run, folder = _add(studio, spec(dataset, "molora", seed=9))
    with _events(folder) as say:
        _training(say, folder, "molora", 9, until=44)
        say("checkpoint", step=40, path="checkpoints/step-40")
        say("cancelled", step=44)
    ingest_events(studio.records.database, folder)
    return run


def running(studio: Studio, dataset: str, *, steps: int = 60) -> str:
    """Claimed as the dispatcher claims, with a lease of the CPU; ``more_steps`` lets it go on."""
    run, folder = _add(studio, spec(dataset, "mosld", seed=7))
    with studio.records.write() as session:
        job = jobs.claim(session, requests=["cpu"])
        attempts.begin(session, job=job, token=f"seed-{run}", device="cpu", share=1.0, host="here")
    with _events(folder) as say:
        _training(say, folder, "mosld", 7, until=steps)
    (folder.logs / "train-1.log").write_text("loading the base\ntraining\n", encoding="utf-8")
    ingest_events(studio.records.database, folder)
    return run


def more_steps(studio: Studio, run: str, first: int, last: int) -> None:
    """Events of a worker that goes on: the next attempt from step ``first``."""
    folder = studio.home.run(run)
    with _events(folder, attempt=2) as say:
        say("started", step=first, device="cpu", versions={}, trainable=PARAMETERS["mosld"], total=TOTAL)
        _curve(say, "mosld", 7, first, last)
    ingest_events(studio.records.database, folder)


def queued(studio: Studio, dataset: str, *, method: str = "lora", seed: int = 0) -> str:
    return _add(studio, spec(dataset, method, seed=100 + seed))[0]


def _add(studio: Studio, chosen: RunSpec, parent: str | None = None) -> tuple[str, RunFolder]:
    plain = chosen.model_dump(mode="json")
    datasets = list(dict.fromkeys(task.dataset for task in chosen.tasks))
    with studio.records.write() as session:
        row, _ = stored_runs.add(session, spec=plain, name=chosen.name, datasets=datasets, parent=parent)
        folder = studio.home.run(row.id).create()
        write_json(folder.spec, plain)
        trainable, kind = (0, "fuse") if chosen.sources else (PARAMETERS[chosen.method.name], "train")
        stored_runs.set_parameters(session, run_id=row.number, trainable=trainable, total=TOTAL)
        jobs.add(session, run=row.id, kind=kind, device="cpu")
    return row.id, folder


class _events:
    """FileSink as a context; each event is said a second after the one before."""

    def __init__(self, folder: RunFolder, attempt: int = 1, job: str = "train") -> None:
        self._sink = FileSink(folder.events, run=folder.root.name, job=job, attempt=attempt)
        self._at = BEGAN + timedelta(hours=int(folder.root.name.rpartition("-")[2]), minutes=30 * (attempt - 1))

    def __enter__(self) -> Any:
        return self

    def __call__(self, kind: str, **fields: Any) -> None:
        self._at += timedelta(seconds=1)
        self._sink.emit(kind, at=self._at.isoformat(timespec="milliseconds"), **fields)

    def __exit__(self, *_: object) -> None:
        self._sink.close()


def _training(say: Any, folder: RunFolder, method: str, seed: int, *, until: int) -> None:
    versions = {"torch": "2.9.0", "peft": "0.21.0"}
    say("started", step=0, device="cpu", versions=versions, trainable=PARAMETERS[method], total=TOTAL)
    say("log", level="info", message=f"{method} with {PARAMETERS[method]:,} trainable parameters.")
    _curve(say, method, seed, 0, until)
    if method == "lora":
        return
    for moment, step in (("step-40", 40), ("step-80", 80), ("end", 120)):
        if step <= until:
            snapshot(TASKS, seed, step / 120).save(folder.routing / f"{moment}.npz")
            say("routing", step=step, moment=moment, split="validation", file=f"{moment}.npz")


def _curve(say: Any, method: str, seed: int, first: int, last: int, total: int = 120) -> None:
    noise = np.random.default_rng(seed)
    for step in range(first + 1, last + 1):
        loss = 2.4 * math.exp(-step / (18 + 40 * SKILL[method])) + 0.4 + 0.06 * noise.standard_normal()
        values = {"loss": loss, "learning_rate": 2e-3 * min(1, step / 6) * (1 - step / (total + 1))}
        values |= {f"loss/{task}": loss + 0.1 * i for i, task in enumerate(TASKS)}
        values |= {"tokens_per_second": 5200 + 150 * noise.standard_normal(), "memory_gib": 1.4, "grad_norm": 0.8}
        if step % 12 == 0:
            values |= {"validation": loss + 0.08} | {f"validation/{task}": loss + 0.08 for task in TASKS}
        say("metrics", step=step, values=values)
        say("progress", step=step, total=total, phase="training", seconds_left=(total - step) * 1.1)


def snapshot(tasks: Sequence[str], seed: int, sharpness: float) -> RoutingSnapshot:
    """Routing that grows apart by task: each task has experts that it prefers."""
    noise = np.random.default_rng(seed)
    sites, sums = [], []
    for layer in range(LAYERS):
        for projection in PROJECTIONS:
            name = f"model.layers.{layer}.{projection}"
            sites.append(SiteInfo(name, layer, projection, EXPERTS, 2, "token", "token"))
            total = np.zeros((2, len(tasks), 3 * EXPERTS + 2))
            for role in range(2):
                for task in range(len(tasks)):
                    wanted = np.zeros(EXPERTS)
                    wanted[(task + layer // 3) % EXPERTS] = 3 * sharpness
                    share = np.exp(wanted + 0.3 * noise.standard_normal(EXPERTS))
                    share /= share.sum()
                    count = 900.0 + 100 * task
                    entropy = -(share * np.log(share)).sum()
                    parts = (share, np.minimum(1, 2 * share), share, [entropy], [1.0])
                    total[role, task] = np.concatenate(parts) * count
            sums.append(total)
    return RoutingSnapshot.from_sums(list(tasks), sites, sums)


def _score(say: Any, folder: RunFolder, dataset: str, model: str, seed: int) -> None:
    for place, task in enumerate(TASKS):
        rows = [_row(task, index) | {"task": task} for index in range(ROWS["test"])]
        noise = np.random.default_rng([seed if model != "base" else 0, place, len(model)])
        answers = [_answer(row, bool(noise.random() < SKILL[model] - 0.06 * place), noise) for row in rows]
        kind = "generation" if task == "words" else "classification"
        wanted = ["exact_match", "token_f1", "bleu"] if kind == "generation" else ["accuracy", "macro_f1"]
        metrics = select(kind, wanted)
        which, key = "base" if model == "base" else "adapter", f"{dataset[:6]}-{task}-test"
        predictions = judge(key, answers, metrics)
        file = f"{task}-test-{which}.jsonl"
        write_predictions(folder.predictions / file, key, rows, answers, predictions.values)
        chance = 1 / len(OPTIONS[task]) if task in OPTIONS else None
        for metric in metrics:
            found = estimate(metric, predictions)
            said = {"task": task, "dataset": dataset, "split": "test", "model": which, "metric": metric.name}
            said |= {"value": found.value, "stderr": found.stderr, "rows": found.rows, "key": key, "predictions": file}
            primary = metric is metrics[0]
            say("score", **said, primary=primary, chance=chance if primary else None, trivial=0.3, copy=None)


def _answer(row: Mapping[str, Any], right: bool, noise: np.random.Generator) -> Answer:
    options = tuple(row.get("choices", ()))
    others = [option for option in options if option != row["output"]] or [f"{int(noise.integers(20, 90))}"]
    given = row["output"] if right else str(noise.choice(others))
    sums = tuple(-1.0 if option == given else -3.0 - float(noise.random()) for option in options)
    return Answer(given, (row["output"],), options, sums, sums)


def _adapter(folder: RunFolder) -> None:
    """Stands where an adapter would: enough for what only asks whether there is one."""
    folder.adapter.mkdir(exist_ok=True)
    write_json(folder.adapter / "adapter_config.json", {"peft_type": "LORA", "r": 8})


def many(home: str | Path, runs: int = 300, points: int = 200) -> list[str]:
    """Finished runs as rows alone, stored in one transaction; returns their ids."""
    studio = QuietStudio(home)
    stored = dataset(studio.home.root).id
    plain = {method: spec(stored, method).model_dump(mode="json") for method in ("mosld", "lora", "molora")}
    steps = np.arange(1, points + 1)
    with studio.records.write() as session:
        made = [_run(session, plain, index) for index in range(runs)]
        session.flush()
        for run in made:
            run.slug = run.folder = f"run-{run.id}"
            session.add(models.RunTag(run_id=run.id, tag=f"batch-{run.id // 100}"))
            session.add(models.RunDataset(run_id=run.id, dataset_id=stored))
        jobs_ = [
            models.Job(run_id=run.id, name="train", kind="train", state=run.state, position=run.id) for run in made
        ]
        session.add_all(jobs_)
        session.flush()
        for run, job in zip(made, jobs_, strict=True):
            _results(session, stored, run, job.id, steps)
        ids = [run.slug for run in made]
    studio.close()
    return ids


def _run(session: Any, plain: Mapping[str, Any], index: int) -> models.Run:
    method = tuple(plain)[index % len(plain)]
    run = models.Run(
        slug=f"new-{index}",
        name=f"{method} number {index}",
        spec=plain[method] | {"seed": index // len(plain)},
        method=method,
        base="tessera-base",
        tasks=list(TASKS),
        seed=index // len(plain),
        setting_hash=setting_hash(plain[method]),
        state="done" if index % 10 else "failed",
        trainable_parameters=PARAMETERS[method],
        total_parameters=TOTAL,
        folder="",
    )
    session.add(run)
    return run


def _results(session: Any, stored: str, run: models.Run, job: int, steps: np.ndarray) -> None:
    for name in ("loss", "validation"):
        values = 2 * np.exp(-steps / len(steps)) + 0.001 * run.id
        last = {"last_step": int(steps[-1]), "last_value": float(values[-1])}
        curve = models.Series(run_id=run.id, job_id=job, name=name, count=len(steps), **last)
        session.add(curve)
        session.flush()
        for start in range(0, len(steps), series.CHUNK):
            part = slice(start, start + series.CHUNK)
            own = steps[part]
            facts = {"first_step": int(own[0]), "last_step": int(own[-1]), "count": len(own)}
            points = {
                "steps": own.astype(series.STEPS).tobytes(),
                "values": values[part].astype(series.VALUES).tobytes(),
            }
            session.add(models.SeriesChunk(series_id=curve.id, **facts, **points))
    for task in TASKS:
        facts = {"task": task, "dataset": stored, "split": "test", "model": "adapter", "metric": "accuracy"}
        value = min(0.99, SKILL[run.method] + 0.0005 * run.id)
        session.add(models.Score(run_id=run.id, job_id=job, value=value, stderr=0.05, rows=40, primary=True, **facts))
