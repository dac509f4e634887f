"""How a job ends and what is said of it: done, cancelled, or failed with a class, a reason and a remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from core.data.store import DatasetStore
from core.errors import ConfigurationError, DataError
from core.home import PROJECT, RunFolder, read_json, write_json
from core.jobs.sinks import ListSink
from core.jobs.worker import describe_failure, run_job
from core.schema import RunSpec
from tests.support.training import LORA, toy_job, toy_spec, toy_store


def do(folder: Path, home: Path, spec: RunSpec, **changes: Any) -> tuple[int, ListSink]:
    sink = ListSink()
    job = read_json(toy_job(RunFolder(folder), home, spec)) | changes
    return run_job(job, sink), sink


def test_a_job_trains_and_scores(base: Path, home: Path, store: DatasetStore, tmp_path: Path):
    code, sink = do(tmp_path, home, toy_spec(base, steps=3))
    assert code == 0
    assert sink.events[-1]["kind"] == "finished" and sink.events[-1]["step"] == 3
    assert sink.of("progress")[0]["phase"] == "loading"


def test_a_finished_run_is_scored_on_another_split(base: Path, home: Path, store: DatasetStore, tmp_path: Path):
    do(tmp_path, home, toy_spec(base, steps=3))
    arguments = {"tasks": [{"dataset": "toy", "task": "colour"}], "split": "validation", "models": ["adapter", "base"]}
    code, sink = do(tmp_path, home, toy_spec(base, steps=3), kind="score", job="score-1", arguments=arguments)
    assert code == 0, sink.of("failed")
    scores = {(event["task"], event["split"], event["model"]) for event in sink.of("score")}
    assert scores == {("colour", "validation", "adapter"), ("colour", "validation", "base")}


def test_a_cancelled_job_says_at_which_step(base: Path, home: Path, store: DatasetStore, tmp_path: Path):
    sink = ListSink()
    sink.stop = True
    job = read_json(toy_job(RunFolder(tmp_path), home, toy_spec(base)))
    assert run_job(job, sink) == 3
    assert sink.events[-1]["kind"] == "cancelled" and sink.events[-1]["step"] == 1
    assert sink.of("checkpoint")[0]["step"] == 1


def test_an_unknown_data_set_is_configuration(base: Path, home: Path, store: DatasetStore, tmp_path: Path):
    spec = RunSpec.parse(toy_spec(base).model_dump(mode="json") | {"tasks": [{"dataset": "toi"}]})
    code, sink = do(tmp_path, home, spec)
    failed = sink.of("failed")[0]
    assert code == 1 and failed["failure"] == "configuration" and "toy" in failed["hint"]


def test_unknown_modules_are_configuration(base: Path, home: Path, store: DatasetStore, tmp_path: Path):
    code, sink = do(tmp_path, home, toy_spec(base, LORA | {"options": {"modules": ["q_prj"]}}))
    failed = sink.of("failed")[0]
    assert code == 1 and failed["failure"] == "configuration" and "q_prj" in failed["message"] and failed["hint"]


def test_a_task_without_rows_is_data(base: Path, tmp_path: Path):
    toy_store(tmp_path / "home" / "datasets", {"test": 2})
    code, sink = do(tmp_path / "run", tmp_path / "home", toy_spec(base))
    failed = sink.of("failed")[0]
    assert code == 1 and failed["failure"] == "data" and "no training rows" in failed["message"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_memory(
    base: Path, home: Path, store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    """Raised from the middle of a forward pass, as a device does."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(LlamaMLP, "forward", fails)
    code, sink = do(tmp_path, home, toy_spec(base))
    failed = sink.of("failed")[0]
    assert code == 1 and failed["failure"] == "memory"
    for setting in ("batch_size", "max_length", "activation_checkpointing"):
        assert setting in failed["hint"]


def test_a_fault_of_the_program_keeps_the_end_of_its_traceback(
    base: Path, home: Path, store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from core.training.loss import AnswerHead

    def fails(*_: Any) -> None:
        raise KeyError("logits")

    monkeypatch.setattr(AnswerHead, "losses", fails)
    code, sink = do(tmp_path, home, toy_spec(base))
    failed = sink.of("failed")[0]
    assert code == 1 and failed["failure"] == "internal" and "KeyError" in failed["message"]
    assert "test_worker.py" in failed["tail"]


def test_errors_for_people_keep_their_words():
    failure = describe_failure(DataError("Row 3 has no output.", "Fill it in."))
    assert (failure["failure"], failure["message"], failure["hint"]) == ("data", "Row 3 has no output.", "Fill it in.")
    assert describe_failure(ConfigurationError("x"))["failure"] == "configuration"


def test_an_error_that_explains_itself_brings_its_cause_and_no_traceback():
    alone, caused = DataError("Row 3 has no output."), DataError("No file.")
    caused.__cause__ = FileNotFoundError("x.csv")
    for error, tail in ((alone, ""), (caused, "FileNotFoundError: x.csv")):
        try:
            raise error
        except DataError as raised:
            assert describe_failure(raised)["tail"] == tail


def test_a_spec_that_does_not_validate_is_configuration(base: Path, home: Path, tmp_path: Path):
    folder = RunFolder(tmp_path)
    job = read_json(toy_job(folder, home, toy_spec(base)))
    write_json(folder.spec, {"tasks": [{"dataset": "toy"}], "train": {"step": 3}})
    sink = ListSink()
    assert run_job(job, sink) == 1
    assert sink.of("failed")[0]["failure"] == "configuration" and "steps" in sink.of("failed")[0]["hint"]


def test_the_command_says_how_it_is_used():
    done = subprocess.run([sys.executable, "-m", "core.jobs.worker"], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 2 and "usage" in done.stderr
