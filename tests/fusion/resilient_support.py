"""A tiny base, three small tasks, and task vectors that were trained on them: what resilient fusion is tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.data.kinds import TaskInfo
from core.data.store import DatasetInfo, DatasetStore
from core.data.tasks import load_tasks
from core.data.templates import TextEncoder
from core.fusion.candidate import Candidate
from core.fusion.delta import Delta, TaskVector
from core.fusion.methods import fusion_method, options_of
from core.fusion.resilient.realign import Recipe, Shots, draw_shots, realign
from core.fusion.setting import Fused, Setting
from core.home import RunFolder
from core.jobs.sinks import ListSink
from core.models import load_base
from core.schema import RunSpec

TASKS = ("mood", "colour", "next")
WORDS = {  # each ends in a letter of its own, which is what so small a model learns soon
    "mood": {"joy": "yes", "fun": "yes", "ill": "no", "bad": "no"},
    "colour": {"one": "red", "two": "green", "six": "blue"},
    "next": {"ant": "pig", "pig": "cub", "cub": "ant"},
}
ROWS = {"train": 48, "test": 24}
EMBEDDING = "model.embed_tokens"


def _row(task: str, index: int, split: str) -> dict[str, Any]:
    words = WORDS[task]
    word = list(words)[index % len(words)]
    row = {"instruction": f"{task}:", "input": f"{split} {index} {word}", "output": words[word]}
    return row if task == "next" else row | {"choices": sorted(set(words.values()))}


def small_store(root: Path) -> DatasetStore:
    """mood and colour have options, next is free text; each is told by one word of its input."""
    store = DatasetStore(root)
    splits = {split: {task: [_row(task, i, split) for i in range(n)] for task in TASKS} for split, n in ROWS.items()}
    store.add(
        DatasetInfo(
            name="small",
            tasks={"next": TaskInfo(name="next", kind="generation", metric="exact_match", metrics=["exact_match"])},
        ),
        splits,
    )
    return store


def small_spec(base: Path, *, seed: int = 0, **options: Any) -> RunSpec:
    return RunSpec.parse(
        {
            "model": {"base": str(base)},
            "sources": list(TASKS),
            "tasks": [
                {"dataset": "small", "task": task, "max_new_tokens": 3, "template": {"style": "plain"}}
                for task in TASKS
            ],
            "method": {"name": "r_mtllmf", "options": options},
            "train": {"max_length": 96},
            "seed": seed,
            "device": "cpu",
        }
    )


def setting(
    base: Path, store: DatasetStore, vectors: list[TaskVector], folder: Path, *, resume: bool = False, **options: Any
) -> Setting:
    """A fusion job of these vectors; ``options`` are the method's, ``seed`` is the run's."""
    spec = small_spec(base, **options)
    return Setting(
        spec,
        RunFolder(folder).create(),
        ListSink(),
        vectors,
        load_tasks(store, spec.tasks, spec.seed),
        TextEncoder(base),
        "cpu",
        resume,
    )


def fuse(given: Setting) -> Fused:
    return fusion_method("r_mtllmf").fuse(given, options_of(given.spec.method))


def messages(given: Setting) -> list[str]:
    return [event["message"] for event in given.sink.of("log")]


def sweep_table(given: Setting) -> list[dict[str, Any]]:
    """The last whole table of the sweep, a mapping a row."""
    event = [event for event in given.sink.of("table") if event["name"] == "sweep"][-1]
    return [dict(zip(event["columns"], row, strict=True)) for row in event["rows"]]


def trained_vectors(
    base: Path,
    store: DatasetStore,
    *,
    steps: int = 80,
    rate: float = 1e-2,
    among: tuple[str, ...] = (),
    batch: int = 16,
) -> list[TaskVector]:
    """An adapter of rank 4 for each task, trained on its rows; ``among``: the projections, empty for all."""
    spec = small_spec(base)
    model = load_base(spec.model, "cpu")
    linears = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and "layers" in name]
    paths = [path for path in linears if not among or path.endswith(among)]
    shapes = {path: tuple(model.get_submodule(path).weight.shape) for path in paths}
    candidate, encoder, found = Candidate(model, paths), TextEncoder(base), []
    for task in load_tasks(store, spec.tasks, 0):
        shots = draw_shots([task], encoder, shots=48, seed=0, split="test", max_length=96)
        nothing = {
            path: Delta(torch.zeros(rows, 1), torch.zeros(1, columns)) for path, (rows, columns) in shapes.items()
        }
        shots = Shots(shots.all, [[]])  # nothing is held out: it goes through all steps
        recipe = Recipe("adapter", rank=4, steps=steps, batch_size=batch, learning_rate=rate)
        done = realign(candidate, nothing, shots, recipe, frozen=frozenset(), pad_id=encoder.pad_id, seed=task.index)
        deltas = {path: Delta(delta.up[:, 1:], delta.down[1:]) for path, delta in done.deltas.items()}
        found.append(TaskVector(task.name, deltas, (task.name,)))
    return found


def random_vectors(
    names: tuple[str, ...] = ("a", "b", "c"), *, rank: int = 3, low_rank: bool = True, embedding: bool = False
) -> list[TaskVector]:
    """Vectors of different power for two blocks of width 16, and of a table of 30 tokens where asked for."""
    chance = torch.Generator().manual_seed(5)
    found = []
    for k, name in enumerate(names, 1):
        deltas = {}
        for block in range(2):
            for part, (rows, columns) in {"self_attn.q_proj": (16, 16), "mlp.up_proj": (40, 16)}.items():
                factors = Delta(
                    torch.randn(rows, rank, generator=chance) * k, torch.randn(rank, columns, generator=chance) * 0.1
                )
                deltas[f"model.layers.{block}.{part}"] = factors if low_rank else Delta(factors.dense())
        if embedding:
            deltas[EMBEDDING] = Delta(torch.randn(16, 30, generator=chance) * 0.3)
        found.append(TaskVector(name, deltas))
    return found


def entries(vectors: list[TaskVector]) -> int:
    return sum(int(np.prod(delta.shape)) for vector in vectors for delta in vector.deltas.values())
