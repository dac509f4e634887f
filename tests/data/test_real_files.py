"""Real files as published, where they are at hand (``TESSERA_TEST_DATA``, or ``../shared/data``)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.data.store import DatasetStore
from core.data.upload import upload

ROOT = Path(os.environ.get("TESSERA_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
TASKS = ROOT / "tasks"
pytestmark = pytest.mark.skipif(not TASKS.is_dir(), reason=f"no task files in {TASKS}; set TESSERA_TEST_DATA")


@pytest.mark.parametrize(
    ("name", "kind", "rows", "labels"),
    [
        ("banking77", "classification", 13083, 77),
        ("openbookqa_alpaca_train.json", "classification", 4957, 4),
        ("natural_instructions_task639.json", "generation", 142, 0),
        ("sharegpt_identity.json", "generation", 1000, 0),
        ("query_wellformed_train.tsv", "classification", 17500, None),
        ("dialogues_messages.jsonl", "generation", None, 0),
        ("snips.parquet", "classification", 3445, 7),
    ],
)
def test_awkward_files_are_read_whole(tmp_path, name, kind, rows, labels):
    info = upload(DatasetStore(tmp_path), TASKS / "awkward" / name)
    (task,) = info.tasks.values()
    assert task.kind == kind and set(task.counts) == {"train", "validation", "test"}
    assert rows is None or sum(task.counts.values()) == rows
    assert labels is None or len(task.labels) == labels


@pytest.mark.parametrize(
    ("name", "kind", "metric", "trivial"),
    [
        ("boolq", "classification", "accuracy", 0.637),
        ("openbookqa", "choice", "accuracy", 0.362),
        ("blimp_a", "sentence", "accuracy", 0.538),
        ("svamp", "generation", "numeric", 0.0567),
        ("e2e_nlg", "generation", "bleu", 0.0),
        ("snips_slot", "generation", "exact_match", 0.0259),
    ],
)
def test_task_folders_take_their_facts_from_the_folder_above(tmp_path, name, kind, metric, trivial):
    info = upload(DatasetStore(tmp_path), TASKS / name)
    task = info.tasks[name]
    assert (task.kind, task.metric, task.trivial) == (kind, metric, trivial) and task.instruction
    assert task.about["licence"]
