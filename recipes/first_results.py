"""The runs behind ``docs/first-results.md``: unseen tasks alone and together, several processes at a time.

    python -m recipes.first_results train  --data DIR --home H --jobs 8 --seconds 480 --pack OUT
    python -m recipes.first_results unpack --packs OUT --home H
    python -m recipes.first_results page   --home H

``DIR`` holds a folder for each task (``train.jsonl``, ``test.jsonl``) and ``tasks.json``. ``train`` needs torch and no
database: each run is a process of ``app.py train --here``; one that fails is reported and the others go on, and what
is finished is not repeated when the command is given again. ``--setting small`` is for a CPU, ``smoke`` only tries
the machinery. ``--pack`` writes the run folders without checkpoints as a few archives, ``unpack`` brings them into
another studio (where ``python app.py runs`` lists them), and ``page`` writes the tables and the figure from the
run folders. The settings are those of ``together.yaml`` and ``alone.yaml``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.home import PROJECT, Home, RunFolder
from core.overrides import apply
from core.schema import RunSpec

RECIPES = Path(__file__).resolve().parent
METHODS = ("mosld", "molora", "lora")
SEEDS = (0, 1, 2)
UNSEEN = (
    "rt_polarity", "mnli", "boolq", "arc_easy", "openbookqa", "go_emotions", "clinc_domain", "query_wellformed",
    "snips_slot", "e2e_nlg", "inflection", "svamp",
)  # fmt: skip
SEEN = ("sms_spam", "snips_intent")  # their rows were in the base's training text: a check of its quality
ARCHIVE = 15 * 10**6  # bytes, at most
ARCHIVES = 4


@dataclass(frozen=True)
class Setting:
    """How much of the full setting is run."""

    train: dict[str, Any]
    task: dict[str, Any]
    seeds: Sequence[int] = SEEDS
    tasks: int | None = None  # only the first so many
    label: str = ""


SETTINGS = {
    "full": Setting({}, {}),
    "small": Setting(
        {"steps": 300, "batch_size": 16, "epochs": 1}, {"train_rows": 2000, "test_rows": 300}, seeds=(0,), label="small"
    ),
    "smoke": Setting(
        {"steps": 5, "batch_size": 4, "evaluate_every": 5, "validation_rows": 4, "log_every": 1, "max_length": 96},
        {"train_rows": 32, "test_rows": 8, "max_new_tokens": 4},
        seeds=(0,),
        tasks=2,
        label="smoke",
    ),
}


@dataclass(frozen=True)
class Planned:
    name: str
    spec: RunSpec


def plan(setting: Setting) -> list[Planned]:
    """All runs, those that matter most first: one seed of each method, each task alone, then further seeds."""
    together = [_together(method, seed, setting) for seed in setting.seeds for method in METHODS]
    alone = [_alone(task, setting) for task in (*UNSEEN[: setting.tasks], *SEEN[: setting.tasks])]
    return [*together[: len(METHODS)], *alone, *together[len(METHODS) :]]


def _together(method: str, seed: int, setting: Setting) -> Planned:
    spec = RunSpec.from_yaml((RECIPES / "together.yaml").read_text("utf-8"))
    spec = spec.model_copy(update={"tasks": spec.tasks[: setting.tasks]})
    changes = {"name": f"six tasks, {method}, seed {seed}", "method.name": method, "seed": seed}
    if method == "molora":  # as many experts in each layer as mosld has, which is MoLA's allocation
        changes["method.options.experts"] = [2, 4, 6, 8]
    return Planned(f"{method}-seed{seed}", _changed(spec, changes, setting))


def _alone(task: str, setting: Setting) -> Planned:
    spec = RunSpec.from_yaml((RECIPES / "alone.yaml").read_text("utf-8"))
    changes = {"name": f"{task} alone, lora", "tasks.0.task": task}
    if task in SEEN:
        changes["tags"] = ["first-results", "seen"]
    return Planned(f"{task}-lora", _changed(spec, changes, setting))


def _changed(spec: RunSpec, changes: dict[str, Any], setting: Setting) -> RunSpec:
    changes |= {f"train.{name}": value for name, value in setting.train.items()}
    for index in range(len(spec.tasks)):
        changes |= {f"tasks.{index}.{name}": value for name, value in setting.task.items()}
    if setting.label:
        changes |= {
            "name": f"{changes['name']} ({setting.label})",
            "tags": [*changes.get("tags", spec.tags), setting.label],
        }
    return apply(spec, changes)


def train(data: Path, home: Home, setting: Setting, *, jobs: int, seconds: float, only: str = "") -> bool:
    """Run everything, ``jobs`` processes at a time; whether all of it is done."""
    deadline = time.monotonic() + seconds
    _upload(data, home)
    waiting = [one for one in plan(setting) if only in one.name]
    environment = _environment(jobs)
    running: dict[str, tuple[subprocess.Popen, float]] = {}
    outcome: dict[str, str] = {}
    try:
        while (waiting or running) and time.monotonic() < deadline:
            while waiting and len(running) < jobs:
                one = waiting.pop(0)
                if finished(home.run(one.name)):
                    outcome[one.name] = "done"
                    print(f"{one.name}: done before", flush=True)
                else:
                    running[one.name] = (_start(one, home, environment), time.monotonic())
            for name, (process, began) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    outcome[name] = "done" if finished(home.run(name)) else "failed"
                    took = time.monotonic() - began
                    print(f"{name}: {outcome[name]} after {took:.0f} s. {_last_line(home, name)}", flush=True)
            time.sleep(0.2)
    finally:
        _stop([process for process, _ in running.values()])
    late = [*running, *(one.name for one in waiting)]
    failed = [name for name, state in outcome.items() if state != "done"]
    print(f"{len(outcome) - len(failed)} done, {len(failed)} failed, {len(late)} not done in time", flush=True)
    for name in failed:
        print(f"failed: {name}, see {_log(home, name)}", flush=True)
    return not failed and not late


def _upload(data: Path, home: Home) -> None:
    """Store the tasks as the data set ``tasks``; the same rows get the same id on every machine."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "tasks"
        folder.mkdir()
        wanted = (*UNSEEN, *SEEN)
        facts = [one for one in json.loads((data / "tasks.json").read_text("utf-8")) if one["name"] in wanted]
        (folder / "tasks.json").write_text(json.dumps(facts), "utf-8")
        for task in wanted:
            shutil.copytree(data / task, folder / task)
        command = [sys.executable, "app.py", "--home", str(home.root), "upload", str(folder), "--name", "tasks"]
        subprocess.run(command, cwd=PROJECT, check=True, env=_environment(1), stdout=subprocess.DEVNULL)


def _environment(jobs: int) -> dict[str, str]:
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    return os.environ | {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def _start(one: Planned, home: Home, environment: dict[str, str]) -> subprocess.Popen:
    log = _log(home, one.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    spec = log.with_suffix(".yaml")
    spec.write_text(one.spec.to_yaml(), "utf-8")
    out = str(home.run(one.name).root)
    command = [sys.executable, "app.py", "--home", str(home.root), "train", str(spec), "--here", "--out", out]
    with log.open("a") as file:
        return subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def _stop(processes: Sequence[subprocess.Popen]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, number)
        end = time.monotonic() + 5
        while time.monotonic() < end and any(process.poll() is None for process in processes):
            time.sleep(0.1)


def _log(home: Home, name: str) -> Path:
    return home.root / "first-results" / f"{name}.log"


def _last_line(home: Home, name: str) -> str:
    lines = _log(home, name).read_text("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else ""


def events(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """The whole lines of ``events.jsonl``."""
    if not folder.events.is_file():
        return
    for line in folder.events.read_text("utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # half a line of a killed writer


def finished(folder: RunFolder) -> bool:
    return any(event["kind"] == "finished" for event in events(folder))


def pack(home: Home, target: Path) -> list[Path]:
    """Write the finished runs, without checkpoints, into at most ``ARCHIVES`` files of at most ``ARCHIVE`` bytes.

    Each run is an xz archive of its own inside. Where the room does not suffice, adapters are left out, those of the
    last runs first; scores, curves, routing and predictions always come along.
    """
    target.mkdir(parents=True, exist_ok=True)
    order = [one.name for one in plan(SETTINGS["full"])]
    names = [name for name in order if finished(home.run(name))]
    room = ARCHIVE * ARCHIVES * 0.9
    bare = {name: _packed(home.run(name), adapter=False) for name in names}
    left = room - sum(map(len, bare.values()))
    chosen = {}
    for name in names:
        whole = _packed(home.run(name), adapter=True)
        extra = len(whole) - len(bare[name])
        fits = extra <= left and len(whole) < ARCHIVE * 0.95
        left -= extra if fits else 0
        chosen[name] = whole if fits else bare[name]
        print(f"packed {name}: {len(chosen[name]) / 1e6:.1f} MB{'' if fits else ', without its adapter'}", flush=True)
    return _bins(chosen, target)


def _packed(folder: RunFolder, *, adapter: bool) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz", preset=2) as archive:
        for path in sorted(folder.root.rglob("*")):
            inside = path.relative_to(folder.root)
            skipped = inside.parts[0] == "checkpoints" or (inside.parts[0] == "adapter" and not adapter)
            if path.is_file() and not skipped:
                archive.add(path, f"{folder.root.name}/{inside}")
    return out.getvalue()


def _bins(packed: dict[str, bytes], target: Path) -> list[Path]:
    """First fit, largest first."""
    bins: list[dict[str, bytes]] = []
    for name, data in sorted(packed.items(), key=lambda item: -len(item[1])):
        for one in bins:
            if sum(map(len, one.values())) + len(data) + 2048 * (len(one) + 2) < ARCHIVE:
                one[name] = data
                break
        else:
            bins.append({name: data})
    paths = []
    for number, one in enumerate(bins, start=1):
        paths.append(target / f"runs-{number}.tar")
        with tarfile.open(paths[-1], "w") as archive:
            for name, data in one.items():
                entry = tarfile.TarInfo(f"{name}.tar.xz")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return paths


def unpack(packs: Path, home: Home) -> list[str]:
    """Bring packed runs into the studio at ``home``; their names."""
    names = []
    for path in sorted(packs.glob("runs-*.tar")):
        with tarfile.open(path) as outer, tempfile.TemporaryDirectory() as place:
            for entry in outer.getmembers():
                with tarfile.open(fileobj=outer.extractfile(entry), mode="r:xz") as archive:
                    archive.extractall(place, filter="data")
                name = entry.name.removesuffix(".tar.xz")
                command = [sys.executable, "app.py", "--home", str(home.root), "import", str(Path(place) / name)]
                subprocess.run(command, cwd=PROJECT, check=True)
                names.append(name)
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train", help="run everything, several processes at a time")
    one.add_argument("--data", type=Path, required=True)
    one.add_argument("--jobs", type=int, default=2)
    one.add_argument("--seconds", type=float, default=7200)
    one.add_argument("--setting", choices=SETTINGS, default="full")
    one.add_argument("--only", default="", help="runs whose name holds this")
    one.add_argument("--pack", type=Path, help="folder for the archives")
    two = commands.add_parser("unpack", help="import packed runs")
    two.add_argument("--packs", type=Path, required=True)
    three = commands.add_parser("page", help="write the page of results")
    three.add_argument("--docs", type=Path, default=PROJECT / "docs")
    for command in (one, two, three):
        command.add_argument("--home", type=Path, required=True)
    given = parser.parse_args(arguments)
    home = Home.open(given.home)
    if given.command == "train":
        setting = SETTINGS[given.setting]
        done = train(given.data, home, setting, jobs=given.jobs, seconds=given.seconds, only=given.only)
        if given.pack:
            for path in pack(home, given.pack):
                print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", flush=True)
        return 0 if done else 1
    if given.command == "unpack":
        print(f"Imported {len(unpack(given.packs, home))} runs.")
        return 0
    from recipes.first_results_page import write_page

    print(f"Wrote {write_page(home, given.docs)}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
