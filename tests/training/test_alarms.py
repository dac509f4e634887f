"""Alarms: each is provoked, told with the checkpoint from before, and the run goes on or stops as it was asked to."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.adapters.modules.gate import TokenGateModule
from core.data.store import DatasetInfo, DatasetStore
from core.errors import AlarmError, ConfigurationError
from core.home import RunFolder
from core.jobs.sinks import ListSink
from core.routing.snapshot import RoutingSnapshot, SiteInfo
from core.schema import RunSpec
from core.training import checkpoints
from core.training.alarms import CALM, KNOWN, MOST, REMEMBERED, Alarms
from core.training.loss import AnswerHead
from core.training.run import train_adapter
from tests.support.training import MOSLD, points, toy_spec


def raised(alarms: Alarms, losses: list[float], norms: list[float] | None = None) -> list[tuple[int, str]]:
    """(place, name) of the alarms of a curve."""
    norms = norms or [1.0] * len(losses)
    pairs = enumerate(zip(losses, norms, strict=True))
    return [(place, alarm.name) for place, (loss, norm) in pairs for alarm in alarms.look(loss, norm)]


def test_an_ordinary_curve_raises_nothing() -> None:
    """Falling, noisy, of two tasks with losses far apart, and with a norm that varies threefold."""
    chance = np.random.default_rng(0)
    curve = [5 * math.exp(-i / 40) + 0.3 + float(chance.gamma(2.0, 0.15)) for i in range(600)]
    mixed = [2.5 if chance.random() < 0.15 else 0.05 for _ in range(600)]
    norms = [float(chance.lognormal(0.0, 0.6)) for _ in range(600)]
    assert raised(Alarms(32_000, 1.0), curve, norms) == []
    assert raised(Alarms(32_000, 1.0), mixed, norms) == []


def test_a_spike_is_raised_once_until_it_is_calm() -> None:
    curve = [0.4] * 40 + [3.0] * 50 + [0.4] * (CALM - 1) + [3.0] * 3 + [0.4] * CALM + [3.0]
    assert raised(Alarms(32_000, 1.0), curve) == [(40, "spike"), (len(curve) - 1, "spike")]


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([0.4] * (KNOWN - 1) + [3.0], []),
        ([0.4] * KNOWN + [3.0], [(KNOWN, "spike")]),
        ([0.01] * 40 + [0.4], []),
        ([2.0] * 40 + [3.9], []),
        ([2.0] * 40 + [4.1], [(40, "spike")]),
        ([6.0] + [0.4] * REMEMBERED + [3.0], [(REMEMBERED + 1, "spike")]),
        ([6.0] + [0.4] * (REMEMBERED - 1) + [3.0], []),
        ([2 * math.log(32_000) + 0.1] * 7, [(KNOWN, "spike")]),
    ],
)
def test_what_is_a_spike(curve: list[float], expected: list[tuple[int, str]]) -> None:
    assert raised(Alarms(32_000, 1.0), curve) == expected


@pytest.mark.parametrize(("last", "clip", "expected"), [(10.5, 1.0, 1), (9.5, 1.0, 0), (10.5, 2.0, 0)])
def test_what_is_an_exploding_gradient(last: float, clip: float, expected: int) -> None:
    found = raised(Alarms(32_000, clip), [1.0] * 11, [1.0] * 10 + [last])
    assert found == [(10, "gradient")] * expected


def test_an_alarm_is_not_raised_for_ever() -> None:
    assert len(raised(Alarms(32_000, 1.0), ([0.4] * 40 + [3.0]) * (MOST + 5))) == MOST


def test_what_was_raised_outlives_a_checkpoint(tmp_path: Path) -> None:
    alarms = Alarms(32_000, 1.0)
    assert raised(alarms, [0.4] * 40 + [3.0])
    torch.save({"alarms": alarms.state()}, tmp_path / "state.pt")
    again = Alarms(32_000, 1.0)
    again.restore(torch.load(tmp_path / "state.pt", weights_only=True)["alarms"])
    assert again.state() == alarms.state() and raised(again, [3.0] * 5) == []


def snapshot(gates: list[list[float]], gate: str = "token", tasks: int = 2, **site: Any) -> RoutingSnapshot:
    """One site for each row of mean gates, alike for all tasks and roles."""
    sites = [SiteInfo(f"s{i}", i, "q_proj", len(row), 1, gate, "token", **site) for i, row in enumerate(gates)]
    rows = [[*(100 * weight for weight in row), *([0.0] * (2 * len(row) + 1)), 100.0] for row in gates]
    sums = [np.tile(row, (2, tasks, 1)) for row in rows]
    return RoutingSnapshot.from_sums([f"t{i}" for i in range(tasks)], sites, sums)


@pytest.mark.parametrize(
    ("gates", "more", "expected"),
    [
        ([[0.25] * 4] * 4, {}, []),
        ([[0.7, 0.3, 0.0, 0.0], [0.25] * 4], {}, ["dead experts"]),
        ([[0.7, 0.2, 0.1, 0.0], [0.25] * 4], {}, []),
        ([[0.97, 0.01, 0.01, 0.01], [0.25] * 4], {}, ["collapse"]),
        ([[1.0, 0.0, 0.0, 0.0]] * 4, {}, ["collapse"]),
        ([[0.97, 0.01, 0.01, 0.01], *[[0.25] * 4] * 2], {}, []),
        ([[1.0, 0.0, 0.0, 0.0]] * 4, {"gate": "label"}, []),
        ([[1.0, 0.0, 0.0, 0.0]] * 4, {"gate": "task", "tasks": 1}, []),
        ([[1.0, 0.0, 0.0, 0.0]] * 4, {"gate": "task"}, ["collapse"]),
        ([[1.0, 0.0, 0.0, 0.0]] * 4, {"signed": True, "sums_to_one": False}, []),
        ([[1.0]] * 4, {}, []),
        ([], {}, []),
    ],
)
def test_what_routers_are_told_of(gates: list[list[float]], more: dict[str, Any], expected: list[str]) -> None:
    assert [alarm.name for alarm in Alarms(320, 1.0).look_at_routing(snapshot(gates, **more))] == expected


def test_experts_of_their_own_for_each_task_are_no_collapse() -> None:
    found = snapshot([[1.0, 0.0]] * 4)
    found.mean_gate[:, 1] = found.mean_gate[:, 1, :, ::-1]
    assert Alarms(320, 1.0).look_at_routing(found) == []


# Real runs


def run(spec: RunSpec, store: DatasetStore, folder: Path, *, resume: bool = False) -> tuple[ListSink, RunFolder]:
    sink, made = ListSink(), RunFolder(folder).create()
    train_adapter(spec, made, store, sink, device="cpu", resume=resume)
    return sink, made


def steps(folder: Path) -> list[int]:
    return [step for step, _ in checkpoints.found(RunFolder(folder).checkpoints)]


def test_a_learning_rate_of_a_million_ends_at_once(base: Path, store: DatasetStore, tmp_path: Path) -> None:
    """The losses are still numbers when the gradients are none: without a look at these, weights that are no numbers
    would be saved and trained on."""
    spec = toy_spec(base, MOSLD, steps=30, checkpoint_every=1, warmup=0.3)
    spec = spec.model_copy(update={"train": spec.train.model_copy(update={"learning_rate": 1e6})})
    sink = ListSink()
    with pytest.raises(ConfigurationError, match="became (nan|inf)") as caught:
        train_adapter(spec, RunFolder(tmp_path).create(), store, sink, device="cpu", resume=False)
    assert "learning_rate" in caught.value.hint
    alarm = sink.of("alarm")[-1]
    assert alarm["name"] == "diverged" and f"step-{alarm['checkpoint']} is kept" in alarm["message"]
    assert 0 < alarm["checkpoint"] < alarm["step"] < 30 and alarm["checkpoint"] in steps(tmp_path)
    for step in steps(tmp_path):
        folder = RunFolder(tmp_path).checkpoints / f"step-{step}"
        assert checkpoints.finite(checkpoints.load_tensors(folder / "adapter.safetensors")), f"step-{step} is spoilt"


@pytest.mark.parametrize("on_alarm", ["continue", "stop"])
def test_a_loss_that_is_no_number_stops_every_run(
    base: Path, store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_alarm: str
) -> None:
    honest, calls = AnswerHead.losses, iter(range(1000))
    spoilt = lambda head, batch: honest(head, batch) * (math.nan if next(calls) == 7 else 1.0)  # noqa: E731
    monkeypatch.setattr(AnswerHead, "losses", spoilt)
    with pytest.raises(ConfigurationError, match="became nan"):
        run(toy_spec(base, steps=30, on_alarm=on_alarm), store, tmp_path)


@pytest.fixture(scope="module")
def sharp(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with larger logits: it can be sure of an answer, and surprised by another."""
    made = tmp_path_factory.mktemp("sharp") / "base"
    shutil.copytree(base, made)
    weights = load_file(made / "model.safetensors")
    weights["model.norm.weight"] *= 4
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    return made


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> DatasetStore:
    """A task with one answer, which is soon learnt, and few rows with answers of noise."""
    store, chance = DatasetStore(tmp_path_factory.mktemp("poisoned") / "datasets"), np.random.default_rng(0)
    noise = ["".join(chr(int(c)) for c in chance.integers(33, 126, 12)) for _ in range(2)]
    rows = [{"instruction": "Say it.", "input": f"{i % 7}", "output": "yes"} for i in range(200)] + [
        {"instruction": "Say it.", "input": "!", "output": text} for text in noise
    ]
    plain = rows[:8]
    store.add(DatasetInfo(name="toy"), {"train": {"a": rows}, "validation": {"a": plain}, "test": {"a": plain}})
    return store


SPIKED = {"steps": 100, "batch_size": 2, "learning_rate": 0.02, "checkpoint_every": 10, "checkpoints_kept": 1}


def test_poisoned_rows_raise_an_alarm_and_the_run_stops_or_goes_on(
    sharp: Path, poisoned: DatasetStore, tmp_path: Path
) -> None:
    going, _ = run(toy_spec(sharp, **SPIKED), poisoned, tmp_path / "on")
    alarms = [alarm for alarm in going.of("alarm") if alarm["name"] == "spike"]
    assert alarms and going.of("checkpoint")[-1]["step"] == SPIKED["steps"]
    first, kept = alarms[0]["step"], alarms[0]["checkpoint"]
    assert 0 < first - kept <= 10 and steps(tmp_path / "on") == [kept, SPIKED["steps"]]

    spec, stopped = toy_spec(sharp, **SPIKED, on_alarm="stop"), ListSink()
    folder = RunFolder(tmp_path / "stop").create()
    with pytest.raises(AlarmError, match=f"step {first} by the alarm spike") as caught:
        train_adapter(spec, folder, poisoned, stopped, device="cpu", resume=False)
    assert caught.value.kind == "alarm" and "Resume" in caught.value.hint
    assert steps(folder.root) == [kept, first]

    halts, events = 0, list(stopped.events)
    while True:  # each answer "go on" leads past one alarm
        sink = ListSink()
        try:
            train_adapter(spec, folder, poisoned, sink, device="cpu", resume=True)
        except AlarmError:
            halts += 1
        events += sink.events
        if sink.of("checkpoint")[-1]["step"] == SPIKED["steps"]:
            break
    assert halts <= len(going.of("alarm")) - 1
    assert points(events) == points(going.events)
    assert steps(folder.root) == [kept, SPIKED["steps"]], "the checkpoint from before the trouble is gone"


@pytest.mark.parametrize(("bias", "name"), [((60.0, 0.0, 0.0), "collapse"), ((0.0, 0.0, -60.0), "dead experts")])
def test_forced_gates_raise_an_alarm(
    base: Path, store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bias: tuple[float, ...], name: str
) -> None:
    honest = TokenGateModule.forward

    def forced(module: TokenGateModule, logits: torch.Tensor, *rest: Any) -> Any:
        return honest(module, logits + logits.new_tensor(bias), *rest)

    monkeypatch.setattr(TokenGateModule, "forward", forced)
    spec = toy_spec(base, MOSLD, steps=8, routing_moments=2)
    sink, _ = run(spec, store, tmp_path / "on")
    assert [alarm["name"] for alarm in sink.of("alarm")] == [name] and sink.of("alarm")[0]["step"] == 4
    stopped = toy_spec(base, MOSLD, steps=8, routing_moments=2, on_alarm="stop")
    with pytest.raises(AlarmError, match=name):
        run(stopped, store, tmp_path / "stop")
    assert steps(tmp_path / "stop")[-1] == 4


def test_an_untroubled_mixture_raises_nothing(base: Path, store: DatasetStore, tmp_path: Path) -> None:
    sink, _ = run(toy_spec(base, MOSLD, steps=40, routing_moments=4), store, tmp_path)
    assert sink.of("alarm") == []
