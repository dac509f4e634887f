"""Every file of the newest checkpoint, damaged in every way: the one before is taken, and that is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from core.home import RunFolder
from core.jobs.sinks import ListSink
from core.training import checkpoints
from core.training.run import _checkpoint, train_adapter
from tests.support.tiny import tiny_base
from tests.support.training import toy_spec, toy_store

FILES = ("adapter.safetensors", "best.safetensors", "state.pt", "trainer_state.json", "manifest.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    room = tmp_path_factory.mktemp("trained")
    store = toy_store(room / "datasets")
    settings = {"steps": 4, "checkpoint_every": 2, "evaluate_every": 2, "early_stopping": 9}
    spec = toy_spec(tiny_base(room / "base"), **settings)
    folder = RunFolder(room / "run").create()
    train_adapter(spec, folder, store, ListSink(), device="cpu", resume=False)
    return spec, folder


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    match how:
        case "missing":
            path.unlink()
        case "zeros":
            path.write_bytes(bytes(len(content)))
        case "bit":
            middle = len(content) // 2
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
        case _:
            path.write_bytes(content[: int(len(content) * float(how))])


@pytest.mark.parametrize("how", ["missing", "zeros", "bit", "0", "0.01", "0.5", "0.99"])
@pytest.mark.parametrize("file", FILES)
def test_the_one_before_is_taken(trained, tmp_path: Path, file: str, how: str) -> None:
    spec, made = trained
    shutil.copytree(made.root, tmp_path / "run")
    folder, sink = RunFolder(tmp_path / "run"), ListSink()
    assert [step for step, _ in checkpoints.found(folder.checkpoints)] == [2, 4]
    damage(folder.checkpoints / "step-4" / file, how)
    taken = _checkpoint(spec, folder, sink)
    assert taken is not None and taken.name == "step-2"
    (said,) = sink.of("log")
    assert said["level"] == "warning" and "step-4" in said["message"] and "going back" in said["message"]
