"""Small runs for tests: a toy data set, settings, and the points of a curve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.data.store import DatasetInfo, DatasetStore
from core.home import RunFolder, write_json
from core.schema import RunSpec

COLOURS = ("red", "green", "blue")
ROWS = {"train": 48, "validation": 8, "test": 8}
NOT_REPEATABLE = ("tokens_per_second", "memory_gib")
LORA = {"name": "lora", "options": {"rank": 4}}
MOSLD = {"name": "mosld", "options": {"rank": 4, "experts": 3, "dropout": 0.2}}


def colour(index: int) -> dict[str, Any]:
    output = COLOURS[index % 3]
    return {"instruction": "Say the colour.", "input": f"item {index}", "output": output, "choices": list(COLOURS)}


def count(index: int) -> dict[str, Any]:
    return {"instruction": "Say what comes next.", "input": f"{index}", "output": f"{index + 1} is next"}


def toy_store(root: Path, rows: Mapping[str, int] = ROWS) -> DatasetStore:
    """A store that holds ``toy``: the tasks colour (three labels) and count (free text of other lengths)."""
    store = DatasetStore(root)
    splits = {
        split: {"colour": [colour(i) for i in range(size)], "count": [count(i) for i in range(size)]}
        for split, size in rows.items()
    }
    store.add(DatasetInfo(name="toy"), splits)
    return store


def toy_spec(base: Path, method: Mapping[str, Any] = LORA, **train: Any) -> RunSpec:
    """Two tasks, a few steps, no scores of the base; ``train`` replaces training settings."""
    settings = {"steps": 12, "batch_size": 4, "learning_rate": 0.01, "log_every": 1, "routing_moments": 0}
    return RunSpec.parse(
        {
            "model": {"base": str(base)},
            "tasks": [{"dataset": "toy", "max_new_tokens": 4}],
            "method": dict(method),
            "train": settings | train,
            "evaluation": {"base": False},
            "device": "cpu",
        }
    )


def toy_job(folder: RunFolder, home: Path, spec: RunSpec, *, attempt: int = 1, resume: bool = False) -> Path:
    """Write the files that a worker reads; returns the job file."""
    folder.create()
    write_json(folder.spec, spec.model_dump(mode="json"))
    job = {
        "job": "train",
        "run": folder.root.name,
        "attempt": attempt,
        "kind": "train",
        "device": spec.device,
        "home": str(home),
        "folder": str(folder.root),
        "resume": resume,
        "arguments": {},
        "cancel": str(folder.jobs / "train.cancel"),
    }
    path = folder.jobs / "train.json"
    write_json(path, job)
    return path


def points(events: Iterable[Mapping[str, Any]]) -> dict[tuple[int, str], float]:
    """(step, name) -> value of the curves, without what depends on the machine's mood.

    An attempt that starts at a step voids the points of earlier ones past it.
    """
    found: dict[tuple[int, str], float] = {}
    for event in events:
        if event["kind"] == "started":
            found = {key: value for key, value in found.items() if key[0] <= event["step"]}
        if event["kind"] == "metrics":
            for name, value in event["values"].items():
                if name not in NOT_REPEATABLE:
                    assert (event["step"], name) not in found, f"{name} of step {event['step']} was said twice"
                    found[event["step"], name] = value
    return found


def curve(events: Iterable[Mapping[str, Any]], name: str = "loss") -> list[float]:
    return [value for (_, found), value in sorted(points(events).items()) if found == name]
