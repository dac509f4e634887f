"""transformers' Trainer with task-aware losses, a fixed plan, events instead of logs and checkpoints of its own."""

from __future__ import annotations

import math
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from core.errors import ConfigurationError
from core.jobs.sinks import Sink
from core.training import checkpoints
from core.training.alarms import Alarm, Alarms
from core.training.clock import Clock
from core.training.graphs import StepGraphs
from core.training.loss import RAGGED, AnswerHead, Window
from core.training.plan import Plan, RunOrder
from core.training.probe import Probe
from core.training.routing import Routing
from core.units import GIB, KIB


@dataclass
class Standing:
    """How the validation loss stands; part of every checkpoint."""

    patience: int | None  # validations without gain before stopping; None: never stop early
    best: float = math.inf
    best_step: int = 0
    waited: int = 0
    done: bool = False  # no step is left to train
    tensors: dict[str, Tensor] = field(default_factory=dict)  # the adapter at ``best_step``, kept for early stopping

    def facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best", "best_step", "waited", "done")}

    def restore(self, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for name, value in facts.items():
            setattr(self, name, value)
        self.tensors = tensors


class TaskTrainer(Trainer):
    """Trains one adapter by a plan; everything it has to say goes to ``sink``."""

    loss_is_scaled_for_ga = True  # answer tokens of all micro-batches divide the loss, see compute_loss

    def __init__(
        self,
        model: torch.nn.Module,
        arguments: TrainingArguments,
        *,
        plan: Plan,
        order: RunOrder,
        dataset: torch.utils.data.Dataset,
        collator: Any,
        tasks: list[str],
        sink: Sink,
        probe: Probe,
        routing: Routing,
        checkpoint_root: Path,
        checkpoints_kept: int,
        checkpoint_facts: dict[str, Any],
        patience: int | None,
        alarms: Alarms,
        stop_at_alarms: bool = False,
        graphs: int = 0,
    ) -> None:
        self.plan, self.order, self.sink, self.probe, self.routing = plan, order, sink, probe, routing
        self.root, self.kept, self.facts = checkpoint_root, checkpoints_kept, checkpoint_facts
        self.standing = Standing(patience)
        self.interrupted = False
        self.alarms, self.stop_at_alarms = alarms, stop_at_alarms
        self.stopped_by: Alarm | None = None
        super().__init__(model, arguments, data_collator=collator, train_dataset=dataset, callbacks=[Rhythm(self)])
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # says the same to earlier transformers
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.zero_grad = partial(_forget, self.trained)
        self.head = AnswerHead(model)
        self.steps = StepGraphs(self._work, self.trained, ragged=RAGGED, most=graphs, told=self._tell_no_graphs)
        self.window = Window(tasks, self.args.device)
        self.clock = Clock(sink, plan.total)

    def _tell_no_graphs(self, reason: str) -> None:
        message = f"CUDA graphs are off for further shapes of batches, which makes steps slower: {reason}"
        self.sink.emit("log", level="warning", message=message)

    def _get_train_sampler(self, train_dataset: Any = None) -> RunOrder:
        return self.order

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, int]:
        """The micro-batches of one step and the number of answer tokens in them."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        return batches, sum(len(batch["targets"]) for batch in batches)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Summed answer loss over the answer tokens of the whole step, plus this micro-batch's share of the mean
        auxiliary loss, and their gradients.

        Trainer's own walks over all modules of the base first: only a validation leaves training mode here, and comes
        back to it.
        """
        if not model.training:
            model.train()
        inputs = self._prepare_inputs(inputs)
        whole = {
            "answer_tokens": torch.full((), float(num_items_in_batch), device=self.args.device),
            "share": torch.full((), 1 / self.current_gradient_accumulation_steps, device=self.args.device),
        }
        found = self.steps(inputs | whole, settled=self.state.global_step >= self.routing.settled)
        losses, loss = found.pop("losses")[: len(inputs["targets"])], found.pop("loss")
        self.window.add(losses, inputs, found)
        return loss

    def _work(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro-batch; its parts by name and, as ``losses``, that of each answer token."""
        with self.compute_loss_context_manager():
            losses = self.head.losses(batch) * batch["counts"]
            auxiliary = self.routing.auxiliary_losses(self.state.global_step)
            loss = losses.sum() / batch["answer_tokens"]
            if auxiliary:
                loss = loss + torch.stack(list(auxiliary.values())).sum() * batch["share"]
        return loss, {"losses": losses, "loss": loss, **auxiliary}

    def _clip_grad_norm(self, model: Any) -> Tensor:
        """Over what is trained: Trainer's asks every parameter of the base."""
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.args.max_grad_norm)
        self.window.norm = torch.maximum(self.window.norm, norm.detach().to(self.window.norm.dtype))
        return norm

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # nothing reads them, and counting walks over all parameters at every step

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One point of the curves; Trainer's summary at the end has no gradient norm and is left out."""
        self.control.should_log = False
        if "grad_norm" not in logs:
            return
        self.window.seconds += self.clock.lap()  # Trainer has read the gradient norm: the device has caught up
        values, norm = self.window.values(), self.window.norm.item()
        if not math.isfinite(total := values["loss"] + values.get("auxiliary_loss", 0.0)):
            self.stop_as_diverged("training loss", total)
        if not math.isfinite(norm):
            self.stop_as_diverged("gradient norm", norm)
        values |= {name: logs[name] for name in ("learning_rate", "grad_norm")}
        values["memory_gib"] = peak_memory(self.args.device)
        self.sink.emit("metrics", step=self.state.global_step, values=values)
        self.window.clear()
        self._alarm(self.alarms.look(total, norm))

    def stop_as_diverged(self, what: str, value: float) -> None:
        """Always the end: a weight that is no number makes every later one such."""
        step = self.state.global_step
        self._tell(Alarm("diverged", f"The {what} is {value} at step {step}."))
        raise ConfigurationError(
            f"The {what} became {value} by step {step}.",
            f"Lower train.learning_rate (now {self.args.learning_rate:g}) or train.max_grad_norm, or warm up longer.",
        )

    def _alarm(self, found: Sequence[Alarm]) -> None:
        """Tell of alarms and, where the run shall stop at them, end it with a checkpoint from which it can go on."""
        for alarm in found:
            self._tell(alarm)
        if found and self.stop_at_alarms and self.state.global_step < self.plan.total:
            self.stopped_by = found[0]
            self.control.should_save = self.control.should_training_stop = True

    def _tell(self, alarm: Alarm) -> None:
        """Say it, and keep the newest checkpoint from before the first trouble for as long as the run is there."""
        step = self.state.global_step
        before = [one for one, _ in checkpoints.found(self.root) if one <= step]
        if self.alarms.kept not in before:
            self.alarms.kept = before[-1] if before else None
        kept = self.alarms.kept
        said = "There is no checkpoint from before." if kept is None else f"The checkpoint step-{kept} is kept."
        self.sink.emit("alarm", name=alarm.name, step=step, message=f"{alarm.message} {said}", checkpoint=kept)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict:
        """Validation loss on the probe, and the routing of the same passes where this step is a moment."""
        self.control.should_evaluate = False
        step = self.state.global_step
        with self.routing.recording(step in self.plan.moments) as recorder:
            losses = self.probe.losses(self.model, self.args.device, recorder)
        if recorder is not None:
            snapshot = self.routing.publish(recorder, step, f"step-{step}", self.probe.split)
            if step > 0:  # before the first step nothing was learnt
                self._alarm(self.alarms.look_at_routing(snapshot))
        mean = sum(losses.values()) / len(losses)
        if not math.isfinite(mean):
            self.stop_as_diverged("validation loss", mean)
        values = {"validation": mean} | {f"validation/{task}": loss for task, loss in losses.items()}
        if self.probe.split == "validation":
            self.sink.emit("metrics", step=step, values=values)
            if self.plan.evaluates(step):
                self._judge(mean, step)
        self.clock.lap()
        return values

    def _judge(self, loss: float, step: int) -> None:
        standing = self.standing
        if loss < standing.best:
            standing.best, standing.best_step, standing.waited = loss, step, 0
            if standing.patience is not None:
                state = checkpoints.adapter_state(self.model)
                standing.tensors = {name: value.to("cpu", copy=True) for name, value in state.items()}
            return
        standing.waited += 1
        if standing.patience is not None and standing.waited >= standing.patience and step < self.plan.total:
            reason = f"no gain in {standing.waited} validations since step {standing.best_step}"
            self.sink.emit("log", level="info", message=f"Stopped early at step {step}: {reason}.")
            standing.done = True
            self.control.should_training_stop = self.control.should_save = True

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not self.window.finite() or not checkpoints.finite(checkpoints.adapter_state(self.model)):
            self.stop_as_diverged("training loss", math.nan)
        step = self.state.global_step
        self.standing.done = self.standing.done or step >= self.plan.total
        self.window.seconds += self.clock.lap()
        folder = checkpoints.write(self.root, step, self._fill, self.facts)
        checkpoints.prune(self.root, self.kept, after=step, spared=self.alarms.kept)
        self.sink.emit("checkpoint", step=step, path=f"{self.root.name}/{folder.name}")
        self.clock.lap()

    def _fill(self, folder: Path) -> None:
        checkpoints.save_tensors(folder / "adapter.safetensors", checkpoints.adapter_state(self.model))
        if self.standing.tensors:
            checkpoints.save_tensors(folder / "best.safetensors", self.standing.tensors)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
            "rng": checkpoints.rng_state(self.args.device),
            "window": self.window.state_dict(),
            "standing": self.standing.facts(),
            "alarms": self.alarms.state(),
        }
        with (folder / "state.pt").open("wb") as file:  # torch's own writer says nothing of a full disk
            torch.save(state, file)
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        restore_model(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = read_state(Path(checkpoint))
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["scheduler"])
        self.window.load_state_dict(state["window"])
        if "alarms" in state:  # checkpoints of before there were any
            self.alarms.restore(state["alarms"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.restore_rng(read_state(Path(checkpoint))["rng"], self.args.device)


class Rhythm(TrainerCallback):
    """Turns the plan into Trainer's flags, reports progress and listens for a request to stop."""

    def __init__(self, trainer: TaskTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.model.train()  # the adapter is new and in training mode already, the base below it may not be
        self.trainer.clock.start(state.global_step)
        if state.global_step == 0 and 0 in self.trainer.plan.moments and self.trainer.probe:
            self.trainer.evaluate()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer, step = self.trainer, state.global_step
        trainer.window.seconds += trainer.clock.lap()
        control.should_log = control.should_log or step == trainer.plan.total
        control.should_evaluate = bool(trainer.probe) and (trainer.plan.evaluates(step) or step in trainer.plan.moments)
        control.should_save = trainer.plan.saves(step)
        trainer.clock.report(step)
        if step < trainer.plan.total and trainer.clock.asked_to_stop():
            trainer.interrupted = control.should_save = control.should_training_stop = True


def _forget(trained: Sequence[Tensor]) -> None:
    """In place of a model's own ``zero_grad``, which at every step walks over a base that has no gradients."""
    for parameter in trained:
        parameter.grad = None


def restore_model(model: torch.nn.Module, checkpoint: Path) -> None:
    """Put a checkpoint's adapter tensors into the model."""
    try:
        checkpoints.restore_adapter(model, checkpoints.load_tensors(checkpoint / "adapter.safetensors"))
    except ValueError as error:
        raise ConfigurationError(
            f"The checkpoint {checkpoint.name} does not fit this model: {error}.",
            "The base model or the method changed; start the run anew.",
        ) from error


def read_state(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)


def peak_memory(device: torch.device) -> float:
    """Highest memory use so far in GiB: of the device, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB / GIB  # Linux counts in KiB
