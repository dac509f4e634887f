"""The whole way through the real queue: upload, train, look, compare, clone, cancel, score, talk, export, delete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli import main
from core.errors import ConfigurationError, NotFoundError
from core.studio import Studio

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journey") / "home"


@pytest.fixture(scope="module")
def studio(home: Path) -> Iterator[Studio]:
    made = Studio(home)
    yield made
    made.dispatcher("stop")
    made.close()


@pytest.fixture(scope="module")
def trained(studio: Studio, recipe: Path) -> str:
    """A run that the dispatcher trained, submitted as the command line does."""
    assert main(["--home", str(studio.home.root), "train", str(recipe)]) == 0
    return studio.runs()[0]["id"]


def test_a_run_is_trained_scored_and_recorded(studio: Studio, trained: str, capsys):
    run = studio.run(trained)
    assert (run["state"], run["method"], run["tasks"]) == ("done", "molora", ["colours"])
    assert run["trainable"] == studio.check(studio.cloned_spec(trained)).trainable
    scores = studio.scores(trained)
    assert set(scores.model) == {"adapter", "base"} and set(scores["rows"]) == {8}
    curves = studio.curves(trained, names=["loss"])
    assert list(curves.step) == [1, 2, 3, 4]
    table = studio.routing_table(trained)
    assert table[["0", "1", "2"]].sum(axis=1).round(4).eq(1).all()
    assert studio.logs(trained)["events"][-1] == "finished"
    assert list(studio.follow(trained))[-1] == "finished"


def test_what_is_trained_is_the_content_not_the_name(studio: Studio, trained: str):
    spec = studio.run(trained)["spec"]
    assert spec["tasks"][0]["dataset"] == studio.datasets()[0]["id"]
    assert json.loads(studio.home.run(trained).spec.read_text()) == spec


def test_every_command_that_looks_answers_in_json(studio: Studio, trained: str, capsys):
    def answer(*arguments: str):
        assert main(["--home", str(studio.home.root), *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert answer("runs")[-1]["id"] == trained
    assert {row["metric"] for row in answer("scores", trained)} == {"accuracy"}
    assert answer("routing", trained)["table"]
    assert answer("compare", trained)["columns"][0]["runs"] == [trained]
    assert "finished" in answer("logs", trained)["events"]
    assert {"alive", "pid", "waiting"} <= set(answer("dispatcher"))


def test_routing_is_drawn_into_files(studio: Studio, trained: str, tmp_path: Path, capsys):
    files = {form: tmp_path / f"routing.{form}" for form in ("html", "png", "csv")}
    options = [part for form, path in files.items() for part in (f"--{form}", str(path))]
    assert main(["--home", str(studio.home.root), "routing", trained, *options]) == 0
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert "plotly" in files["html"].read_text().lower()
    assert files["csv"].read_text().startswith("role,task,layer,projection")
    with pytest.raises(NotFoundError, match="no routing of the moment"):
        studio.routing(trained, "step-99")
    with pytest.raises(ConfigurationError, match="is not a routing figure"):
        studio.routing_table(trained, figure="nonsense")
    even = studio.routing_table(trained, figure="relative_gate", role="all")[["0", "1", "2"]]
    assert even.mean(axis=1).round(4).eq(1).all()
    entropy = studio.routing_table(trained, figure="entropy")
    assert list(entropy.columns) == ["task", "layer", "projection", "entropy"] and entropy.entropy.between(0, 1).all()


def test_the_same_request_is_queued_once(studio: Studio, recipe: Path):
    studio.dispatcher("stop")
    spec = studio.read_spec(recipe, changes=["name=once"])[0]
    assert studio.submit(spec, request_id="a") == studio.submit(spec, request_id="a")
    assert len(studio.runs(search="once")) == 1
    assert studio.cancel("once")["state"] == "cancelled"


def test_a_clone_differs_by_one_thing_and_seeds_are_grouped(studio: Studio, trained: str):
    clone = studio.clone(trained, changes=["seed=1"])
    other = studio.clone(trained, changes={"method.name": "lora", "method.options": {"rank": 2}})
    for run in (clone, other):
        assert list(studio.follow(run))[-1] == "finished"
    assert studio.run(clone)["parent"] == trained
    found = studio.compare([trained, clone, other], baseline=other)
    assert [column.runs for column in found.columns] == [[trained, clone], [other], []]
    seeds = found.rows[0].cells[0]
    assert seeds.seeds == 2 and seeds.spread is not None and seeds.difference is not None
    assert "method.name" in found.settings and "seed" not in found.settings
    assert studio.routing_table(other).empty or len(studio.moments(other)) > 0


def test_cancelling_stops_and_resuming_finishes(studio: Studio, trained: str):
    run = studio.clone(trained, changes=["train.steps=100000", "name=long"])
    for line in studio.follow(run):
        if line.startswith("step "):
            break
    studio.cancel(run)
    assert list(studio.follow(run))[-1].startswith("cancelled")
    assert studio.run(run)["state"] == "cancelled"
    assert studio.resume(run)["state"] in ("queued", "starting", "running")
    studio.cancel(run)
    list(studio.follow(run))
    studio.delete(run)
    assert not studio.home.run(run).root.exists()
    with pytest.raises(NotFoundError):
        studio.run(run)


def test_a_finished_run_is_scored_on_another_data_set(studio: Studio, trained: str, tmp_path: Path):
    path = tmp_path / "shapes.csv"
    path.write_text("text,label\n" + "".join(f"shape {i},{('red', 'blue')[i % 2]}\n" for i in range(40)), "utf-8")
    studio.upload(path)
    job = studio.score(trained, datasets=["shapes"], base=False)
    list(studio.follow(trained, job=job))
    assert studio.job(trained, job)["state"] == "done"
    assert set(studio.scores(trained).task) == {"colours", "shapes"}
    assert studio.run(trained)["state"] == "done"
    with pytest.raises(ConfigurationError, match="is used by"):
        studio.delete_dataset("colours")


def test_runs_talk_side_by_side(studio: Studio, trained: str, capsys):
    home = ["--home", str(studio.home.root)]
    arguments = ["chat", trained, "base", "--prompt", "thing 1 is red today", "--max-new-tokens", "4", "--json"]
    assert main([*home, *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [answer["model"] for answer in told["answers"]] == [trained, "base"]


def test_an_exported_adapter_loads_without_the_studio(studio: Studio, trained: str, tiny: Path, tmp_path: Path):
    folder = studio.export(trained, tmp_path / "exported")
    code = f"""
import sys
sys.path.insert(0, {str(folder)!r})
try:
    import core
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the checkout is on the path")
import torch
from tessera_adapter import load
model = load({str(tiny)!r}).eval()
ids = torch.tensor([[1, 5, 9, 20]])
with torch.no_grad():
    own = model(input_ids=ids).logits
    with model.disable_adapter():
        base = model(input_ids=ids).logits
print(float((own - base).abs().max()))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    child = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert child.returncode == 0, child.stderr
    assert float(child.stdout.strip().splitlines()[-1]) > 0
    with pytest.raises(ConfigurationError, match="not empty"):
        studio.export(trained, folder)


def test_notes_tags_and_names_are_found_again(studio: Studio, trained: str):
    studio.annotate(trained, name="renamed", notes="about colours", tags=["kept"])
    assert [run["id"] for run in studio.runs(tag="kept")] == [trained]
    assert [run["id"] for run in studio.runs(search="about colours")] == [trained]
    assert studio.run("renamed")["id"] == studio.run(trained.removeprefix("run-"))["id"] == trained


def test_the_overview_says_what_to_do_next(studio: Studio, trained: str):
    state = studio.overview()
    assert state["counts"]["runs"] == len(studio.runs()) and state["counts"]["data sets"] == len(studio.datasets())
    assert any(f"chat {run['id']}" in step["command"] for step in state["next"] for run in studio.runs(state="done"))
