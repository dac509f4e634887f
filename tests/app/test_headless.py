"""Training without dispatcher and database, on a machine that has neither's packages, and bringing the run home."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import ConfigurationError, DataError, NotFoundError
from core.home import PROJECT
from core.studio import Studio

WITHOUT = """
import sys
from importlib.machinery import PathFinder

ABSENT = {"sqlalchemy", "alembic", "gradio", "fastapi", "uvicorn", "plotly", "matplotlib"}

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in ABSENT else PathFinder.find_spec(name, path, target)

sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
from app.cli import main
sys.exit(main(sys.argv[1:]))
"""


def headless(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """A run folder that a process without database and pages wrote."""
    folder = tmp_path_factory.mktemp("headless")
    done = headless("--home", folder / "home", "train", recipe, "--here", "--out", folder / "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "step 4: loss" in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "home" / "tessera.db").exists()
    return folder / "run"


def test_it_needs_no_database_and_writes_a_whole_run(made: Path):
    assert (made / "adapter" / "adapter_config.json").is_file()
    assert list((made / "routing").glob("*.npz")) and list((made / "predictions").glob("*.jsonl"))


def test_ctrl_c_writes_a_checkpoint_and_the_same_command_goes_on(recipe: Path, tmp_path: Path):
    command = ["--home", tmp_path / "home", "train", recipe, "--here", "--out", tmp_path / "run"]
    command += ["--set", "train.steps=2000", "--set", "train.checkpoint_every=2000"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", WITHOUT, *map(str, command)], env=environment, stderr=subprocess.PIPE, text=True
    )
    said = []
    for line in child.stderr:
        said.append(line)
        if line.startswith("step ") and not any(old.startswith("Stopping") for old in said):
            child.send_signal(signal.SIGINT)
            break
    said += child.stderr.readlines()
    assert child.wait(timeout=120) == 1 and "Traceback" not in "".join(said)
    assert "continues it" in "".join(said)
    assert list((tmp_path / "run" / "checkpoints").glob("*"))


def test_commands_that_need_the_database_say_what_is_missing(tmp_path: Path):
    done = headless("--home", tmp_path / "home", "runs", cwd=tmp_path)
    assert done.returncode == 1
    assert "which is not installed" in done.stderr and "--here" in done.stderr and "Traceback" not in done.stderr


def test_the_run_is_imported_once_and_shown_whole(made: Path, studio: Studio):
    run = studio.import_(made)
    assert (run["state"], run["imported_from"]) == ("done", str(made))
    assert studio.import_(made)["id"] == run["id"] and len(studio.runs()) == 1
    assert list(studio.curves(run["id"], names=["loss"]).step) == [1, 2, 3, 4]
    assert len(studio.scores(run["id"])) == 2
    assert not studio.routing_table(run["id"]).empty
    assert studio.compare([run["id"]], baseline="base").rows[0].cells[0].difference is not None


def test_a_second_import_brings_what_was_added_and_keeps_what_was_scored_here(
    made: Path, studio: Studio, tmp_path: Path
):
    part = tmp_path / "part"
    shutil.copytree(made, part)
    lines = (made / "events.jsonl").read_bytes().splitlines(keepends=True)
    (part / "events.jsonl").write_bytes(b"".join(lines[:6]))
    run = studio.import_run(part)
    assert run["state"] == "lost" and studio.scores(run["id"]).empty
    with studio.home.run(run["id"]).events.open("ab") as file:
        file.write(b'{"run": "x", "job": "score-here", "attempt": 1, "seq": 1, "kind": "log", "message": "local"}\n')
    (part / "events.jsonl").write_bytes(b"".join(lines))
    again = studio.import_run(part)
    assert (again["id"], again["state"]) == (run["id"], "done")
    assert len(studio.scores(run["id"])) == 2
    assert b'"local"' in studio.home.run(run["id"]).events.read_bytes()


def test_a_run_whose_data_is_not_here_can_be_seen_but_not_scored(made: Path, studio: Studio):
    run = studio.import_run(made)["id"]
    with pytest.raises(NotFoundError, match="no data set"):
        studio.score(run)


def test_another_run_in_the_folder_is_refused(made: Path, studio: Studio, recipe: Path, tmp_path: Path):
    spec = studio.read_spec(recipe, changes=["seed=5"])[0]
    with pytest.raises(ConfigurationError, match="another|other settings"):
        studio.train_here(spec, out=made)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ConfigurationError, match="holds other files"):
        studio.train_here(spec, out=tmp_path)


def test_a_folder_that_is_no_run_is_refused(studio: Studio, tmp_path: Path):
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(NotFoundError, match=r"no events\.jsonl"):
        studio.import_(tmp_path)
    (tmp_path / "events.jsonl").write_text("")
    with pytest.raises(DataError, match="not valid JSON"):
        studio.import_(tmp_path)
