"""The first stage of a run that joins experts: their adapters are read into the fresh mixture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.adapters.experts import fill_experts, read_expert
from core.home import RunFolder
from core.pipelines import expert_folder
from core.schema import RunSpec

if TYPE_CHECKING:
    from core.training.prepare import Setting


def experts_of(spec: RunSpec, folder: RunFolder, trained: Sequence[str]) -> list[tuple[str, Path, str | None]]:
    """The experts that the method's options name, else those ``trained`` first: name, folder, and the task in it."""
    named = spec.method.options.get("experts_from") or trained
    return [(name, *expert_folder(name, folder.root.resolve().parent)) for name in named]


def place_experts(setting: Setting) -> None:
    """Fill the mixture of a run that starts; nothing where no experts are given."""
    if not setting.experts:
        return
    fill_experts(setting.model, [read_expert(path, task) for _, path, task in setting.experts], setting.adapter)
    named = ", ".join(name for name, _, _ in setting.experts)
    setting.sink.emit("log", level="info", message=f"Experts: {named}.")
