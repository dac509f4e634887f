"""The first stage of a run that joins experts: their adapters are read into the fresh mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.adapters.experts import fill_experts, read_expert
from core.home import RunFolder
from core.jobs.sinks import Sink
from core.pipelines import expert_folder
from core.schema import RunSpec

if TYPE_CHECKING:
    from peft import PeftModel


def place_experts(model: PeftModel, spec: RunSpec, folder: RunFolder, sink: Sink, trained: Sequence[str] = ()) -> None:
    """Fill the mixture with the experts that the method's options name, else with ``trained``; nothing without any."""
    named = list(spec.method.options.get("experts_from") or trained)
    if not named:
        return
    found = [expert_folder(name, folder.root.resolve().parent) for name in named]
    fill_experts(model, [read_expert(path, task) for path, task in found])
    sink.emit("log", level="info", message=f"Experts: {', '.join(named)}.")
