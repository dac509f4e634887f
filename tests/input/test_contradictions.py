"""Settings that cannot all be followed, or that do not fit, are refused or named before anything is queued."""

from __future__ import annotations

import pytest
import yaml

from app.cli import main
from core import capacity
from core.errors import StudioError
from core.jobs.devices import Device
from core.schema import RunSpec
from core.studio import Studio

# What is asked beside the one data set; what the refusal says; what its remedy says.
REFUSED = {
    "top_k": (
        "method: {name: mosld, options: {experts: 2, top_k: 4}}",
        "top_k is 4, but there are 2",
        "Set top_k to 2",
    ),
    "rank": (
        "method: {name: lora, options: {rank: 1024}}",
        "rank is 1024, but the projection is 256 by",
        "256 or less",
    ),
    "modules": (
        "method: {name: lora, options: {modules: [qproj]}}",
        "matches no projection|no projection 'qproj'",
        "q_proj",
    ),
    "no_modules": ("method: {name: lora, options: {modules: []}}", "method.options.modules.*at least one", "."),
    "pattern": ("method: {name: lora, options: {modules: '(.*'}}", "method.options.modules.*regular expression", "."),
    "no_match": ("method: {name: lora, options: {modules: 'encoder\\..*'}}", "matches no projection", "all-linear"),
    "layers": ("method: {name: lora, options: {layers: ['6-4']}}", "method.options.layers.*'6-4'", "."),
    "layer": ("method: {name: lora, options: {layers: [99]}}", "layer 99, but the last layer", "0 to"),
    "cells_elsewhere": ("method: {name: lora, cells: [{rank: 4}]}", "method.*cells are only read by.* split", "."),
    "validation_late": ("train: {steps: 5, evaluate_every: 9}", "validation would come at step 9, after", "more often"),
    "checkpoint_late": (
        "train: {steps: 5, checkpoint_every: 9}",
        "checkpoint would come at step 9, after",
        "more often",
    ),
    "no_validation": ("train: {steps: 9, evaluate_every: 3}", "evaluate_every is 3, but no task has valid", "Upload"),
    "early_stopping": ("train: {early_stopping: 2}", "Early stopping needs validation rows", "Upload"),
    "split": ("evaluation: {split: validation}", "no validation rows to be scored on", "train, test"),
    "bits_on_cpu": (
        "model: {quantization: 4bit}\ndevice: cpu",
        "quantization is 4bit, but the run would use|CUDA",
        ".",
    ),
    "no_gpu": ("device: cuda:7", "device is cuda:7, but this machine", "."),
    "twice": ("tasks: [{dataset: hues}, {dataset: hues}]", "listed twice", "once"),
    "no_tasks": ("tasks: []", "tasks.*at least one data set", "."),
    "unknown_set": ("tasks: [{dataset: hue}]", "There is no data set 'hue'", "hues"),
    "unknown_task": ("tasks: [{dataset: hues, task: hue}]", "has no task 'hue'", "hues"),
    "unknown_metric": ("tasks: [{dataset: hues, metric: acuracy}]", "acuracy", "accuracy"),
    "metric_of_texts": ("tasks: [{dataset: hues, metric: rouge_l}]", "rouge_l scores written answers", "accuracy"),
    "unknown_method": ("method: {name: mosdl}", "There is no method 'mosdl'", "mosld"),
    "unknown_option": ("method: {name: mosld, options: {expert: 3}}", "method.options.expert is not", "experts"),
    "unknown_base": ("model: {base: /nowhere/at/all}", "/nowhere/at/all", "."),
    "misspelt_base": ("model: {base: tesera-base}", "tesera-base", "tessera-base"),
    "template": ("tasks: [{dataset: hues, template: {user: '{inpt}'}}]", "tasks.0.template.user.*'inpt'", "."),
    "brace": ("tasks: [{dataset: hues, template: {user: '{'}}]", "tasks.0.template.user", "."),
    "key_twice": ("train: {steps: 3}\ntrain: {steps: 4}", "line 3, column 1: 'train' stands twice", "."),
    "aliases": ("tags: &a [*a]", "levels", "."),
}


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    made = Studio(tmp_path_factory.mktemp("home"))
    path = tmp_path_factory.mktemp("data") / "hues.csv"
    path.write_text("text,label\n" + "".join(f"it is {i},{('red', 'blue')[i % 2]}\n" for i in range(40)))
    made.upload(path, validation=0)
    yield made
    made.close()


def asked(more: str) -> str:
    return ("" if more.startswith("tasks:") else "tasks: [{dataset: hues}]\n") + more


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_before_anything_is_queued(studio, name):
    more, message, remedy = REFUSED[name]
    with pytest.raises(StudioError, match=f"(?s){message}") as caught:
        studio.submit(asked(more))
    assert caught.value.hint
    pytest.raises(StudioError, studio.submit, asked(more)).match(remedy)
    assert studio.runs() == [] and list(studio.home.runs.iterdir()) == []


@pytest.mark.parametrize("name", ["top_k", "rank", "key_twice", "unknown_option", "no_gpu"])
def test_the_command_line_says_so_and_leaves_with_one(studio, name, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(asked(REFUSED[name][0]))
    assert main(["--home", str(studio.home.root), "train", str(path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: ") and "Traceback" not in said and len(said.splitlines()) >= 2
    assert studio.runs() == []


@pytest.mark.parametrize(
    "arguments",
    [["train", "nowhere.yaml"], ["train", ".", "--set", "train.steps"], ["upload", "nowhere.csv"], ["logs", "run-9"],
     ["compare", "run-8", "run-9"], ["fuse", "run-8"], ["clone", "\udcff"], ["runs", "--limit", "many"], ["trian"],
     ["score", "run-1", "--split", "exam"], ["cancel", "run-99999999999999999999999"], ["methods", "\U0001f642"]],
    ids=lambda given: " ".join(given).encode("ascii", "replace").decode(),
)  # fmt: skip
def test_nonsense_on_the_command_line_leaves_with_one_or_two(studio, arguments, capsys):
    assert main(["--home", str(studio.home.root), *arguments]) in (1, 2)
    said = capsys.readouterr().err
    assert said and "Traceback" not in said
    said.encode()


def test_settings_that_bring_nothing_are_named(studio):
    notes = studio.check(RunSpec.from_yaml(asked("train: {steps: 9, epochs: 3, group_by_length: true}"))).notes
    assert any("epochs 3 is not used" in note for note in notes) and any("not packed" in note for note in notes)


@pytest.mark.parametrize(
    ("device", "memory"), [(Device("cuda:0", "Small GPU", "0", memory_gib=0.8), "0.8 GiB"), (None, "GiB")]
)
def test_what_does_not_fit_in_memory_is_told_with_the_numbers(studio, monkeypatch, device, memory):
    found = (Device("cpu", "CPU", ""),) if device is None else (device, Device("cpu", "CPU", ""))
    monkeypatch.setattr(capacity, "_devices", lambda _: found)
    if device is None:
        monkeypatch.setattr(capacity.psutil, "virtual_memory", lambda: type("M", (), {"total": 2**30})())
    large = "train: {steps: 3, batch_size: 4096, packing: false}"
    seen = studio.preflight(asked(large)).memory
    assert seen.fits is False and "does not fit" in seen.text() and memory in seen.text()
    note = next(note for note in studio.check(RunSpec.from_yaml(asked(large))).notes if "does not fit" in note)
    assert "train.batch_size" in note
    assert studio.preflight(asked("train: {steps: 3, batch_size: 1}")).memory.total < seen.total


def test_every_example_here_is_yaml_but_those_about_yaml():
    for name, (more, _, _) in REFUSED.items():
        assert name in ("aliases",) or yaml.safe_load(asked(more))["tasks"] is not None
