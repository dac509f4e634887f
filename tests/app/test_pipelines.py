"""A method of two stages through the queue and without it: an expert for each task alone, then the routers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from core.errors import ConfigurationError
from core.schema import RunSpec
from core.studio import Studio
from tests.support.tiny import tiny_base

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    folder = tmp_path_factory.mktemp("moa")
    base = tiny_base(folder / "tiny")
    for name, words in (("colours", ("red", "green")), ("sizes", ("big", "small"))):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([f"{name}: thing {i} is {words[i % 2]}", words[i % 2]] for i in range(60))
    return RunSpec.parse(
        {
            "name": "pair",
            "model": {"base": str(base)},
            "tasks": [{"dataset": str(folder / f"{name}.csv"), "test_rows": 8} for name in ("colours", "sizes")],
            "method": {"name": "moa", "options": {"rank": 2, "modules": ["q_proj", "v_proj"]}},
            "train": {"steps": 4, "batch_size": 4, "max_length": 64, "validation_rows": 4, "routing_moments": 1},
            "device": "cpu",
        }
    )


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory):
    made = Studio(tmp_path_factory.mktemp("moa-home") / "home")
    yield made
    made.dispatcher("stop")
    made.close()


@pytest.fixture(scope="module")
def joined(studio: Studio, spec: RunSpec) -> str:
    run = studio.submit(spec, request_id="once")
    assert studio.submit(spec, request_id="once") == run
    assert list(studio.follow(run))[-1] == "finished"
    return run


def test_a_run_for_each_task_comes_first_and_is_compared_like_any_other(studio: Studio, joined: str):
    runs = {run["name"]: run for run in studio.runs()}
    assert set(runs) == {"pair", "pair: colours alone", "pair: sizes alone"}
    assert {run["state"] for run in runs.values()} == {"done"}
    assert runs["pair: sizes alone"]["method"] == "lora"
    assert runs["pair: sizes alone"]["tasks"] == ["sizes"]
    experts = [runs[f"pair: {task} alone"]["id"] for task in ("colours", "sizes")]
    assert any(line.endswith(f"Experts: {', '.join(experts)}.") for line in studio.logs(joined)["events"])
    assert {"colours", "sizes"} == set(studio.scores(joined).task)
    table = studio.routing_table(joined)
    assert table[["0", "1"]].sum(axis=1).round(4).eq(1).all()


def test_the_next_run_takes_the_experts_that_are_there(studio: Studio, joined: str):
    before = len(studio.runs())
    names = {run["name"]: run["id"] for run in studio.runs()}
    experts = [f"{joined}:colours", names["pair: sizes alone"]]
    again = studio.clone(
        joined, changes={"name": "again", "method.options.experts_from": experts, "method.options.decide": "vote"}
    )
    assert list(studio.follow(again))[-1] == "finished"
    assert len(studio.runs()) == before + 1


def test_an_expert_is_taken_out_and_put_back_as_runs_of_their_own(studio: Studio, joined: str):
    names = {run["name"]: run["id"] for run in studio.runs()}
    fewer = studio.change_experts(joined, remove="sizes")
    assert (fewer["name"], fewer["method"], fewer["state"]) == ("pair, remove sizes", "moa", "done")
    assert fewer["spec"]["origin"] == f"{joined}, remove sizes"
    more = studio.change_experts(fewer["id"], add=f"sizes={names['pair: sizes alone']}", name="again both")
    assert more["name"] == "again both"
    for changes, said in (
        ({"remove": "shapes"}, "no expert for shapes"),
        ({"replace": "sizes"}, "does not say what to replace"),
        ({}, "Exactly one change"),
        ({"add": f"colours={joined}:colours"}, "already has an expert for colours"),
        ({"replace": f"sizes={joined}"}, "no single LoRA"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            studio.change_experts(joined, **changes)


@pytest.mark.parametrize(
    ("experts", "said"),
    [
        (["run-1"], "names 1 experts for 2 tasks"),
        (["run-1", "run-99"], "run-99 is neither a run"),
        (["run-1", "run-2:shapes"], "no expert for shapes"),
    ],
)
def test_experts_that_do_not_fit_are_refused_before_anything_is_queued(studio, joined, spec, experts, said):
    method = spec.method.model_copy(update={"options": {**spec.method.options, "experts_from": experts}})
    count = len(studio.runs())
    with pytest.raises(ConfigurationError, match=said):
        studio.submit(spec.model_copy(update={"method": method}))
    assert len(studio.runs()) == count


def test_without_a_queue_the_experts_are_trained_inside_the_run(studio: Studio, spec: RunSpec, tmp_path: Path):
    folder = studio.train_here(spec, out=tmp_path / "run")
    for number in ("0", "1"):
        assert (folder / "experts" / number / "adapter" / "adapter_config.json").is_file()
    assert (folder / "adapter" / "adapter_config.json").is_file()
    assert "Experts:" in (folder / "events.jsonl").read_text("utf-8")
