"""One training run from its settings to its scores."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from core.adapters.attach import attach, save
from core.data.batches import TaskDataset
from core.data.sampling import MixtureSampler
from core.data.store import DatasetStore
from core.data.tasks import Task, load_tasks
from core.data.templates import TextEncoder
from core.errors import ConfigurationError, DataError
from core.evaluation.run import score
from core.home import RunFolder
from core.jobs.sinks import Cancelled, Sink
from core.models import load_base, pick_device, resolve_base
from core.schema import RunSpec
from core.training import checkpoints
from core.training.loss import AnswerCollator
from core.training.plan import Plan, RunOrder
from core.training.probe import Probe
from core.training.routing import Routing
from core.training.settings import checkpoint_activations, fingerprint, training_arguments, versions
from core.training.trainer import TaskTrainer, read_state, restore_model

ADAPTER = "default"


def train(
    spec: RunSpec, folder: RunFolder, store: DatasetStore, sink: Sink, *, device: str = "auto", resume: bool = False
) -> None:
    """Train the run's adapter, record its routing, save it and score it and the base.

    With ``resume`` the newest whole checkpoint is continued; its loss curve is the one that was interrupted. Emits
    every event but finished, cancelled and failed. Raises StudioError for what the user can mend and Cancelled, after
    a checkpoint, when the sink asks to stop.
    """
    folder.create()
    device = pick_device(device)
    models = ("adapter", "base") if spec.evaluation.base else ("adapter",)
    if spec.method.name == "base":
        models = ("base",)
        sink.emit("started", step=0, device=device, versions=versions(), trainable=0, total=0)
    else:
        _train(spec, folder, store, sink, device, resume)
        _free(device)
    if sink.cancelled():
        raise Cancelled(_last_step(folder))
    score(spec, folder, store, sink, tasks=None, split=spec.evaluation.split, models=models, device=device)


def _train(spec: RunSpec, folder: RunFolder, store: DatasetStore, sink: Sink, device: str, resume: bool) -> None:
    tasks = load_tasks(store, spec.tasks, spec.seed)
    _check_rows(spec, tasks)
    checkpoint = _checkpoint(spec, folder, sink) if resume else None
    if checkpoint is None:
        checkpoints.prune(folder.checkpoints, kept=1, after=-1)
    source = resolve_base(spec.model)
    encoder = TextEncoder(source)
    model = attach(
        load_base(spec.model, device, folder=source),
        spec.method,
        tasks=[task.name for task in tasks],
        name=ADAPTER,
        seed=spec.seed,
    )
    trainer = _trainer(spec, folder, sink, device, model, tasks, encoder)
    trainable, total = model.get_nb_trainable_parameters()
    step = 0 if checkpoint is None else checkpoints.step_of(checkpoint)
    sink.emit("started", step=step, device=device, versions=versions(), trainable=trainable, total=total)
    _run(trainer, checkpoint)
    if trainer.interrupted:
        raise Cancelled(trainer.state.global_step)
    kept = _keep_best(trainer, sink)
    _save(model, folder.adapter)
    _final_routing(spec, trainer, tasks, encoder, kept)


def _trainer(
    spec: RunSpec,
    folder: RunFolder,
    sink: Sink,
    device: str,
    model: nn.Module,
    tasks: Sequence[Task],
    encoder: TextEncoder,
) -> TaskTrainer:
    settings, names = spec.train, [task.name for task in tasks]
    length = _length(spec, model, sink)
    dataset = TaskDataset(tasks, encoder, "train", length)
    mixture = MixtureSampler(dataset.sizes, settings.sampling, settings.temperature, spec.seed)
    plan = Plan.of(settings, len(mixture))
    bf16 = device.startswith("cuda") and model.get_base_model().dtype == torch.bfloat16
    arguments = training_arguments(spec, plan, folder.checkpoints, device, bf16)
    if settings.activation_checkpointing:
        checkpoint_activations(model)
    return TaskTrainer(
        model,
        arguments,
        plan=plan,
        order=RunOrder(mixture, plan.samples),
        dataset=dataset,
        collator=AnswerCollator(encoder.pad_id),
        tasks=names,
        sink=sink,
        probe=_probe(spec, tasks, encoder, length, sink),
        routing=Routing(model, names, folder, sink),
        checkpoint_root=folder.checkpoints,
        checkpoints_kept=settings.checkpoints_kept,
        checkpoint_facts={"settings": fingerprint(spec)},
        patience=settings.early_stopping,
    )


def _run(trainer: TaskTrainer, checkpoint: Path | None) -> None:
    """Train what is left to train."""
    if checkpoint is not None:
        best = checkpoint / "best.safetensors"
        facts = read_state(checkpoint)["standing"]
        trainer.standing.restore(facts, checkpoints.load_tensors(best) if best.is_file() else {})
        if trainer.standing.done:  # only saving and scoring were left
            restore_model(trainer.model, checkpoint)
            trainer.state.global_step = checkpoints.step_of(checkpoint)
            return
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _keep_best(trainer: TaskTrainer, sink: Sink) -> int:
    """Put the best tensors back into the model where early stopping kept them; returns their step."""
    standing = trainer.standing
    if not standing.tensors:
        return trainer.state.global_step
    checkpoints.restore_adapter(trainer.model, standing.tensors)
    message = (
        f"Kept the adapter of step {standing.best_step}, which has the best validation loss ({standing.best:.4f})."
    )
    sink.emit("log", level="info", message=message)
    return standing.best_step


def _final_routing(spec: RunSpec, trainer: TaskTrainer, tasks: Sequence[Task], encoder: TextEncoder, step: int) -> None:
    """Routing of the adapter that is saved, on rows of the split that is scored, answers given."""
    probe = Probe(
        tasks,
        encoder,
        spec.evaluation.split,
        rows=spec.train.validation_rows,
        batch_size=spec.evaluation.batch_size,
        max_length=spec.train.max_length,
    )
    if not probe:
        return
    with trainer.routing.recording() as recorder:
        probe.losses(trainer.model, trainer.args.device, recorder)
    trainer.routing.publish(recorder, step, "end", probe.split)


def _probe(spec: RunSpec, tasks: Sequence[Task], encoder: TextEncoder, length: int, sink: Sink) -> Probe:
    """The validation probe; without any validation rows, training rows on which routing alone is watched."""

    def of(split: str) -> Probe:
        rows, size = spec.train.validation_rows, spec.evaluation.batch_size
        return Probe(tasks, encoder, split, rows=rows, batch_size=size, max_length=length)

    probe = of("validation")
    if probe.missing:
        message = f"No validation rows: {', '.join(probe.missing)}. Validation leaves these tasks out."
        sink.emit("log", level="warning", message=message)
    return probe or of("train")


def _check_rows(spec: RunSpec, tasks: Sequence[Task]) -> None:
    for task in tasks:
        if not task.size("train"):
            raise DataError(
                f"The task {task.name} of the data set {task.spec.dataset} has no training rows.",
                "Upload rows for the split train, or take the task out of the run.",
            )
    if spec.train.early_stopping and not any(task.size("validation") for task in tasks):
        raise ConfigurationError(
            "Early stopping needs validation rows, and no task has any.",
            "Upload a validation split, or leave train.early_stopping empty.",
        )


def _length(spec: RunSpec, model: nn.Module, sink: Sink) -> int:
    """Tokens per sample: the setting, or fewer where the base has fewer positions."""
    limit = getattr(model.get_base_model().config, "max_position_embeddings", None) or spec.train.max_length
    if limit < spec.train.max_length:
        message = f"train.max_length is {spec.train.max_length}, but the base has {limit} positions: using {limit}."
        sink.emit("log", level="warning", message=message)
    return min(limit, spec.train.max_length)


def _checkpoint(spec: RunSpec, folder: RunFolder, sink: Sink) -> Path | None:
    """The newest whole checkpoint of these settings; says which ones are passed over."""
    for path, defect in checkpoints.newest(folder.checkpoints):
        if defect:
            message = f"The checkpoint {path.name} cannot be used ({defect}); going back to the one before."
            sink.emit("log", level="warning", message=message)
        elif checkpoints.facts(path)["settings"] != fingerprint(spec):
            raise ConfigurationError(
                f"The checkpoint {path.name} was made with other settings than spec.json has now.",
                "Undo the change, or clone the run and start the clone.",
            )
        else:
            return path
    return None


def _save(model: nn.Module, target: Path) -> None:
    """Replace the adapter folder as a whole, so that no half-written adapter is ever found there."""
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".adapter-"))
    try:
        save(model, temporary, name=ADAPTER)
        temporary.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _last_step(folder: RunFolder) -> int:
    steps = checkpoints.found(folder.checkpoints)
    return steps[-1][0] if steps else 0


def _free(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
