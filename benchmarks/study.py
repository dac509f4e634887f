"""A study of short runs, one after another and several at once on the same device: wall time of the whole.

    python benchmarks/study.py [--device cuda] [--at-once 4,1] [--runs 8] [--steps 60] [--out FOLDER]
    python benchmarks/study.py --device cpu --at-once 2,1 --runs 4 --steps 8 --rows 8          # a tiny form

Each run trains one variant of MoSLD or LoRA (two ranks, two seeds) on the demo's tasks over the bundled base and is
scored beside its base, as a worker of its own, started by the dispatcher that the studio uses. A part is such a study
with a limit of jobs at once (``TESSERA_GPU_JOBS`` or ``TESSERA_CPU_JOBS``); its time is that from the dispatcher's
start, with all runs queued, to the end of the last worker. The base's answers are forgotten before each part, and one
run that is not counted comes first, so that files lie in the system's cache. Largest differences are those of any score
and of any logged loss between a part and the last one. Writes ``study.jsonl`` and ``study.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core import pipelines
from core.home import ASSETS, read_json
from core.jobs.devices import list_devices
from core.jobs.dispatcher import Dispatcher, Limits
from core.schema import RunSpec
from core.studio import Studio
from core.units import GIB

METHODS, RANKS = ("mosld", "lora"), (8, 16)
TRAIN = {"learning_rate": 3e-3, "max_length": 96, "log_every": 10, "validation_rows": 32, "routing_moments": 1}
LIMIT = {"cuda": "TESSERA_GPU_JOBS", "cpu": "TESSERA_CPU_JOBS"}
PHASES = ("starting", "training", "scoring")


def specs(
    count: int, steps: int, rows: int | None, device: str, dataset: str, changes: dict[str, Any]
) -> list[RunSpec]:
    """``count`` variants of method, rank and seed."""
    found = []
    for number in range(count):
        method, rank = METHODS[number % 2], RANKS[number // 2 % 2]
        found.append(
            RunSpec.parse(
                {
                    "tasks": [{"dataset": dataset, "max_new_tokens": 16, "test_rows": rows}],
                    "method": {"name": method, "options": {"rank": rank, "alpha": 2 * rank, "modules": "all-linear"}},
                    "train": {**TRAIN, "steps": steps, "evaluate_every": steps, "checkpoint_every": steps, **changes},
                    "evaluation": {"batch_size": 64},
                    "seed": number // 4,
                    "device": device,
                }
            )
        )
    return found


class Study:
    """A studio in a folder of its own; the dispatcher works in this process."""

    def __init__(self, root: Path, device: str) -> None:
        self.studio, self.device = Studio(root), device
        self.dataset = self.studio.upload(ASSETS / "demo", name="demo")["id"]

    def part(self, wanted: Sequence[RunSpec], at_once: int) -> dict[str, Any]:
        """Queue the runs, work until all have ended, and tell how long it took."""
        home, records = self.studio.home, self.studio.records
        shutil.rmtree(home.cache / "base-scores", ignore_errors=True)
        os.environ[LIMIT[self.device]] = str(at_once)
        options = {"request_id": None, "priority": 0, "parent": None}
        runs = [pipelines.submit(self.studio.check(spec), [], home, records, **options) for spec in wanted]
        began = time.monotonic()
        Dispatcher(home, limits=Limits(idle=0.0)).run()
        seconds = time.monotonic() - began
        told = [self.told(run) for run in runs]
        done = [one["phases"] for one in told if "phases" in one]
        medians = {phase: statistics.median(one[phase] for one in done) for phase in PHASES} if done else {}
        return {"at_once": at_once, "runs": len(runs), "seconds": seconds, "phases": medians, "told": told}

    def told(self, run: str) -> dict[str, Any]:
        """Scores, losses and seconds by phase of a run; its ``error`` where it is not done."""
        row = self.studio.run(run)
        if row["state"] != "done":
            print(f"{run} is {row['state']}: {row['job']['message']} {row['job']['hint']}", flush=True)
            return {"error": row["job"]["message"] or row["state"]}
        events = [json.loads(line) for line in self.studio.home.run(run).events.read_text("utf-8").splitlines()]
        job = self.studio.home.run(run).jobs / "train-1.json"
        marks = {"starting": job.stat().st_mtime, "share": read_json(job)["share"]}
        times = [datetime.fromisoformat(event["at"]).timestamp() for event in events]
        kinds = [event["kind"] for event in events]
        trained = times[kinds.index("started")]
        last = max(at for at, event in zip(times, events, strict=True) if event.get("phase") == "loading")
        phases = {"starting": trained - marks["starting"], "training": last - trained, "scoring": times[-1] - last}
        scores = {
            f"{event['task']}/{event['model']}/{event['metric']}": event["value"]
            for event in events
            if event["kind"] == "score"
        }
        losses = [event["values"]["loss"] for event in events if "loss" in event.get("values", {})]
        peak = next((event["peak"] for event in events if event["kind"] == "memory"), None)
        return {"phases": phases, "scores": scores, "losses": losses, "peak": peak, "share": marks["share"]}


def differences(part: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """The largest differences of scores and of losses, run by run."""
    score = loss = 0.0
    for one, two in zip(part["told"], other["told"], strict=True):
        if "error" in one or "error" in two:
            continue
        assert one["scores"].keys() == two["scores"].keys()
        score = max([score, *(abs(value - two["scores"][name]) for name, value in one["scores"].items())])
        loss = max([loss, *(abs(a - b) for a, b in zip(one["losses"], two["losses"], strict=True))])
    return {"score": score, "loss": loss}


def table(parts: Sequence[dict[str, Any]], title: str) -> str:
    """Parts against the one with the fewest jobs at once."""
    slowest = min(parts, key=lambda part: part["at_once"])
    lines = [
        f"{parts[0]['runs']} runs on {title}",
        "",
        "| at once | seconds | ratio | starting | training | scoring | peak GiB | score difference | loss difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for part in parts:
        apart = differences(part, slowest)
        peaks = [one["peak"] for one in part["told"] if one.get("peak")]
        failed = sum("error" in one for one in part["told"])
        cells = [f"{part['at_once']}" + (f" ({failed} failed)" if failed else "")]
        cells += [f"{part['seconds']:.1f}", f"{slowest['seconds'] / part['seconds']:.2f}"]
        cells += [f"{part['phases'].get(phase, 0.0):.1f}" for phase in PHASES]
        cells += [f"{max(peaks) / GIB:.2f}" if peaks else "", f"{apart['score']:.4f}", f"{apart['loss']:.1e}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=tuple(LIMIT), help="Default: a GPU where there is one.")
    parser.add_argument("--at-once", default="4,1", help="Limits of jobs at once, each a part.")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, help="Test rows of each task; default: all.")
    parser.add_argument("--train", default="{}", help="Further training settings, as JSON.")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    titles = {device.name.partition(":")[0]: device.title for device in list_devices()}
    device = given.device or next(iter(titles))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
        study = Study(Path(root), device)
        wanted = specs(given.runs, given.steps, given.rows, device, study.dataset, json.loads(given.train))
        warm = study.part(wanted[:1], 1)
        print(f"first run, not counted: {warm['seconds']:.1f} s", flush=True)
        parts: list[dict[str, Any]] = []
        with (given.out / "study.jsonl").open("w", encoding="utf-8") as file:
            for at_once in map(int, given.at_once.split(",")):
                parts.append(study.part(wanted, at_once))
                file.write(json.dumps(parts[-1]) + "\n")
                file.flush()
                print(f"{at_once} at once: {parts[-1]['seconds']:.1f} s", flush=True)
    text = table(parts, f"{titles[device]}, {os.cpu_count()} cores")
    (given.out / "study.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
