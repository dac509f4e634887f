"""One training run from its settings to its scores."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from core import room
from core.adapters.attach import attach, save
from core.data.batches import TaskDataset
from core.data.sampling import MixtureSampler
from core.data.store import DatasetStore
from core.data.tasks import Task, load_tasks
from core.data.templates import TextEncoder
from core.errors import AlarmError, ConfigurationError, DataError
from core.evaluation.run import score
from core.home import RunFolder
from core.jobs.sinks import Cancelled, Sink
from core.models import download_progress, load_base, pick_device, resolve_base
from core.schema import RunSpec, TrainSpec
from core.training import checkpoints
from core.training.alarms import Alarms
from core.training.checkpoints import ADAPTER
from core.training.compiling import Compiling
from core.training.experts import experts_of
from core.training.loss import STEP, AnswerCollator
from core.training.packing import obstacle
from core.training.plan import LengthOrder, Plan, RunOrder
from core.training.prepare import Setting, prepare
from core.training.probe import Probe
from core.training.routing import Routing
from core.training.settings import checkpoint_activations, fingerprint, training_arguments, versions
from core.training.trainer import TaskTrainer, read_state, restore_model

FEW = 4  # a run that sees less than one row in so many encodes those alone


def train(
    spec: RunSpec,
    folder: RunFolder,
    store: DatasetStore,
    sink: Sink,
    *,
    device: str = "auto",
    resume: bool = False,
    experts: Sequence[str] = (),
) -> int:
    """Train the run's adapter, record its routing, save it and score it and the base; returns the last step.

    With ``resume`` the newest whole checkpoint is continued; the loss curve goes on as if nothing had happened.
    ``experts`` are runs or adapter folders that were trained first, one for each task, for methods that join them.
    Emits every event but finished, cancelled and failed. Raises StudioError for what the user can mend and Cancelled,
    after a checkpoint, when the sink asks to stop.
    """
    folder.create()
    device = pick_device(device)
    models, step = ("adapter", "base") if spec.evaluation.base else ("adapter",), 0
    if spec.method.name == "base":
        models = ("base",)
        sink.emit("started", step=0, device=device, versions=versions(), trainable=0)
    else:
        step = train_adapter(spec, folder, store, sink, device=device, resume=resume, experts=experts)
        _free_memory(device)
    if sink.cancelled():
        raise Cancelled(step)
    score(spec, folder, store, sink, tasks=None, split=spec.evaluation.split, models=models, device=device)
    return step


def train_adapter(
    spec: RunSpec,
    folder: RunFolder,
    store: DatasetStore,
    sink: Sink,
    *,
    device: str,
    resume: bool,
    experts: Sequence[str] = (),
) -> int:
    """Train, save the adapter and record its routing, without scoring; returns the last step."""
    tasks = load_tasks(store, spec.tasks, spec.seed)
    _check_rows(spec, tasks)
    source = resolve_base(spec.model, progress=download_progress(sink))
    checkpoint = _checkpoint(spec, folder, sink) if resume else None
    step = 0 if checkpoint is None else checkpoints.step_of(checkpoint)
    spared = None if checkpoint is None else read_state(checkpoint).get("alarms", {}).get("kept")
    checkpoints.prune(folder.checkpoints, spec.train.checkpoints_kept, after=step, spared=spared)
    base = load_base(spec.model, device, folder=source)
    length = _length(spec, base, sink)
    model = attach(base, spec.method, tasks=[task.name for task in tasks], name=ADAPTER, seed=spec.seed)
    rows = Rows(spec, tasks, TextEncoder(source), length)
    dataset = TaskDataset(tasks, rows.encoder, "train", length)
    if Plan.of(spec.train, len(dataset)).samples >= len(dataset) / FEW:
        dataset.keep()
    setting = Setting(
        model,
        dataset,
        sink,
        seed=spec.seed,
        batch_size=spec.evaluation.batch_size,
        pad_id=rows.encoder.pad_id,
        checkpoint=checkpoint,
        experts=() if checkpoint else experts_of(spec, folder, experts),
    )
    prepare(setting)
    trainer = _trainer(rows, dataset, model, folder, sink, device)
    trainable, total = model.get_nb_trainable_parameters()
    room.require(trainable, spec.train, folder.root)
    sink.emit("started", step=step, device=device, versions=versions(), trainable=trainable, total=total)
    last = _steps(trainer, checkpoint)
    if trainer.interrupted:
        raise Cancelled(last)
    if trainer.stopped_by is not None:
        raise AlarmError(
            f"Stopped at step {last} by the alarm {trainer.stopped_by.name}: {trainer.stopped_by.message}",
            f"Look at the curves and the routing. Resume it, and it goes on from step {last} past this alarm; or clone "
            "it with a lower train.learning_rate or longer train.warmup.",
        )
    kept = _keep_best(trainer, last, sink)
    _save(model, folder.adapter)
    _final_routing(rows, trainer, kept)
    return last


@dataclass(frozen=True)
class Rows:
    """The data of a run as its base reads it."""

    spec: RunSpec
    tasks: list[Task]
    encoder: TextEncoder
    length: int  # tokens per sample at most

    @property
    def names(self) -> list[str]:
        return [task.name for task in self.tasks]

    def probe(self, split: str) -> Probe:
        train, size = self.spec.train, self.spec.evaluation.batch_size
        rows = train.validation_rows
        return Probe(self.tasks, self.encoder, split, rows=rows, batch_size=size, max_length=self.length)

    def validation(self, sink: Sink) -> Probe:
        """The validation probe; where no task has such rows, training rows on which routing alone is watched."""
        probe = self.probe("validation")
        if probe.missing:
            message = f"No validation rows: {', '.join(probe.missing)}. The validation loss leaves these tasks out."
            sink.emit("log", level="warning", message=message)
        return probe or self.probe("train")


def _trainer(
    rows: Rows, dataset: TaskDataset, model: nn.Module, folder: RunFolder, sink: Sink, device: str
) -> TaskTrainer:
    spec, settings = rows.spec, rows.spec.train
    mixture = MixtureSampler(dataset.sizes, settings.sampling, settings.temperature, spec.seed)
    routing = Routing(model, rows.names, folder, sink)
    plan = Plan.of(settings, len(mixture))
    if not routing.gated:
        plan = replace(plan, moments=frozenset())
    bf16 = device.startswith("cuda") and model.get_base_model().dtype == torch.bfloat16
    packing = settings.packing and _packs(model, rows.length, sink)
    if settings.activation_checkpointing:
        checkpoint_activations(model)
    compiling = Compiling.of(settings, device, model, dataset, plan.total)
    compiling.prepare(model, sink)
    return TaskTrainer(
        model,
        training_arguments(spec, plan, folder.checkpoints, device, bf16, dataset.kept),
        plan=plan,
        order=_order(settings, mixture, plan, dataset, packing),
        dataset=dataset,
        collator=AnswerCollator(rows.encoder.pad_id, packing, STEP if compiling.graphs else 1),
        tasks=rows.names,
        sink=sink,
        probe=rows.validation(sink),
        routing=routing,
        checkpoint_root=folder.checkpoints,
        checkpoints_kept=settings.checkpoints_kept,
        checkpoint_facts={"settings": fingerprint(spec)},
        patience=settings.early_stopping,
        alarms=Alarms(_vocabulary(model), settings.max_grad_norm),
        stop_at_alarms=settings.on_alarm == "stop",
        graphs=compiling.graphs,
    )


def _vocabulary(model: nn.Module) -> int:
    head = model.get_output_embeddings()
    return getattr(head, "out_features", None) or getattr(model.config, "vocab_size", None) or 2**16


def _order(settings: TrainSpec, mixture: MixtureSampler, plan: Plan, dataset: TaskDataset, packing: bool) -> RunOrder:
    if settings.group_by_length and not packing:
        return LengthOrder(mixture, plan.samples, dataset.lengths, settings.batch_size)
    return RunOrder(mixture, plan.samples)


def _packs(model: nn.Module, length: int, sink: Sink) -> bool:
    """Whether samples can be packed; says why not."""
    if reason := obstacle(model, length):
        message = f"Samples are padded, not packed (train.packing): {reason}."
        sink.emit("log", level="info", message=message)
    return not reason


def _steps(trainer: TaskTrainer, checkpoint: Path | None) -> int:
    """Do the steps that are left; returns the last step."""
    if checkpoint is None:
        trainer.train()
        return trainer.state.global_step
    best = checkpoint / "best.safetensors"
    facts = read_state(checkpoint)["standing"]
    trainer.standing.restore(facts, checkpoints.load_tensors(best) if best.is_file() else {})
    if trainer.standing.done:  # only saving and scoring were left
        restore_model(trainer.model, checkpoint)
        return checkpoints.step_of(checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer.state.global_step


def _keep_best(trainer: TaskTrainer, last: int, sink: Sink) -> int:
    """With early stopping, put the tensors of the best validation back into the model; returns their step."""
    standing = trainer.standing
    if not standing.tensors:
        return last
    checkpoints.restore_adapter(trainer.model, standing.tensors)
    message = f"Kept the adapter of step {standing.best_step}: it has the best validation loss, {standing.best:.4f}."
    sink.emit("log", level="info", message=message)
    return standing.best_step


def _final_routing(rows: Rows, trainer: TaskTrainer, step: int) -> None:
    """Routing of the saved adapter on rows of the split that is scored, with their true answers."""
    if not trainer.routing.gated:
        return
    probe = rows.probe(rows.spec.evaluation.split)
    if not probe:
        return
    with trainer.routing.recording() as recorder:
        probe.losses(trainer.model, trainer.args.device, recorder)
    trainer.routing.publish(recorder, step, "end", probe.split)


def _check_rows(spec: RunSpec, tasks: list[Task]) -> None:
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


def _length(spec: RunSpec, base: nn.Module, sink: Sink) -> int:
    """Tokens per sample: the setting, or fewer where the base has fewer positions."""
    limit = getattr(base.config, "max_position_embeddings", None) or spec.train.max_length
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


def _free_memory(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
