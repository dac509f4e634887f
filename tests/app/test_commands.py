"""The command line in this process: what is printed, where, and the exit codes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli import main
from core.home import PROJECT
from core.studio import Studio
from tests.support import seed

Home = list[str]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return ["--home", str(tmp_path / "home")]


def as_json(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 0):
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_file_is_previewed_then_uploaded_then_listed_then_deleted(capsys, home: Home, colours: Path):
    seen = as_json(capsys, [*home, "upload", str(colours), "--preview"])
    assert seen["tasks"]["colours"]["info"]["kind"] == "classification"
    assert as_json(capsys, [*home, "datasets"]) == []
    stored = as_json(capsys, [*home, "upload", str(colours), "--name", "hues", "--test", "0.5"])
    assert (stored["name"], stored["counts"]["test"]) == ("hues", 45)
    assert [one["id"] for one in as_json(capsys, [*home, "datasets"])] == [stored["id"]]
    assert main([*home, "datasets", "hues"]) == 0
    assert "classification" in capsys.readouterr().out
    assert as_json(capsys, [*home, "datasets", "hues", "--delete", "--yes"]) == {"deleted": "hues"}
    assert as_json(capsys, [*home, "datasets"]) == []


def test_a_wrong_column_is_mended_by_naming_it(capsys, home: Home, tmp_path: Path):
    path = tmp_path / "odd.csv"
    path.write_text("a,b,c\n" + "".join(f"what is {i}?,note,answer {i}\n" for i in range(20)), "utf-8")
    stored = as_json(capsys, [*home, "upload", str(path), "--map", "input=a", "--map", "output=c", "--map", "label="])
    rows = Studio(home[1]).rows(stored["id"], next(iter(stored["tasks"])), "train")
    assert all(row["output"] == row["input"].replace("what is", "answer").rstrip("?") for row in rows)
    assert main([*home, "upload", str(path), "--map", "nonsense=a"]) == 1
    assert "not a role" in capsys.readouterr().err


def test_methods_come_with_their_options(capsys, home: Home):
    found = as_json(capsys, [*home, "methods"])
    assert {"lora", "mosld", "molora", "hydralora", "split"} <= {one["name"] for one in found}
    mosld = as_json(capsys, [*home, "methods", "mosld"])
    assert {"rank", "experts", "top_k"} <= {option["name"] for option in mosld["options"]}
    assert main([*home, "methods", "mosl"]) == 1
    assert "Did you mean mosld?" in capsys.readouterr().err


def test_a_split_shows_the_options_of_cells_and_words(capsys, home: Home):
    assert main([*home, "methods", "split"]) == 0
    told = capsys.readouterr().out
    for said in ("A cell:", "layers", "gate: sequence", "balance", "down: shared"):
        assert said in told


def test_overlap_duplicates_and_classes_are_said_and_overlap_can_be_dropped(capsys, home: Home, tmp_path: Path):
    for split, start, stop in (("train", 0, 40), ("test", 38, 60)):
        lines = [f"what is {i},{'odd' if i % 2 else 'even'}\n" for i in range(start, stop)]
        (tmp_path / f"{split}.csv").write_text("text,label\n" + "".join([*lines, lines[0]]), "utf-8")
    source = [str(tmp_path / "train.csv"), str(tmp_path / "test.csv")]
    options = ["--validation", "0", "--name", "numbers"]
    assert main([*home, "upload", *source, *options, "--preview"]) == 0
    told = capsys.readouterr().out
    assert "are also trained on" in told and "repeat an input" in told and "even 5" in told and "{'" not in told
    whole = as_json(capsys, [*home, "upload", *source, *options])
    less = as_json(capsys, [*home, "upload", *source, *options, "--drop-overlap"])
    assert whole["counts"]["train"] - less["counts"]["train"] == 2


def test_runs_are_narrowed_by_states_that_exist(capsys, home: Home):
    assert main([*home, "runs", "--state", "asleep"]) == 2
    assert "cancelled" in capsys.readouterr().err
    assert main([*home, "runs", "--state", "done"]) == 0
    assert "No run matches." in capsys.readouterr().out


def test_check_counts_parameters_and_starts_nothing(capsys, home: Home, recipe: Path):
    plans = as_json(capsys, [*home, "train", str(recipe), "--check", "--seeds", "0,1"])
    assert [plan["spec"]["seed"] for plan in plans] == [0, 1]
    assert plans[0]["trainable"] > 0 and plans[0]["tasks"] == ["colours"]
    assert as_json(capsys, [*home, "runs"]) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("train.stepz=3", "Did you mean steps?"),
        ("tasks.0.dataset=nowhere", "no data set 'nowhere'"),
        ("tasks.0.task=nowhere", "has no task 'nowhere'"),
        ("method.name=mosl", "Did you mean mosld?"),
        ("method.options.rnk=3", "rnk"),
        ("method.options.modules=[qq_proj]", "qq_proj"),
        ("model.base=/no/such/folder", "/no/such/folder"),
        ("tasks.0.metric=rouge_l", "rouge_l"),
        ("device=tpu", "cuda:0"),
        ("device=cuda:63", "this machine has"),
        ("method.options.top_k=4", "top_k is 4, but there are 3 experts"),
        ("train.evaluate_every=9", "after the last step (4)"),
        ("train=hello", "a mapping of settings is expected"),
        ("model.base=tesera-base", "Did you mean tessera-base?"),
    ],
)
def test_a_run_that_cannot_work_is_refused_before_it_is_queued(
    capsys, home: Home, recipe: Path, change: str, says: str
):
    assert main([*home, "train", str(recipe), "--detach", "--set", change]) == 1
    told = capsys.readouterr()
    assert says in told.err and "Traceback" not in told.err
    assert as_json(capsys, [*home, "runs"]) == []


def test_errors_are_json_on_request(capsys, home: Home):
    told = as_json(capsys, [*home, "scores", "run-9"], code=1)
    assert told["error"]["message"] == "There is no run 'run-9'." and told["error"]["kind"] == "configuration"


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["train"], ["train", "x.yaml", "--nonsense"], ["dispatcher", "dance"], ["runs", "--limit", "x"]],
)
def test_wrong_usage_is_two(capsys, home: Home, arguments: list[str]):
    assert main([*home, *arguments]) == 2
    assert capsys.readouterr().out == ""


def test_out_belongs_to_here(capsys, home: Home, recipe: Path, tmp_path: Path):
    assert main([*home, "train", str(recipe), "--out", str(tmp_path / "x")]) == 2


def test_deleting_asks_and_off_a_terminal_wants_yes(capsys, home: Home, colours: Path, monkeypatch):
    main([*home, "upload", str(colours)])
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main([*home, "datasets", "colours", "--delete"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert len(as_json(capsys, [*home, "datasets"])) == 1


def test_broken_yaml_names_its_line(capsys, home: Home, tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("name: x\ntasks: [\n", "utf-8")
    assert main([*home, "train", str(path), "--check"]) == 1
    assert "line 3" in capsys.readouterr().err
    assert main([*home, "train", str(tmp_path / "none.yaml"), "--check"]) == 1
    assert "no file" in capsys.readouterr().err


def test_exit_codes_reach_the_shell(tmp_path: Path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(PROJECT / "app.py"), "--home", str(tmp_path / "home"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    done, failed, usage = run("runs"), run("scores", "run-9"), run("nonsense")
    assert (done.returncode, failed.returncode, usage.returncode) == (0, 1, 2)
    assert "No runs yet" in done.stdout and failed.stdout == ""
    assert "Traceback" not in failed.stderr + usage.stderr


def test_home_is_taken_from_the_environment_too(tmp_path: Path, monkeypatch, capsys, colours: Path):
    monkeypatch.setenv("TESSERA_HOME", str(tmp_path / "by-variable"))
    assert main(["upload", str(colours)]) == 0
    assert list((tmp_path / "by-variable" / "datasets").glob("*/meta.json"))


def test_another_database_is_chosen_by_its_address(tmp_path: Path, monkeypatch, capsys, home: Home):
    monkeypatch.setenv("TESSERA_DATABASE_URL", f"sqlite:///{tmp_path / 'other.db'}")
    assert as_json(capsys, [*home, "runs"]) == []
    assert (tmp_path / "other.db").is_file() and not (tmp_path / "home" / "tessera.db").exists()
    monkeypatch.setenv("TESSERA_DATABASE_URL", "nonsense")
    assert main([*home, "runs"]) == 1
    assert "not an SQLAlchemy URL" in capsys.readouterr().err


def test_two_processes_at_once_share_one_home(capsys, tmp_path: Path, recipe: Path):
    """Both migrate the database, store the same rows and queue a run; neither is lost, nothing is stored twice."""
    home = ["--home", str(tmp_path / "home")]
    command = [sys.executable, str(PROJECT / "app.py"), *home, "train", str(recipe), "--detach", "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=200) for process in both]
    studio = Studio(home[1])
    try:
        assert [process.returncode for process in both] == [0, 0], told
        ids = {json.loads(out)["runs"][0] for out, _ in told}
        assert ids == {run["id"] for run in studio.runs()} and len(ids) == 2
        assert len(studio.datasets()) == 1
        for run in ids:
            studio.cancel(run)
        for run in ids:
            assert list(studio.follow(run))[-1].startswith(("cancelled", "finished"))
    finally:
        studio.dispatcher("stop")


def test_commands_on_a_fused_run_work_or_say_why_not(capsys, tmp_path: Path):
    seeded = seed.few(tmp_path / "home")
    studio, home = seed.QuietStudio(seeded.home), ["--home", str(seeded.home)]
    run = seed.fused(studio, seeded.dataset, [seeded.lora, seeded.molora], steps=8)
    studio.close()

    def said(*arguments: str, code: int = 0) -> str:
        assert main([*home, *arguments]) == code
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return told.err if code else told.out

    assert "fused into one constant update" in said("routing", run)
    compared = said("compare", run, seeded.lora)
    assert f"{seeded.lora}, {seeded.molora}" in compared and "train." not in compared
    assert "steps: 20" in said("clone", run, "--print", "--set", "method.options.steps=20")
    refused = said("clone", run, "--set", "train.learning_rate=0.1", code=1)
    assert "train.learning_rate is a setting of training" in refused and "method.options" in refused
    assert "average" in said("clone", run, "--set", "method.name=lora", code=1)
    path = tmp_path / "fused.yaml"
    path.write_text(said("clone", run, "--print"), "utf-8")
    assert f"a fusion of {seeded.lora}, {seeded.molora}" in said("preflight", str(path), code=1)


def test_other_sources_of_a_fused_run_bring_their_own_tasks(tmp_path: Path):
    seeded = seed.few(tmp_path / "home")
    studio = seed.QuietStudio(seeded.home)
    run = seed.fused(studio, seeded.dataset, [f"{seeded.lora}:mood", f"{seeded.molora}:topic"])
    spec = studio.cloned_spec(run, changes={"sources": [f"{seeded.lora}:mood"]})
    assert [task.task for task in spec.tasks] == ["mood"]
    assert studio.cloned_spec(run, changes={"seed": 4}).tasks == studio.cloned_spec(run).tasks
    studio.close()
