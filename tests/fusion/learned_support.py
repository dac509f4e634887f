"""Settings of learned fusions on a tiny base, and a toy model whose entropies can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from core.data.tasks import Task, load_tasks
from core.data.templates import TextEncoder
from core.fusion.delta import Delta, TaskVector
from core.fusion.methods import fusion_method, options_of
from core.fusion.setting import Fused, Setting
from core.home import RunFolder
from core.jobs.sinks import ListSink
from core.models import load_base, resolve_base
from core.schema import MethodSpec, ModelSpec, RunSpec, TaskSpec
from tests.support.training import toy_store

PROJECTIONS = ("q_proj", "v_proj", "down_proj")


def base_folder(tmp: Path) -> Path:
    from tests.support.tiny import tiny_base

    folder = tmp / "base"
    return folder if folder.is_dir() else tiny_base(folder)


def vectors_for(base: Path, ranks: Sequence[int] = (2, 3), scale: float = 0.3, seed: int = 1) -> list[TaskVector]:
    """Random low-rank updates of some projections; the last run leaves one of them out."""
    chance = torch.Generator().manual_seed(seed)
    shapes = {
        name: tuple(module.weight.shape)
        for name, module in load_base(ModelSpec(base=str(base)), "cpu").named_modules()
        if name.endswith(PROJECTIONS)
    }
    vectors = []
    for number, rank in enumerate(ranks, 1):
        deltas = {
            path: Delta(
                torch.randn(rows, rank, generator=chance) * scale, torch.randn(rank, columns, generator=chance) * scale
            )
            for path, (rows, columns) in shapes.items()
        }
        vectors.append(TaskVector(f"run-{number}", deltas))
    vectors[-1].deltas.pop(next(iter(shapes)))
    return vectors


def setting_for(
    tmp: Path, method: str, *, tasks: Sequence[str] = ("colour",), resume: bool = False, seed: int = 0, **options: Any
) -> Setting:
    base = base_folder(tmp)
    store = toy_store(tmp / f"data-{len(list(tmp.glob('data-*')))}")
    spec = RunSpec(
        model=ModelSpec(base=str(base)),
        method=MethodSpec(name=method, options=options),
        tasks=[TaskSpec(dataset="toy", task=task, max_new_tokens=6) for task in tasks],
        seed=seed,
        device="cpu",
    )
    return Setting(
        spec,
        RunFolder(tmp / "run").create(),
        ListSink(),
        vectors_for(base),
        load_tasks(store, spec.tasks, seed),
        TextEncoder(resolve_base(spec.model)),
        "cpu",
        resume,
    )


def fuse(setting: Setting) -> Fused:
    return fusion_method(setting.spec.method.name).apply(setting, options_of(setting.spec.method))


def same(a: Fused, b: Fused) -> bool:
    """Bit for bit."""
    return a.deltas.keys() == b.deltas.keys() and all(
        torch.equal(delta.dense(), b.deltas[path].dense()) for path, delta in a.deltas.items()
    )


class Unlabelled:
    """A task whose rows have lost the keys of their answers."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def rows(self, split: str) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k not in ("output", "references")} for row in self._task.rows(split)]


def stopping(setting: Setting, after: int) -> Setting:
    """The job is asked to stop once it has said how step ``after`` or a later one stands."""
    sink = setting.sink
    sink.cancelled = lambda: any(event["step"] >= after for event in sink.of("metrics"))
    return setting


def resumed(setting: Setting) -> Setting:
    again = replace(setting, sink=ListSink(), resume=True)
    again.__dict__.pop("candidate", None)
    return again


class ToyModel(nn.Module):
    """Logits ``W x`` of the last token's vector ``x``; the ids 0 to 3 are (1, 0), (-1, 0), (0, 1), (0, -1)."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))
        self.w = nn.Linear(2, 2, bias=False)
        nn.init.zeros_(self.w.weight)
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=2))

    @property
    def device(self) -> torch.device:
        return self.table.weight.device

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.w(self.table(input_ids))[:, -logits_to_keep:])


TOY_VECTORS = [
    TaskVector("run-1", {"w": Delta(torch.tensor([[2.0, 0], [-2, 0]]))}),
    TaskVector("run-2", {"w": Delta(torch.tensor([[0.0, 2], [0, -2]]))}),
]
