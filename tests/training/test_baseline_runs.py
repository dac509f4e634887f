"""A run with a baseline that PEFT computes: trained, resumed, scored, chatted with, looked at by token, exported."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.adapters.attach import load
from core.adapters.export import export
from core.adapters.folders import read_config
from core.chat.engine import ChatEngine
from core.chat.tracing import trace
from core.chat.work import Ticket, Work
from core.data.store import DatasetStore
from core.errors import ConfigurationError
from core.home import RunFolder
from core.jobs.sinks import ListSink
from core.models import load_base
from core.schema import ModelSpec, RunSpec
from core.training.run import train, train_adapter
from core.transfer import _method
from tests.support.training import LORA, curve, points, toy_spec

METHODS = {
    "rslora": {"name": "rslora", "options": {"rank": 4}},
    "dora": {"name": "dora", "options": {"rank": 4, "modules": "all-linear", "dropout": 0.1}},
    "poly": {"name": "poly", "options": {"rank": 4, "experts": 3}},
}
by_peft = pytest.mark.parametrize("name", ["dora", "poly"])
SAID = [{"role": "user", "content": "Say the colour."}]


@pytest.fixture(scope="module")
def trained(base: Path, store: DatasetStore, tmp_path_factory: pytest.TempPathFactory):
    """name -> (folder, events, spec) of a finished run, made when it is first asked for."""
    made: dict[str, tuple[RunFolder, ListSink, RunSpec]] = {}

    def run(name: str) -> tuple[RunFolder, ListSink, RunSpec]:
        if name not in made:
            spec = toy_spec(base, METHODS.get(name, LORA), steps=16, checkpoint_every=6, routing_moments=2)
            folder, sink = RunFolder(tmp_path_factory.mktemp(name)).create(), ListSink()
            train(spec, folder, store, sink, device="cpu")
            made[name] = folder, sink, spec
        return made[name]

    return run


@pytest.mark.parametrize("name", METHODS)
def test_a_run_learns_and_is_scored(trained, name: str):
    folder, sink, _ = trained(name)
    losses = curve(sink.events)
    assert sum(losses[-4:]) < sum(losses[:4]) - 0.2
    assert {event["task"] for event in sink.of("score")} == {"colour", "count"}
    validated = [event["step"] for event in sink.of("metrics") if "validation" in event["values"]]
    assert validated == list(range(2, 17, 2)), "without gates no moment is looked at"
    assert sink.of("routing") == [] and (folder.adapter / "adapter_model.safetensors").is_file()


@by_peft
def test_a_resumed_run_follows_the_uninterrupted_one(trained, name: str, store: DatasetStore, tmp_path: Path):
    class Broken(ListSink):
        def emit(self, kind: str, **fields: object) -> None:
            super().emit(kind, **fields)
            if kind == "metrics" and fields["step"] == 8:
                raise KeyboardInterrupt

    _, whole, spec = trained(name)
    first, second, folder = Broken(), ListSink(), RunFolder(tmp_path).create()
    with pytest.raises(KeyboardInterrupt):
        train_adapter(spec, folder, store, first, device="cpu", resume=False)
    train_adapter(spec, folder, store, second, device="cpu", resume=True)
    assert second.of("started")[0]["step"] == 6
    assert points([*first.events, *second.events]) == points(whole.events)


@by_peft
def test_recomputed_activations_change_nothing(trained, name: str, store: DatasetStore, tmp_path: Path):
    _, plain, spec = trained(name)
    spec = spec.model_copy(update={"train": spec.train.model_copy(update={"activation_checkpointing": True})})
    sink = ListSink()
    train_adapter(spec, RunFolder(tmp_path).create(), store, sink, device="cpu", resume=False)
    assert curve(sink.events) == pytest.approx(curve(plain.events), abs=1e-5)


def ask(work: Work, engine: ChatEngine, names: list[str | None], folders: dict[str, str]) -> list[dict]:
    replies: list[dict] = []
    settings = {"max_new_tokens": 3, "temperature": 0, "task": "colour"}
    request = {"op": "chat", "id": 1, "names": names, "messages": SAID, "adapters": folders, "settings": settings}
    work.submit(Ticket(request, lambda **fields: replies.append(fields)))
    work.run(engine, lambda: True, pause=0.0)
    return replies


@by_peft
def test_a_baseline_talks_beside_the_base_and_after_other_adapters(trained, name: str, base: Path):
    engine, work = ChatEngine(ModelSpec(base=str(base)), "cpu"), Work()
    mine, lora = str(trained(name)[0].adapter), str(trained("lora")[0].adapter)
    assert ask(work, engine, ["lora", None], {"lora": lora})[-1]["op"] == "done"
    told = ask(work, engine, ["mine", None], {"mine": mine})
    assert told[-1]["op"] == "done" and {reply["name"] for reply in told if reply["op"] == "piece"} == {"mine", None}
    assert work.report()["adapters"] == ["mine"]
    both = ask(work, engine, ["mine", "lora"], {"mine": mine, "lora": lora})
    assert "cannot share a base" in str(both[-1])
    assert ask(work, engine, ["lora"], {"lora": lora})[-1]["op"] == "done"
    assert work.report()["adapters"] == ["lora"]


@by_peft
def test_its_tokens_are_shown_without_gates(trained, name: str, base: Path):
    engine = ChatEngine(ModelSpec(base=str(base)), "cpu")
    engine.load("mine", trained(name)[0].adapter)
    found = trace(engine, "mine", SAID, answer="red", task="colour")
    assert found.sites == [] and found.tokens and found.tasks == ["colour", "count"]


def test_poly_asks_for_the_task_and_refuses_one_that_it_does_not_know(trained, base: Path):
    engine = ChatEngine(ModelSpec(base=str(base)), "cpu")
    engine.load("mine", trained("poly")[0].adapter)
    with pytest.raises(ConfigurationError, match="answers by task"):
        engine.task("mine", None)
    with pytest.raises(ConfigurationError, match="not trained on a task 'weather'"):
        engine.task("mine", "weather")


@pytest.mark.parametrize("name", METHODS)
def test_an_exported_run_says_what_it_is_and_loads(trained, name: str, base: Path, tmp_path: Path):
    target = export(trained(name)[0].adapter, tmp_path / "out", base=str(base))
    assert _method(read_config(target)).name == name
    readme = (target / "README.md").read_text()
    assert name in readme and ("task_index" in readme) == (name == "poly")
    model = load(load_base(ModelSpec(base=str(base)), "cpu", folder=base), target, name="again")
    assert model.peft_config["again"].tasks == ["colour", "count"]
