"""The demo's tasks: reproducible, apart in train and test, balanced."""

from __future__ import annotations

import re
import string
from collections import Counter

import pytest

from core.data.store import DatasetStore
from core.data.upload import upload
from core.demo_data import DEMO, FUNCTION_WORDS, LEXICONS, generate, write


def test_the_committed_files_are_what_the_generator_writes(tmp_path):
    write(tmp_path)
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    committed = {path.relative_to(DEMO): path.read_bytes() for path in DEMO.rglob("*") if path.is_file()}
    assert written == committed
    assert sum(map(len, committed.values())) < 700_000


@pytest.mark.parametrize("task", LEXICONS)
def test_test_rows_share_no_content_word_and_no_template_with_training(task):
    splits = generate()[task]
    words = {
        split: {word for row in rows for word in re.findall(r"[a-z']+", row["input"].lower())}
        for split, rows in splits.items()
    }
    assert (words["test"] & (words["train"] | words["validation"])) <= FUNCTION_WORDS
    lexicon = LEXICONS[task]
    templates = [
        {text for entries in lexicon[side].values() for text in entries if "{" in text} for side in ("train", "test")
    ]
    blank = [{_without_slots(text) for text in side} for side in templates]
    assert len(templates[0]) >= 5 and len(templates[1]) >= 4 and not blank[0] & blank[1]


def _without_slots(template: str) -> str:
    return " ".join(text.strip() for text, *_ in string.Formatter().parse(template)).lower()


def test_counts_and_balance_and_no_overlap(tmp_path):
    store = DatasetStore(tmp_path)
    info = upload(store, DEMO)
    assert not info.notes, "an overlap or a drawn split would be noted"
    assert 3 <= len(info.tasks) <= 4 and {"classification", "generation"} <= {t.kind for t in info.tasks.values()}
    for task in info.tasks.values():
        assert task.counts["test"] >= 300 and 600 <= task.counts["train"] <= 1000 and task.counts["validation"] >= 50
        assert task.instruction and task.trivial <= task.chance + 0.06
        outputs = Counter(row["output"] for row in store.rows(info.id, task.name, "test"))
        if task.kind == "classification":
            assert min(outputs.values()) > 0.7 * max(outputs.values()), outputs
