"""Fused runs through the queue and without it: scored, compared, exported, resumed and refused like any other run."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path

import pytest

from app.cli import main
from core.errors import ConfigurationError, NotFoundError, StudioError
from core.schema import RunSpec
from core.studio import Studio
from tests.support.tiny import tiny_base

pytestmark = pytest.mark.slow
WORDS = {"colours": ("red", "green"), "sizes": ("big", "small")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, words in WORDS.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([f"{name}: thing {i} is {words[i % 2]}", words[i % 2]] for i in range(60))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_base(tmp_path_factory.mktemp("base") / "tiny"))


def spec(base: str, data: Path, tasks: list[str], **more) -> RunSpec:
    return RunSpec.parse(
        {
            "model": {"base": base},
            "tasks": [{"dataset": str(data / f"{name}.csv"), "test_rows": 8} for name in tasks],
            "method": {"name": "lora", "options": {"rank": 2, "modules": ["q_proj", "v_proj"]}},
            "train": {"steps": 4, "batch_size": 4, "max_length": 64, "validation_rows": 4, "routing_moments": 1},
            "device": "cpu",
        }
        | more
    )


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory):
    made = Studio(tmp_path_factory.mktemp("fusion-home") / "home")
    yield made
    made.dispatcher("stop")
    made.close()


@pytest.fixture(scope="module")
def experts(studio: Studio, base: str, data: Path) -> list[str]:
    runs = [studio.submit(spec(base, data, [name])) for name in WORDS]
    runs.append(studio.submit(spec(base, data, list(WORDS), method={"name": "mosld", "options": {"rank": 2}})))
    for run in runs:
        assert list(studio.follow(run))[-1] == "finished"
    return runs


@pytest.fixture(scope="module")
def fused(studio: Studio, experts: list[str]) -> str:
    run = studio.fuse(experts[:2], request_id="once")
    assert studio.fuse(experts[:2], request_id="once") == run
    assert list(studio.follow(run))[-1] == "finished"
    return run


def test_a_fused_run_has_lineage_scores_and_what_was_lost(studio: Studio, experts: list[str], fused: str):
    run = studio.run(fused)
    assert run["spec"]["sources"] == experts[:2]
    assert (run["method"], run["state"], [job["kind"] for job in run["jobs"]]) == ("task_arithmetic", "done", ["fuse"])
    assert [one["id"] for one in studio.fused()] == [fused]
    found = studio.fusion(fused)
    assert [one["name"] for one in found.sources] == experts[:2]
    table = found.table.set_index("task")
    assert list(table.index) == ["colours", "sizes", "mean"]
    assert table.loc["colours", "own_run"] == experts[0] and table.loc["sizes", "own_run"] == experts[1]
    assert set(table["joint_run"]) == {experts[2]}
    assert ((table["fused"] - table["own"]) - table["lost"]).abs().max() < 1e-12
    own = studio.scores(experts[0])
    assert table.loc["colours", "own"] == own[own["model"] == "adapter"]["value"].item()


def test_the_form_of_a_weighted_sum_is_exact(studio: Studio, fused: str):
    ((_, form),) = studio.tables(fused, "form")
    assert set(form["rank"]) == {4} and form["relative_error"].max() < 1e-5
    assert studio.tables(fused, "coefficients") == [] or studio.tables(fused, "coefficients")[0][1].shape[0] == 2


def test_a_fused_run_is_compared_and_exported(studio: Studio, experts: list[str], fused: str, tmp_path: Path):
    columns = [column.label for column in studio.compare([fused, experts[0]]).columns]
    assert columns[:2] == [f"task_arithmetic {fused}", f"lora {experts[0]}"]
    folder = studio.export(fused, tmp_path / "out")
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    assert config["method"] == "task_arithmetic" and config["tasks"] == ["colours", "sizes"]
    imported = studio.import_adapter(str(folder), base=config["base_model_name_or_path"])
    assert studio.scores(imported["id"]).empty and imported["state"] == "done"


def test_a_fused_run_chats(studio: Studio, fused: str):
    with studio.chat([fused, "base"], device="cpu") as conversation:
        replies = conversation.ask("colours: thing 1 is", max_new_tokens=4)
    assert [reply.tokens > 0 for reply in replies] == [True, True]


def test_a_mixture_and_a_fused_run_are_fused_again(studio: Studio, experts: list[str], fused: str):
    run = studio.fuse([fused, experts[2]], changes={"method.options.weights": [1.0, 0.5], "name": "twice ünïcode"})
    assert list(studio.follow(run))[-1] == "finished"
    assert studio.run(run)["name"] == "twice ünïcode"


def test_conflicts_are_computed_once_and_kept(studio: Studio, experts: list[str]):
    found = studio.conflicts(experts)
    assert found.cosine.shape == (len(found.paths), 3, 3) and found.norms.shape == (len(found.paths), 3)
    assert abs(found.overall_cosine.diagonal() - 1).max() < 1e-6
    began = time.monotonic()
    assert studio.conflicts(experts).frame().equals(found.frame())
    assert time.monotonic() - began < 60


def test_every_refusal_names_the_run_and_what_to_do(
    studio: Studio, experts: list[str], base: str, data: Path, tmp_path: Path
):
    with pytest.raises(NotFoundError, match="no run 'run-99'"):
        studio.fuse([experts[0], "run-99"])
    with pytest.raises(ConfigurationError, match="named twice"):
        studio.fuse([experts[0], experts[0]])
    with pytest.raises(ConfigurationError, match="was not trained on flavours"):
        studio.fuse([f"{experts[0]}:flavours", experts[1]])
    with pytest.raises(ConfigurationError, match="Did you mean ties"):
        studio.fuse(experts[:2], method="tie")
    with pytest.raises(ConfigurationError, match="densty"):
        studio.fuse(experts[:2], method="ties", changes={"method.options.densty": 0.5})
    with pytest.raises(ConfigurationError, match="weights"):
        studio.fuse(experts[:2], changes={"method.options.weights": [1.0]})
    other = str(tiny_base(tmp_path / "other", seed=3))
    stranger = studio.submit(spec(other, data, ["colours"], train={"steps": 1, "max_length": 64, "routing_moments": 0}))
    dora = studio.submit(spec(base, data, ["colours"], method={"name": "dora", "options": {"rank": 2}}))
    for run in (stranger, dora):
        assert list(studio.follow(run))[-1] == "finished"
    with pytest.raises(ConfigurationError, match="do not add up"):
        studio.fuse([experts[0], stranger])
    with pytest.raises(ConfigurationError, match="DoRA"):
        studio.fuse([experts[0], dora])
    reasons = {run["id"]: run["reason"] for run in studio.fusable(like=experts[0])}
    assert "do not add up" in reasons[stranger] and "DoRA" in reasons[dora]
    assert reasons[experts[0]] == reasons[experts[1]] == ""


def test_what_is_fused_survives_its_sources(studio: Studio, base: str, data: Path, experts: list[str]):
    gone = studio.submit(spec(base, data, ["colours"], seed=5))
    assert list(studio.follow(gone))[-1] == "finished"
    run = studio.fuse([gone, experts[1]])
    assert list(studio.follow(run))[-1] == "finished"
    studio.delete(gone)
    found = studio.fusion(run)
    assert found.sources[0] == {"name": gone, "run": None}
    assert list(found.table["task"]) == ["colours", "sizes", "mean"]
    with pytest.raises(StudioError, match=gone):
        studio.clone(run)


def coefficients(studio: Studio, run: str) -> list:
    return [(step, frame.to_dict("records")) for step, frame in studio.tables(run, "coefficients")]


def test_a_worker_killed_while_it_learns_goes_on_and_ends_with_the_same_coefficients(
    studio: Studio, experts: list[str], base: str, data: Path
):
    settings = {"method.options.steps": 40, "method.options.evaluate_every": 10, "method.options.batch_size": 4}
    quiet = studio.fuse(experts[:2], method="adamerging", changes=settings)
    assert list(studio.follow(quiet))[-1] == "finished"
    killed = studio.fuse(experts[:2], method="adamerging", changes=settings)
    checkpoints = studio.home.run(killed).checkpoints
    deadline = time.monotonic() + 120
    while not any(checkpoints.glob("step-*")):
        assert time.monotonic() < deadline and studio.run(killed)["state"] != "failed"
        time.sleep(0.01)
    pid = worker_of(studio, killed)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    for _ in range(3):
        list(studio.follow(killed))
        if studio.run(killed)["state"] == "done":
            break
        if studio.run(killed)["state"] in ("lost", "failed", "cancelled"):
            studio.resume(killed)
    assert studio.run(killed)["state"] == "done"
    assert coefficients(studio, killed) == coefficients(studio, quiet)
    assert len(coefficients(studio, quiet)) >= 4
    names = set(studio.curves(quiet)["name"])
    assert {"loss", "entropy/colours", "entropy/sizes", f"coefficient/{experts[0]}"} <= names


def worker_of(studio: Studio, run: str) -> int | None:
    from sqlalchemy import select

    from storage.models import Attempt, Job, Run

    with studio.records.read() as session:
        query = select(Attempt.pid).join(Job, Job.id == Attempt.job_id).join(Run, Run.id == Job.run_id)
        return session.scalar(query.where(Run.slug == run, Attempt.ended.is_(None)))


def test_the_command_line_fuses_here_and_through_the_queue(
    studio: Studio, experts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    home = ["--home", str(studio.home.root)]
    assert main([*home, "fuse", *experts[:2], "--method", "average", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["method"]["title"] == "Weight averaging" and len(told["table"]) == 3
    out = tmp_path / "here"
    assert main([*home, "fuse", *experts[:2], "--method", "ties", "--here", "--out", str(out)]) == 0
    assert (out / "adapter" / "adapter_config.json").is_file()
    imported = studio.import_run(out)
    assert studio.run(imported["id"])["state"] == "done" and not studio.scores(imported["id"]).empty
    assert main([*home, "conflicts", *experts[:2], "--csv", str(tmp_path / "c.csv")]) == 0
    assert "cosine" in (tmp_path / "c.csv").read_text()
    assert main([*home, "fuse", experts[0], "run-99"]) == 1
    assert "run-99" in capsys.readouterr().err
    assert main([*home, "methods", "--fusion"]) == 0
    assert "adamerging" in capsys.readouterr().out
