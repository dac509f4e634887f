"""Checkpoint folders: whole or absent, checked, never unpickled."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from core.training import checkpoints
from core.training.trainer import read_state


def fill(folder: Path) -> None:
    (folder / "a.txt").write_text("a")
    (folder / "b.bin").write_bytes(b"b" * 1000)


def test_a_written_checkpoint_is_whole(tmp_path: Path):
    folder = checkpoints.write(tmp_path, 7, fill, {"settings": "x"})
    assert folder.name == "step-7" and not checkpoints.defect(folder)
    assert checkpoints.facts(folder)["settings"] == "x" and checkpoints.step_of(folder) == 7


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path):
    def fails(folder: Path) -> None:
        fill(folder)
        raise OSError("no space left on device")

    checkpoints.write(tmp_path, 1, fill, {})
    with pytest.raises(OSError, match="no space"):
        checkpoints.write(tmp_path, 2, fails, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_step_that_is_written_again_replaces_the_old_one(tmp_path: Path):
    checkpoints.write(tmp_path, 1, fill, {"attempt": 1})
    checkpoints.write(tmp_path, 1, fill, {"attempt": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert checkpoints.facts(tmp_path / "step-1")["attempt"] == 2


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"files"'), "manifest.json"),
        (lambda folder: (folder / "a.txt").unlink(), "a.txt is missing"),
        (lambda folder: (folder / "b.bin").write_bytes(b"b" * 999), "999 bytes"),
        (lambda folder: (folder / "b.bin").write_bytes(b"c" * 1000), "checksum"),
    ],
)
def test_damage_is_found(tmp_path: Path, damage, says: str):
    folder = checkpoints.write(tmp_path, 1, fill, {})
    damage(folder)
    assert says in checkpoints.defect(folder)


def test_pruning_keeps_the_newest_and_drops_what_lies_ahead(tmp_path: Path):
    for step in (2, 10, 4, 6, 8):
        checkpoints.write(tmp_path, step, fill, {})
    (tmp_path / ".writing-killed").mkdir()
    checkpoints.prune(tmp_path, kept=2, after=6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-4", "step-6"]


def test_random_states_come_back(tmp_path: Path):
    cpu = torch.device("cpu")
    random.gauss(0, 1), np.random.randn(1)  # both keep a second value back
    torch.save(checkpoints.rng_state(cpu), tmp_path / "rng.pt")
    expected = random.gauss(0, 1), np.random.randn(3).tolist(), torch.rand(3).tolist(), random.random()
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    checkpoints.restore_rng(torch.load(tmp_path / "rng.pt", weights_only=True), cpu)
    assert (random.gauss(0, 1), np.random.randn(3).tolist(), torch.rand(3).tolist(), random.random()) == expected


def test_a_state_that_carries_code_is_not_opened(tmp_path: Path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"optimizer": Bomb()}, tmp_path / "state.pt")
    with pytest.raises(pickle.UnpicklingError):
        read_state(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_tensors_are_restored_in_place_and_only_where_they_fit():
    model = nn.Linear(3, 2)
    state = {name: value.clone() + 1 for name, value in checkpoints.adapter_state(model).items()}
    weight = model.weight
    checkpoints.restore_adapter(model, state)
    assert model.weight is weight and torch.equal(weight, state["weight"])
    with pytest.raises(ValueError, match="shape"):
        checkpoints.restore_adapter(model, state | {"weight": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match="other tensors"):
        checkpoints.restore_adapter(model, {"weight": state["weight"]})


def test_buffers_of_the_adapter_are_part_of_it():
    model = nn.Module()
    model.kept = nn.ModuleDict({"default": nn.BatchNorm1d(2, affine=False), "other": nn.BatchNorm1d(2, affine=False)})
    assert set(checkpoints.adapter_state(model)) == {
        "kept.default.running_mean",
        "kept.default.running_var",
        "kept.default.num_batches_tracked",
    }
