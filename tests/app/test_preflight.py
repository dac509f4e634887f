"""The preflight of a run: counts by component and cell, memory against a device, the speed of earlier runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.cli import main
from core import capacity, planning
from core.errors import ConfigurationError
from core.home import ASSETS, PROJECT, RunFolder
from core.jobs.devices import Device
from core.jobs.ingest import ingest_events
from core.jobs.sinks import FileSink
from core.schema import RunSpec
from core.studio import Studio
from storage.models import Attempt
from tests.support.seed import QuietStudio

SPLIT = [
    {"modules": ["q_proj"], "layers": ["0-1"], "frozen": True},
    {"modules": ["q_proj", "v_proj"], "experts": 4, "down": "shared", "gate": {"word": "token", "top_k": 2}},
    {"modules": "all-linear", "down": "unique"},
]


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    made = QuietStudio(tmp_path / "home")
    made.upload(ASSETS / "demo", name="demo")
    yield made
    made.close()


def spec(**changes: object) -> RunSpec:
    return RunSpec.parse({"tasks": [{"dataset": "demo"}], "method": {"name": "split", "cells": SPLIT}, **changes})


def test_parameters_are_those_of_the_plan_by_component_and_cell(studio: Studio):
    found = studio.preflight(spec())
    assert found.trainable == studio.check(spec()).trainable == sum(found.parts.values())
    assert found.trainable == sum(one.trainable for one in found.cells)
    assert [one.trainable == sum(one.parts.values()) for one in found.cells] == [True] * 3
    frozen, mixture, rest = found.cells
    assert frozen.frozen and frozen.projections == 2 and frozen.trainable == 0
    assert mixture.projections == 14 and mixture.parts["gate"] == 14 * 4 * 256
    assert rest.parts["gate"] == 0 and found.share == pytest.approx(found.trainable / 8_926_000, rel=0.01)


def test_an_embedding_is_a_cell_of_its_own_with_memory_for_its_table(studio: Studio):
    bare, found = (
        studio.preflight(spec(method={"name": "full", "options": options})) for options in ({}, {"embeddings": True})
    )
    assert [(one.title, one.projections) for one in found.cells] == [("all-linear", 56), ("token-embedding", 1)]
    table = found.cells[1].parts["up"]
    assert table == found.cells[1].trainable == found.trainable - bare.trainable == 8192 * 256
    grown = {name: found.memory.parts[name] - bare.memory.parts[name] for name in ("adapter", "gradients", "optimiser")}
    assert grown == {"adapter": 4 * table, "gradients": 4 * table, "optimiser": 8 * table}
    assert found.memory.parts["weights"] == bare.memory.parts["weights"]


def test_rows_are_as_long_as_they_are(studio: Studio):
    short, all_of_them = studio.preflight(spec()).memory, studio.preflight(spec(train={"max_length": 24})).memory
    assert 24 < short.tokens < 60, "the longest row of the demo, not the limit of 512"
    assert all_of_them.tokens == 24 and all_of_them.parts["activations"] < short.parts["activations"]
    assert short.fits and short.capacity > 2**30 and "does not fit" not in short.text()


def test_what_does_not_fit_is_said(studio: Studio, monkeypatch: pytest.MonkeyPatch):
    small = Device("cuda:0", "Small GPU", "0", memory_gib=0.5)
    monkeypatch.setattr(capacity, "devices", lambda: [small])
    found = studio.preflight(spec()).memory
    assert found.device == "Small GPU" and found.fits is False and "does not fit" in found.text()
    monkeypatch.setattr(planning, "list_devices", lambda: [small])
    assert any("Small GPU" in note and "Even one row" in note for note in studio.check(spec()).notes)
    monkeypatch.setattr(capacity, "devices", lambda: [replace(small, memory_gib=0.8)])
    note = next(note for note in studio.check(spec(train={"batch_size": 512})).notes if "Small GPU" in note)
    assert "Lower train.batch_size" in note and "Even one row" not in note


def test_how_many_such_runs_share_a_gpu_is_said(studio: Studio, monkeypatch: pytest.MonkeyPatch):
    gpu = Device("cuda:0", "A GPU", "0", slots=6, memory_gib=8)
    monkeypatch.setattr(capacity, "devices", lambda: [gpu])
    found = studio.preflight(spec()).memory
    assert found.together == 4 and "4 such runs at once" in found.text()
    monkeypatch.setattr(capacity, "devices", lambda: [replace(gpu, slots=1)])
    found = studio.preflight(spec()).memory
    assert found.together == 1 and "at once" not in found.text()


def test_every_cell_that_is_wrong_is_named(studio: Studio):
    cells = [SPLIT[1] | {"gate": {"word": "token", "top_k": 9}}, {"modules": ["w_proj"]}, {"modules": "all-linear"}]
    with pytest.raises(ConfigurationError, match=r"Cell 1 .*top_k is 9.*Cell 2"):
        studio.preflight(spec(method={"name": "split", "cells": cells}))
    found = studio.drafts.problems(spec(method={"name": "split", "cells": cells}).method, spec().model)
    assert [one.cell for one in found] == [1, 2] and ("q_proj", 0) in found[0].places and found[1].places == []


def trained(studio: Studio, speeds: list[float], **changes: object) -> str:
    """A finished run of this machine that went at these speeds."""
    run = studio.submit(spec(**changes))
    folder = RunFolder(studio.home.run(run).root)
    sink = FileSink(folder.events, run=run, job="train-1", attempt=1)
    sink.emit("started", step=0, device="cpu", versions={}, trainable=1, total=2)
    for step, speed in enumerate(speeds, 1):
        sink.emit("metrics", step=step, values={"tokens_per_second": speed, "memory_gib": 0.5 + step / 100})
    sink.emit("finished", step=len(speeds))
    sink.close()
    ingest_events(studio.records.database, folder)
    return run


def test_the_speed_is_that_of_earlier_runs_of_this_method(studio: Studio, monkeypatch: pytest.MonkeyPatch):
    assert studio.preflight(spec()).speed is None
    other = trained(studio, [10.0, 90.0, 100.0, 110.0], method={"name": "lora"})
    with studio.records.read() as session:
        assert session.query(Attempt).count() == 1
    found = studio.preflight(spec()).speed
    assert found.runs == [other] and found.tokens_per_second == 95 and found.method == "lora" and not found.alike
    mine = trained(studio, [40.0, 50.0, 60.0])
    found = studio.preflight(spec()).speed
    assert found.runs == [mine] and found.tokens_per_second == 50 and found.alike
    assert studio.preflight(spec(train={"activation_checkpointing": True})).speed is None, "another kind of step"
    gpu = Device("cuda:0", "Some GPU", "0", memory_gib=80)
    monkeypatch.setattr(capacity, "devices", lambda: [gpu])
    assert studio.preflight(spec()).speed is None, "another kind of device"


def test_estimate_and_peak_are_stored_with_the_run(studio: Studio):
    run = trained(studio, [1.0, 2.0, 3.0])
    found = studio.run(run)["memory"]
    assert found["estimate"] == studio.check(spec()).memory.total and found["peak"] == round(0.53 * 2**30)
    assert "estimated" in found["said"] and "measured" in found["said"] and "%" in found["said"]
    assert studio.runs()[0]["memory"] == found


def test_the_command_says_what_python_says(studio: Studio, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "run.yaml").write_text(spec().to_yaml())
    arguments = ["preflight", str(tmp_path / "run.yaml"), "--home", str(studio.home.root)]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == studio.preflight(spec()).model_dump(mode="json")
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "cell 1 (q_proj in layers 0-1): 0" in said and "by component: down" in said and "GiB" in said


def test_a_file_that_a_run_names_is_stored_first(studio: Studio, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    rows = [{"input": f"question {i}", "output": "yes" if i % 2 else "no"} for i in range(60)]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "run.yaml").write_text("tasks: [{dataset: answers.jsonl}]\nmethod: {name: lora}\n")
    assert main(["preflight", str(tmp_path / "run.yaml"), "--home", str(studio.home.root)]) == 0
    assert "trainable parameters: 65,536" in capsys.readouterr().out


def test_nothing_of_it_needs_torch():
    code = "import sys; import core.budget, core.preflight, core.drafts, core.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0


def test_the_longest_row_is_found_wherever_it_stands(studio: Studio, tmp_path: Path):
    rows = [{"input": f"short {i}", "output": "yes" if i % 2 else "no"} for i in range(6000)]
    for i in (5500, 5600, 5700):  # wherever splits are drawn, one of them is trained on
        rows[i]["input"] = f"{i}: a much longer question " * 20
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    studio.upload(tmp_path / "long.jsonl", name="long", validation=0.01, test=0.01, seed=3)
    task = spec(tasks=[{"dataset": "long"}])
    began = time.perf_counter()
    found = studio.drafts.lengths(task.tasks, task.model, 512)
    assert found.longest > 80 and found.answers < 4 and time.perf_counter() - began < 2
    assert studio.drafts.lengths(task.tasks, task.model, 40).longest == 40
