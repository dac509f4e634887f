"""One fusion from finished runs to the scores of the fused model."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import torch

from core.adapters.folders import CONFIG
from core.data.store import DatasetStore
from core.data.tasks import load_tasks
from core.data.templates import TextEncoder
from core.evaluation.run import score
from core.fusion.methods import fusion_method, options_of
from core.fusion.read import Source, read_vectors
from core.fusion.save import save
from core.fusion.setting import Setting
from core.fusion_plan import check_source, find_source
from core.home import RunFolder
from core.jobs.sinks import Cancelled, Sink
from core.models import download_progress, pick_device, resolve_base
from core.schema import RunSpec
from core.training import checkpoints
from core.training.settings import versions

LOSSY = 0.01  # of an update's norm, from which on what saving lost is said


def fuse(
    spec: RunSpec,
    folder: RunFolder,
    store: DatasetStore,
    sink: Sink,
    *,
    runs: Path,
    device: str = "auto",
    resume: bool = False,
) -> int:
    """Fuse the runs that ``spec.sources`` names into the run's adapter and score it; returns the last step.

    ``runs`` is the folder that holds the run folders of a home.

    With ``resume`` a method that learns goes on from its newest checkpoint, and one that had finished is only scored.
    Emits every event but finished, cancelled and failed. Raises StudioError for what the user can mend and Cancelled
    when the sink asks to stop.
    """
    folder.create()
    device, step = pick_device(device), 0
    resolve_base(spec.model, progress=download_progress(sink))
    if not (resume and (folder.adapter / CONFIG).is_file()):
        step = _fuse(spec, folder, store, sink, _sources(spec, runs), device, resume)
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    if sink.cancelled():
        raise Cancelled(step)
    if not any(task.size(spec.evaluation.split) for task in load_tasks(store, spec.tasks, spec.seed)):
        sink.emit("log", level="warning", message=f"No task has {spec.evaluation.split} rows: nothing is scored.")
        return step
    models = ("adapter", "base") if spec.evaluation.base else ("adapter",)
    score(spec, folder, store, sink, models=models, device=device)
    return step


def _fuse(
    spec: RunSpec,
    folder: RunFolder,
    store: DatasetStore,
    sink: Sink,
    sources: Sequence[Source],
    device: str,
    resume: bool,
) -> int:
    method, options = fusion_method(spec.method.name), options_of(spec.method)
    step = _resumed_step(folder) if resume else 0
    checkpoints.prune(folder.checkpoints, 2, after=step)
    sink.emit("started", step=step, device=device, versions=versions(), trainable=0)
    sink.emit("progress", step=0, total=0, phase="loading", seconds_left=None)
    setting = Setting(
        spec=spec,
        folder=folder,
        sink=sink,
        vectors=read_vectors(sources, spec.model),
        tasks=load_tasks(store, spec.tasks, spec.seed),
        encoder=TextEncoder(resolve_base(spec.model)),
        device=device,
        resume=resume,
    )
    fused = method.apply(setting, options)
    rows = save(fused, setting, options)
    lossy = max(rows, key=lambda row: row.relative_error)
    if lossy.relative_error > LOSSY:
        message = f"The truncated SVD lost up to {lossy.relative_error:.1%} of an update's norm ({lossy.path})."
        sink.emit("log", level="warning", message=message)
    return fused.step


def _sources(spec: RunSpec, runs: Path) -> Sequence[Source]:
    found = [find_source(name, runs) for name in spec.sources]
    for source in found:
        check_source(source, spec.model)
    return [Source(source.name, source.adapter, source.task, source.routing) for source in found]


def _resumed_step(folder: RunFolder) -> int:
    whole = (path for path, defect in checkpoints.newest(folder.checkpoints) if not defect)
    found = next(whole, None)
    return 0 if found is None else checkpoints.step_of(found)
