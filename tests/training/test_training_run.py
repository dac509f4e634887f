"""What a training run does and says, on a tiny base."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from core.adapters.attach import attach, load
from core.data.batches import Collator, TaskDataset
from core.data.sampling import MixtureSampler
from core.data.store import DatasetStore
from core.data.tasks import load_tasks
from core.data.templates import TextEncoder
from core.errors import ConfigurationError, DataError
from core.home import RunFolder
from core.jobs.sinks import Cancelled, ListSink
from core.models import load_base
from core.routing.snapshot import RoutingSnapshot
from core.schema import RunSpec
from core.training.checkpoints import found
from core.training.loss import AnswerHead
from core.training.run import train, train_adapter
from tests.support.training import LORA, MOSLD, curve, points, toy_spec, toy_store


def run(spec: RunSpec, store: DatasetStore, folder: Path, *, resume: bool = False, sink: ListSink | None = None):
    """Train without scoring; returns the sink and the run folder."""
    sink, folder = sink or ListSink(), RunFolder(folder).create()
    train_adapter(spec, folder, store, sink, device="cpu", resume=resume)
    return sink, folder


@pytest.mark.parametrize("method", [LORA, MOSLD, {"name": "hydralora", "options": {"rank": 4, "experts": 3}}])
def test_the_loss_falls(base: Path, store: DatasetStore, tmp_path: Path, method: dict):
    sink, _ = run(toy_spec(base, method, steps=40), store, tmp_path)
    losses = curve(sink.events)
    assert len(losses) == 40
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.6
    validation = curve(sink.events, "validation")
    assert len(validation) == 10 and validation[-1] < validation[0] - 0.6


def test_a_run_trains_scores_and_says_so(base: Path, store: DatasetStore, tmp_path: Path):
    spec = toy_spec(base, MOSLD, routing_moments=2)
    sink, folder = ListSink(), RunFolder(tmp_path / "run")
    assert train(spec, folder, store, sink, device="cpu") == 12
    started = sink.of("started")[0]
    assert started["step"] == 0 and started["device"] == "cpu" and 0 < started["trainable"] < started["total"]
    assert set(started["versions"]) >= {"torch", "transformers", "peft", "python"}
    assert {event["task"] for event in sink.of("score")} == {"colour", "count"}
    assert [event["step"] for event in sink.of("checkpoint")] == [3, 6, 9, 12]
    assert {event["phase"] for event in sink.of("progress")} >= {"training", "scoring"}
    last = [event["values"] for event in sink.of("metrics") if "loss" in event["values"]][-1]
    assert set(last) == {
        "loss",
        "loss/colour",
        "loss/count",
        "auxiliary_loss",
        "auxiliary_loss/balance",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "memory_gib",
    }
    moments = [(event["moment"], event["split"]) for event in sink.of("routing")]
    assert moments == [("step-0", "validation"), ("step-6", "validation"), ("end", "test")]
    for event in sink.of("routing"):
        snapshot = RoutingSnapshot.load(folder.routing / event["file"])
        assert snapshot.tasks == ["colour", "count"] and (snapshot.count > 0).all()


def test_the_saved_adapter_is_the_trained_one(base: Path, store: DatasetStore, tmp_path: Path):
    spec = toy_spec(base, MOSLD)
    sink, folder = run(spec, store, tmp_path)
    fresh = load(load_base(spec.model, "cpu"), folder.adapter, name="default").eval()
    assert probe_losses(fresh, spec, store) == pytest.approx(
        {name: value for (step, name), value in points(sink.events).items() if step == 12 and "validation/" in name},
        abs=1e-5,
    )


def probe_losses(model: torch.nn.Module, spec: RunSpec, store: DatasetStore) -> dict[str, float]:
    """Validation loss per task, worked out row by row with the model's own loss."""
    encoder = TextEncoder(spec.model.base)
    tasks = load_tasks(store, spec.tasks)
    losses = {}
    for task in tasks:
        data = TaskDataset([task], encoder, "validation", spec.train.max_length)
        total = tokens = 0.0
        for item in data:
            batch = Collator(encoder.pad_id)([item])
            count = int((batch["labels"] != -100).sum())
            with torch.no_grad():
                total += float(model(**batch).loss) * count
            tokens += count
        losses[f"validation/{task.name}"] = total / tokens
    return losses


def test_losses_per_task_are_the_models_own(base: Path, store: DatasetStore, tmp_path: Path):
    """The first step's losses equal those of the fresh adapter, which is the base, on the same rows."""
    spec = toy_spec(base, steps=1, batch_size=6, gradient_accumulation=2)
    sink, _ = run(spec, store, tmp_path)
    encoder, tasks = TextEncoder(base), load_tasks(store, spec.tasks)
    data = TaskDataset(tasks, encoder, "train", spec.train.max_length)
    rows = list(MixtureSampler(data.sizes, seed=spec.seed))[:12]
    model = load_base(spec.model, "cpu")
    sums = {task.name: [0.0, 0] for task in tasks}
    for row in rows:
        batch = Collator(encoder.pad_id)([data[row]])
        name = tasks[int(batch.pop("task_index"))].name
        labels = batch.pop("labels")
        batch.pop("token_role")
        with torch.no_grad():
            logits = model(**batch).logits
        sums[name][0] += float(F.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum"))
        sums[name][1] += int((labels[0, 1:] != -100).sum())
    said = points(sink.events)
    for name, (total, tokens) in sums.items():
        assert said[1, f"loss/{name}"] == pytest.approx(total / tokens, rel=1e-5)
    total, tokens = (sum(column) for column in zip(*sums.values(), strict=True))
    assert said[1, "loss"] == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize("method", [LORA, {"name": "mosld", "options": {"rank": 4, "experts": 3, "dropout": 0.0}}])
def test_accumulated_gradients_equal_one_large_batch(base: Path, store: DatasetStore, tmp_path: Path, method: dict):
    """Of one row repeated, so that the auxiliary loss of a part is that of the whole."""
    one = toy_store(tmp_path / "data", {"train": 1, "validation": 1, "test": 1})
    only = {"dataset": "toy", "task": "count"}
    curves = []
    for size, parts in ((8, 1), (2, 4)):
        spec = toy_spec(base, method, steps=4, batch_size=size, gradient_accumulation=parts)
        spec = RunSpec.parse(spec.model_dump(mode="json") | {"tasks": [only]})
        sink, _ = run(spec, one, tmp_path / f"{size}x{parts}")
        curves.append(points(sink.events))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert (1, "auxiliary_loss") in curves[0] or method is LORA


def test_accumulated_gradients_weigh_every_answer_token_alike(base: Path, store: DatasetStore, tmp_path: Path):
    """Rows of different answer lengths in different micro-batches: the mean over tokens, not over micro-batches."""
    curves = []
    for size, parts in ((8, 1), (1, 8)):
        sink, _ = run(
            toy_spec(base, steps=5, batch_size=size, gradient_accumulation=parts), store, tmp_path / str(size)
        )
        curves.append(points(sink.events))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_activation_checkpointing_changes_nothing(base: Path, store: DatasetStore, tmp_path: Path):
    curves = []
    for on in (False, True):
        sink, _ = run(toy_spec(base, MOSLD, steps=5, activation_checkpointing=on), store, tmp_path / str(on))
        curves.append(points(sink.events))
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_warms_up_and_follows_the_schedule(
    base: Path, store: DatasetStore, tmp_path: Path, schedule: str
):
    sink, _ = run(toy_spec(base, steps=20, schedule=schedule, warmup=0.2, learning_rate=0.02), store, tmp_path)
    rates = curve(sink.events, "learning_rate")
    assert rates[:5] == pytest.approx([0.0, 0.005, 0.01, 0.015, 0.02])
    after = {
        "linear": lambda x: 1 - x,
        "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
        "constant": lambda x: 1.0,
    }[schedule]
    assert rates[5:] == pytest.approx([0.02 * after((step - 4) / 16) for step in range(5, 20)])


def test_epochs_and_intervals_follow_from_the_rows(base: Path, store: DatasetStore, tmp_path: Path):
    """96 rows in batches of 8: two passes are 24 steps; ten validations, five checkpoints of which two stay."""
    spec = toy_spec(base, steps=None, epochs=2, batch_size=8, log_every=10)
    sink, folder = run(spec, store, tmp_path)
    steps = [event["step"] for event in sink.of("metrics") if "loss" in event["values"]]
    assert steps == [10, 20, 24]
    assert [step for step, _ in found(folder.checkpoints)] == [20, 24]
    assert len(curve(sink.events, "validation")) == 8  # every third step


def test_early_stopping_keeps_the_best_adapter(base: Path, store: DatasetStore, tmp_path: Path):
    """A learning rate that ruins the model: validation gets worse after its first point."""
    spec = toy_spec(base, steps=60, learning_rate=0.3, schedule="constant", evaluate_every=3, early_stopping=2)
    sink, folder = run(spec, store, tmp_path)
    validation = {step: value for (step, name), value in points(sink.events).items() if name == "validation"}
    best = min(validation, key=validation.get)
    assert max(validation) < 60, "it did not stop early"
    assert max(validation) == best + 6
    said = " ".join(event["message"] for event in sink.of("log"))
    assert f"Stopped early at step {max(validation)}" in said and f"Kept the adapter of step {best}" in said
    fresh = load(load_base(spec.model, "cpu"), folder.adapter, name="default").eval()
    losses = probe_losses(fresh, spec, store)
    assert sum(losses.values()) / 2 == pytest.approx(validation[best], abs=1e-5)


def test_a_stopped_run_goes_on_where_it_stopped(base: Path, store: DatasetStore, tmp_path: Path):
    class StopAt(ListSink):
        def emit(self, kind: str, **fields: object) -> None:
            super().emit(kind, **fields)
            self.stop = self.stop or (kind == "metrics" and fields["step"] >= 4)

    spec = toy_spec(base, MOSLD, steps=300, evaluate_every=50, checkpoint_every=100)
    whole, _ = run(toy_spec(base, MOSLD, steps=300, evaluate_every=50, checkpoint_every=200), store, tmp_path / "whole")
    sink, folder = StopAt(), RunFolder(tmp_path / "stopped").create()
    with pytest.raises(Cancelled) as caught:
        train_adapter(spec, folder, store, sink, device="cpu", resume=False)
    assert 4 < caught.value.step < 300
    assert sink.of("checkpoint")[-1]["step"] == caught.value.step
    rest, _ = run(spec, store, folder.root, resume=True)
    assert rest.of("started")[0]["step"] == caught.value.step
    assert points([*sink.events, *rest.events]) == points(whole.events)


def test_a_finished_run_is_not_trained_again(base: Path, store: DatasetStore, tmp_path: Path):
    spec = toy_spec(base, early_stopping=9)
    first, folder = run(spec, store, tmp_path)
    before = (folder.adapter / "adapter_model.safetensors").read_bytes()
    again, _ = run(spec, store, tmp_path, resume=True)
    assert again.of("started")[0]["step"] == 12 and not again.of("metrics")
    assert (folder.adapter / "adapter_model.safetensors").read_bytes() == before


def test_a_fresh_start_forgets_older_checkpoints(base: Path, store: DatasetStore, tmp_path: Path):
    run(toy_spec(base, steps=20), store, tmp_path)
    sink, folder = run(toy_spec(base, steps=6), store, tmp_path)
    assert sink.of("started")[0]["step"] == 0
    assert [step for step, _ in found(folder.checkpoints)] == [4, 6]


def test_resuming_with_other_settings_is_refused(base: Path, store: DatasetStore, tmp_path: Path):
    run(toy_spec(base), store, tmp_path)
    with pytest.raises(ConfigurationError, match="other settings"):
        run(toy_spec(base, learning_rate=0.5), store, tmp_path, resume=True)
    sink, _ = run(toy_spec(base, checkpoints_kept=1), store, tmp_path, resume=True)
    assert sink.of("started")[0]["step"] == 12


def test_divergence_stops_the_run_with_an_alarm(base: Path, store: DatasetStore, tmp_path: Path, monkeypatch):
    honest = AnswerHead.losses
    calls = iter(range(1000))
    monkeypatch.setattr(
        AnswerHead, "losses", lambda head, batch: honest(head, batch) * (float("nan") if next(calls) > 4 else 1.0)
    )
    sink = ListSink()
    with pytest.raises(ConfigurationError, match="became nan") as caught:
        run(toy_spec(base), store, tmp_path, sink=sink)
    assert "learning_rate" in caught.value.hint
    assert sink.of("alarm")[0]["name"] == "diverged"
    assert not RunFolder(tmp_path).adapter.exists()


def test_a_task_without_training_rows_is_bad_data(base: Path, tmp_path: Path):
    store = toy_store(tmp_path / "data", {"test": 4})
    with pytest.raises(DataError, match="colour .* no training rows"):
        run(toy_spec(base), store, tmp_path / "run")


def test_early_stopping_needs_validation_rows(base: Path, tmp_path: Path):
    store = toy_store(tmp_path / "data", {"train": 8, "test": 4})
    with pytest.raises(ConfigurationError, match="validation rows"):
        run(toy_spec(base, early_stopping=2), store, tmp_path / "run")


def test_without_validation_rows_routing_is_watched_on_training_rows(base: Path, tmp_path: Path):
    store = toy_store(tmp_path / "data", {"train": 8, "test": 4})
    sink, _ = run(toy_spec(base, MOSLD, routing_moments=1), store, tmp_path / "run")
    assert not curve(sink.events, "validation")
    assert [event["split"] for event in sink.of("routing")] == ["train", "test"]
    assert "No validation rows" in sink.of("log")[0]["message"]


def test_modules_that_the_base_does_not_have(base: Path, store: DatasetStore, tmp_path: Path):
    with pytest.raises(ConfigurationError, match="query_proj"):
        run(toy_spec(base, {"name": "lora", "options": {"modules": ["query_proj"]}}), store, tmp_path)


def test_samples_are_cut_to_the_positions_of_the_base(base: Path, store: DatasetStore, tmp_path: Path):
    sink, _ = run(toy_spec(base, steps=1, max_length=4096), store, tmp_path)
    assert "512 positions" in sink.of("log")[0]["message"]


def test_the_base_alone_is_scored_without_training(base: Path, store: DatasetStore, tmp_path: Path):
    sink = ListSink()
    train(toy_spec(base, {"name": "base"}), RunFolder(tmp_path / "run"), store, sink, device="cpu")
    assert {event["model"] for event in sink.of("score")} == {"base"} and not sink.of("metrics")


def test_losses_do_not_drift(base: Path, store: DatasetStore, tmp_path: Path):
    """The curve of a fixed tiny run; it moves only when what is computed changes."""
    sink, _ = run(toy_spec(base, MOSLD, steps=6, gradient_accumulation=2), store, tmp_path)
    assert curve(sink.events) == pytest.approx([5.91106, 5.77625, 5.57855, 5.50692, 5.34483, 5.37226], abs=1e-4)


def test_attach_leaves_the_random_state_alone(base: Path):
    """Resuming relies on it: the state after a checkpoint is the only one there is."""
    spec = toy_spec(base, MOSLD)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    attach(load_base(spec.model, "cpu"), spec.method, tasks=["a"], seed=1)
    assert torch.equal(torch.rand(4), expected)
