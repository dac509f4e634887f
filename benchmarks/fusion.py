"""Every fusion method on eight real tasks: adapters and full fine-tunes, three seeds, scores with standard errors.

    python benchmarks/fusion.py experts --data DIR --home H --jobs 12 --seconds 540
    python benchmarks/fusion.py fuse    --home H --jobs 12 --seconds 540 --out OUT
    python benchmarks/fusion.py gentle  --home H --jobs 12 --seconds 540 --out OUT
    python benchmarks/fusion.py sweep   --home H --jobs 12 --seconds 540 --out OUT
    python benchmarks/fusion.py page    --out OUT

``DIR`` holds a folder for each task (``train.jsonl``, ``test.jsonl``) and ``tasks.json``. Needs torch and no database;
what is finished is not repeated when a command is given again, and what is not done after ``--seconds`` is left for the
next time. ``--setting smoke`` only tries the machinery. ``page`` writes the generated part of docs/fusion.md and the
figure of the sweep from the results alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core import fusion_plan
from core.home import PROJECT, Home, RunFolder, write_json
from core.schema import MethodSpec, RunSpec, TaskSpec, TrainSpec

TASKS = (
    "rt_polarity", "query_wellformed", "creak", "mnli", "go_emotions", "snips_intent", "clinc_domain", "medquad_qtype",
)  # fmt: skip
SEEDS = (0, 1, 2)
LORA = MethodSpec(name="lora", options={"rank": 8, "alpha": 16, "modules": "all-linear"})
EXPERTS = {
    "lora": (LORA, 2e-3),
    "full": (MethodSpec(name="full"), 2e-4),
    "full_embeddings": (MethodSpec(name="full", options={"embeddings": True}), 2e-4),
}
DENSE = {"form": "dense"}  # the method itself is scored, not what an SVD leaves of it
FUSIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "concrete_adamerging": ("concrete_adamerging", DENSE),
    "concrete_task_arithmetic": ("concrete_task_arithmetic", DENSE),
    "adamerging++": ("adamerging_pp", DENSE),
    "adamerging": ("adamerging", {}),
    "adamerging, task-wise": ("adamerging", {"granularity": "task"}),
    "average": ("average", {}),
    "task_arithmetic": ("task_arithmetic", {}),
    "ties, sum": ("ties", {"merge": "sum"} | DENSE),
    "ties, mean": ("ties", {"merge": "mean"} | DENSE),
    "ties, sum, svd": ("ties", {"merge": "sum", "form": "svd"}),
    "dare_linear": ("dare_linear", DENSE),
    "dare_ties": ("dare_ties", DENSE),
    "magnitude_prune": ("magnitude_prune", DENSE),
    "r_mtllmf, ideal": ("r_mtllmf", {"snr": None}),
    "r_mtllmf, 10 dB": ("r_mtllmf", {"snr": 10.0}),
    "task arithmetic at 10 dB": ("r_mtllmf", {"snr": 10.0, "protection": "none", "realign": False}),
}
GENTLE = 0.1
COEFFICIENTS = (0.1, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)  # 0.3 is the default
SWEEPS = {
    "full_embeddings": ["none", "realign", "drop_embed", "error_protected", "layer_aware", "layer_random"],
    "full": ["freeze_embed", "freeze_embed+realign"],
    "lora": ["none", "realign", "layer_aware"],
}
SNR = [30, 20, 10, 5, 0, -5]


@dataclass(frozen=True)
class Setting:
    train: dict[str, Any] = field(default_factory=lambda: {"steps": 500, "batch_size": 32})
    train_rows: int = 4000
    test_rows: int = 500
    seeds: Sequence[int] = SEEDS
    tasks: Sequence[str] = TASKS
    learn: dict[str, Any] = field(default_factory=dict)  # options of methods that learn
    sweep: dict[str, Any] = field(default_factory=lambda: {"sweep_snr": SNR, "sweep_seeds": 3, "sweep_rows": 100})


SETTINGS = {
    "full": Setting(),
    "smoke": Setting(
        train={"steps": 4, "batch_size": 4},
        train_rows=64,
        test_rows=8,
        seeds=(0,),
        tasks=TASKS[:3],
        learn={"steps": 3, "coefficient_steps": 3},
        sweep={"sweep_snr": [10, 0], "sweep_seeds": 1, "sweep_rows": 8},
    ),
}


@dataclass(frozen=True)
class Work:
    """One run by name; ``sources`` are runs that must be there first."""

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    spec: RunSpec | None = None
    seed: int = 0


def experts(setting: Setting, dataset: str) -> list[Work]:
    """One run for each task, kind and seed, and one on all tasks together for each kind and seed."""
    found = []
    for seed in setting.seeds:
        for kind, (method, rate) in EXPERTS.items():
            if kind == "full_embeddings" and seed != setting.seeds[0]:
                continue  # for the sweep alone
            together = [("joint", setting.tasks)] if kind != "full_embeddings" else []
            for name, tasks in [*((task, [task]) for task in setting.tasks), *together]:
                steps = setting.train["steps"] * (4 if name == "joint" else 1)
                train = TrainSpec(
                    **setting.train | {"steps": steps}, learning_rate=rate, max_length=256, sampling="uniform",
                    log_every=50, evaluate_every=steps, checkpoint_every=steps, validation_rows=32, routing_moments=0,
                )  # fmt: skip
                limits = {"train_rows": setting.train_rows, "test_rows": setting.test_rows}
                spec = RunSpec(
                    name=f"{name} by {kind}, seed {seed}", method=method, train=train, seed=seed,
                    tasks=[TaskSpec(dataset=dataset, task=task, **limits) for task in tasks],
                )  # fmt: skip
                spec = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"batch_size": 128})})
                found.append(Work(f"{name}-{kind}-{seed}", method.name, spec=spec, seed=seed))
    return sorted(found, key=lambda work: not work.name.startswith("joint"))


def gentle(setting: Setting) -> list[Work]:
    """Methods that learn, of the first seed, from the coefficient that is best without learning, alerts ignored."""
    seed, more = setting.seeds[0], {"start": GENTLE, "on_alert": "continue"}
    learned = {label: fusion for label, fusion in FUSIONS.items() if "on_alert" in _options(fusion[0])}
    return [
        _fusion(
            setting, f"{label}, from {GENTLE}@{kind}-{seed}", method, kind, seed, own | more | _learned(setting, method)
        )
        for label, (method, own) in learned.items()
        for kind in ("lora", "full")
    ]


def fusions(setting: Setting) -> list[Work]:
    """Every fusion of every kind and seed, the long ones of each seed first; last the coefficients of one seed."""
    found = []
    for seed in setting.seeds:
        for label, (method, options) in FUSIONS.items():
            for kind in ("lora", "full"):
                if kind == "full" and "svd" in label:
                    continue
                learn = _learned(setting, method)
                found.append(_fusion(setting, f"{label}@{kind}-{seed}", method, kind, seed, options | learn))
    first = setting.seeds[0]
    for kind in ("lora", "full"):
        for method, options in (("task_arithmetic", {}), ("ties", {"merge": "sum"} | DENSE)):
            for value in COEFFICIENTS:
                chosen = options | {"coefficient": value}
                found.append(_fusion(setting, f"{method} {value}@{kind}-{first}", method, kind, first, chosen))
    return found


def sweeps(setting: Setting) -> list[Work]:
    """Curves over the SNR; full fine-tunes with frozen and with trained embeddings are runs of their own."""
    seed = setting.seeds[0]
    return [
        _fusion(
            setting,
            f"sweep {arm} {attack}@{kind}-{seed}",
            "r_mtllmf",
            kind,
            seed,
            {"snr": None, "realign": False, "protection": "none"}
            | setting.sweep
            | {"sweep_protections": [arm], "sweep_attacks": [attack]},
        )
        for kind, arms in SWEEPS.items()
        for arm in arms
        for attack in ("awgn", "worst_sum", "worst_strongest")
    ]


def _learned(setting: Setting, method: str) -> dict[str, Any]:
    return {name: value for name, value in setting.learn.items() if name in _options(method)}


def _options(method: str) -> set[str]:
    return {option["name"] for one in fusion_plan.methods() if one["name"] == method for option in one["options"]}


def _fusion(setting: Setting, name: str, method: str, kind: str, seed: int, options: dict[str, Any]) -> Work:
    return Work(name, method, options, tuple(f"{task}-{kind}-{seed}" for task in setting.tasks), seed=seed)


def run(work: Work, home: str) -> tuple[str, float, int]:
    """Do one run in this process unless it is done; name, seconds, exit code."""
    from core.data.store import DatasetStore
    from core.jobs.sinks import FileSink
    from core.jobs.worker import run_job

    here = Home.open(home)
    folder, began = here.run(slug(work.name)), time.monotonic()
    if finished(folder):
        return work.name, 0.0, 0
    shutil.rmtree(folder.root, ignore_errors=True)
    folder.create()
    spec = work.spec
    if spec is None:
        changes = {f"method.options.{name}": value for name, value in work.options.items()} | {"seed": work.seed}
        spec = fusion_plan.draft(work.sources, work.method, here, changes)
        spec = fusion_plan.plan(spec, here, DatasetStore(here.datasets)).spec
    write_json(folder.spec, spec.model_dump(mode="json"))
    kind = "fuse" if spec.sources else "train"
    job = {
        "job": kind, "kind": kind, "run": folder.root.name, "attempt": 1, "home": home, "folder": str(folder.root),
    }  # fmt: skip
    sink = FileSink(folder.events, run=folder.root.name, job=kind, attempt=1)
    try:
        code = run_job(job, sink)
    finally:
        sink.close()
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return work.name, time.monotonic() - began, code


def work_through(works: Sequence[Work], home: Home, jobs: int, seconds: float) -> bool:
    """Side by side in processes that stay; whether all of it is done."""
    deadline, failed, done = time.monotonic() + seconds, [], 0
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
    futures = {pool.submit(run, work, str(home.root)): work.name for work in works}
    try:
        for future in as_completed(futures, timeout=seconds):
            name, took, code = future.result()
            done += code == 0
            failed += [name] if code else []
            if took:
                print(f"{name}: {'failed' if code else 'done'} after {took:.0f} s", flush=True)
    except Late:
        pass
    processes = list(pool._processes.values())
    pool.shutdown(wait=time.monotonic() < deadline, cancel_futures=True)
    for process in processes if time.monotonic() >= deadline else ():
        process.kill()
    print(f"{done} done, {len(failed)} failed, {len(works) - done - len(failed)} not done in time", flush=True)
    for name in failed:
        print(f"failed: {name}: {failure(home.run(slug(name)))}", flush=True)
    return done == len(works)


def upload(data: Path, home: Home, tasks: Sequence[str]) -> str:
    """Store the tasks; the same rows get the same id on every machine."""
    from core.studio import Studio

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "eight"
        folder.mkdir()
        facts = [one for one in json.loads((data / "tasks.json").read_text("utf-8")) if one["name"] in tasks]
        (folder / "tasks.json").write_text(json.dumps(facts), "utf-8")
        for task in tasks:
            shutil.copytree(data / task, folder / task)
        return Studio(home.root).upload(folder, name="eight")["id"]


def slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_.@" else "-" for letter in name)


def events(folder: RunFolder) -> Iterator[dict[str, Any]]:
    for line in folder.events.read_text("utf-8").splitlines() if folder.events.is_file() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def finished(folder: RunFolder) -> bool:
    return any(event["kind"] == "finished" for event in events(folder))


def failure(folder: RunFolder) -> str:
    return next((event["message"] for event in events(folder) if event["kind"] == "failed"), "no reason was said")


def results(works: Sequence[Work], home: Home) -> list[dict[str, Any]]:
    """What every finished run found: scores by task (adapter and base), seconds, and the last table of each name."""
    found = []
    for work in works:
        folder = home.run(slug(work.name))
        if not finished(folder):
            continue
        told = list(events(folder))
        scores = {
            model: {
                e["task"]: e["value"] for e in told if e["kind"] == "score" and e["primary"] and e["model"] == model
            }
            for model in ("adapter", "base")
        }
        tables = {e["name"]: {"columns": e["columns"], "rows": e["rows"]} for e in told if e["kind"] == "table"}
        started = next(e["at"] for e in told if e["kind"] == "started")
        last = next((e["at"] for e in told if e["kind"] == "table" and e["name"] == "form"), None)
        label, _, place = work.name.partition("@")
        kind, _, seed = (place or work.name.partition("-")[2]).rpartition("-")
        found.append(
            {
                "label": label if place else work.name.partition("-")[0], "fused": bool(place), "kind": kind,
                "seed": int(seed), "method": work.method, "options": work.options, "scores": scores, "tables": tables,
                "began": started, "saved": last,
            }
        )  # fmt: skip
    return found


def pack(works: Sequence[Work], home: Home, out: Path, name: str) -> None:
    """Results and events without adapters, so that pages and figures can be made elsewhere."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(results(works, home), indent=0), "utf-8")
    with tarfile.open(out / f"{name}-events.tar.xz", "w:xz", preset=1) as archive:
        for work in works:
            folder = home.run(slug(work.name))
            if finished(folder):
                archive.add(folder.events, f"{folder.root.name}/events.jsonl")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("experts", "fuse", "gentle", "sweep", "page"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=7200)
    parser.add_argument("--setting", choices=SETTINGS, default="full")
    parser.add_argument("--only", default="", help="runs whose name this regular expression finds")
    given = parser.parse_args(arguments)
    if given.command == "page":
        from benchmarks.fusion_page import write

        print(f"Wrote {write(given.out, PROJECT / 'docs')}.")
        return 0
    home, setting = Home.open(given.home), SETTINGS[given.setting]
    if given.command == "experts":
        works = experts(setting, upload(given.data, home, setting.tasks))
    else:
        works = {"fuse": fusions, "gentle": gentle, "sweep": sweeps}[given.command](setting)
    works = [work for work in works if re.search(given.only, work.name)]
    done = work_through(works, home, given.jobs, given.seconds)
    pack(works, home, given.out, given.command)
    return 0 if done else 1


if __name__ == "__main__":
    raise SystemExit(main())
