"""From a path to a stored data set: splits, tasks, metadata, checks and previews."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from core.data.checks import duplicates, keys_of, overlap
from core.data.store import DatasetStore
from core.data.templates import PromptTemplate, TextEncoder
from core.data.upload import preview, preview_stored, upload
from core.errors import ConfigurationError, DataError, NotFoundError
from core.home import BUNDLED_BASE_FOLDER
from core.paths import inside


@pytest.fixture
def store(tmp_path):
    return DatasetStore(tmp_path / "datasets")


def lines(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def texts(count, start=0, **more):
    return [{"input": f"text {i}", "output": f"answer number {i}", **more} for i in range(start, start + count)]


def inputs(store, info, task, split):
    return {row["input"] for row in store.rows(info.id, task, split)}


def test_splits_are_drawn_by_seed_and_cover_every_row_once(store, tmp_path):
    path = lines(tmp_path / "news.jsonl", texts(100))
    info = upload(store, path, seed=1)
    parts = [inputs(store, info, "news", split) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [72, 8, 20]
    assert len(set().union(*parts)) == 100
    assert upload(store, path, seed=1).id == info.id != upload(store, path, seed=2).id


def test_shares_can_be_changed_or_left_out(store, tmp_path):
    path = lines(tmp_path / "news.jsonl", texts(100))
    assert upload(store, path, validation=0, test=0.5).counts == {"train": 50, "test": 50}
    assert upload(store, path, validation=0, test=0).counts == {"train": 100}
    with pytest.raises(DataError, match="test share 2"):
        upload(store, path, test=2)


def test_given_splits_are_kept_and_only_validation_is_drawn(store, tmp_path):
    lines(tmp_path / "news" / "train.jsonl", texts(50))
    lines(tmp_path / "news" / "test.jsonl", texts(10, start=50))
    info = upload(store, tmp_path / "news")
    assert info.counts == {"train": 45, "validation": 5, "test": 10}
    lines(tmp_path / "news" / "dev.jsonl", texts(7, start=80))
    assert upload(store, tmp_path / "news").counts == {"train": 50, "validation": 7, "test": 10}


def test_a_file_can_be_declared_to_be_a_split(store, tmp_path):
    a, b = lines(tmp_path / "a.jsonl", texts(30)), lines(tmp_path / "b.jsonl", texts(5, start=50))
    info = upload(store, [a, b], task="t", splits={"b.jsonl": "test"}, validation=0)
    assert info.tasks["t"].counts == {"train": 30, "test": 5}
    with pytest.raises(DataError, match="given for c.jsonl"):
        upload(store, [a, b], splits={"c.jsonl": "test"})
    with pytest.raises(DataError, match="'exam'"):
        upload(store, [a, b], splits={"b.jsonl": "exam"})


def test_one_row_can_be_trained_on_and_says_why_there_is_no_test(store, tmp_path):
    info = upload(store, lines(tmp_path / "one.jsonl", texts(1)))
    assert info.counts == {"train": 1}
    assert any("no test split was drawn" in note and "Give a file" in note for note in info.notes)


def test_two_rows_give_one_for_training_and_one_for_testing(store, tmp_path):
    assert upload(store, lines(tmp_path / "two.jsonl", texts(2))).counts == {"train": 1, "test": 1}


def test_equal_inputs_and_conversations_stay_on_one_side(store, tmp_path):
    rows = [{"input": f"Text, {i % 20}!", "output": f"answer {i}"} for i in range(100)]
    info = upload(store, lines(tmp_path / "twins.jsonl", rows), validation=0)
    sides = [inputs(store, info, "twins", split) for split in ("train", "test")]
    assert not sides[0] & sides[1] and 10 <= info.counts["test"] <= 30
    said = [
        {
            "messages": [
                {"role": role, "content": f"{role} {i} {turn}"} for turn in range(4) for role in ("user", "assistant")
            ]
        }
        for i in range(20)
    ]
    info = upload(store, lines(tmp_path / "talk.jsonl", said), validation=0)
    sides = [{text.split()[1] for text in inputs(store, info, "talk", split)} for split in ("train", "test")]
    assert not sides[0] & sides[1] and info.counts == {"train": 64, "test": 16}


def test_one_large_group_does_not_turn_the_split_over(store, tmp_path):
    rows = [{"input": "always the same", "output": f"x{i}"} for i in range(80)] + texts(20)
    info = upload(store, lines(tmp_path / "a.jsonl", rows))
    assert info.counts["train"] >= 60 and 1 <= info.counts["test"] <= 20


def test_one_file_may_hold_several_tasks(store, tmp_path):
    rows = [*texts(10, task="first"), *texts(20, task="second task")]
    info = upload(store, lines(tmp_path / "all.jsonl", rows))
    assert {name: sum(task.counts.values()) for name, task in info.tasks.items()} == {"first": 10, "second_task": 20}
    assert list(upload(store, tmp_path / "all.jsonl", task="one").tasks) == ["one"]


def test_a_shared_instruction_becomes_the_tasks_and_others_stay(store, tmp_path):
    info = upload(store, lines(tmp_path / "a.jsonl", texts(10, instruction="Do it.")))
    assert info.tasks["a"].instruction == "Do it."
    assert store.rows(info.id, "a", "train")[0]["instruction"] == ""
    rows = [{**row, "instruction": f"Do {i}."} for i, row in enumerate(texts(10))]
    info = upload(store, lines(tmp_path / "b.jsonl", rows), instruction="Never used.")
    assert store.rows(info.id, "b", "train")[0]["instruction"].startswith("Do ")


def metadata(folder: Path, entries) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tasks.json").write_text(json.dumps(entries))


def test_a_folder_of_folders_takes_facts_from_its_metadata(store, tmp_path):
    root = tmp_path / "tasks"
    pairs = [{"input": "x", "output": f"A {i} b.", "choices": [f"A {i} b.", f"B {i} a."]} for i in range(20)]
    for name, rows in {"sums": texts(20), "grammar": pairs, "extra": texts(5)}.items():
        lines(root / name / "train.jsonl", rows)
        lines(root / name / "test.jsonl", rows[:3])
    sums = {"name": "sums", "kind": "generation, a number", "instruction": "Add.", "metric": "exact match of number",
            "chance_uniform": 0.0, "trivial_baseline": 0.05, "licence": "MIT"}  # fmt: skip
    metadata(root, [sums, {"name": "grammar", "scored_as": "sentence", "trivial": 0.6}])
    info = upload(store, root)
    assert list(info.tasks) == ["sums", "grammar"] and any("extra" in note for note in info.notes)
    task = info.tasks["sums"]
    assert (task.kind, task.instruction, task.metric, task.trivial) == ("generation", "Add.", "numeric", 0.05)
    assert task.about == {"licence": "MIT"}
    assert (info.tasks["grammar"].kind, info.tasks["grammar"].trivial) == ("sentence", 0.6)
    assert upload(store, root / "sums").tasks["sums"].instruction == "Add."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"name": "a",}]', "line 1, column"),
        ('[{"instruction": "x"}]', "entry 1 has no name"),
        ('[{"name": "a", "kind": "ranking"}]', "kind 'ranking' is not known"),
        ('[{"name": "a", "metric": "beauty"}]', "names no metric"),
        ('[{"name": "a", "scored_as": "sentense"}]', "scored_as 'sentense'"),
        ('[{"name": "a", "chance": 3}]', "chance"),
        ('"a"', "list of tasks"),
    ],
)
def test_wrong_metadata_is_refused(store, tmp_path, content, words):
    lines(tmp_path / "a" / "train.jsonl", texts(5))
    (tmp_path / "a" / "tasks.json").write_text(content)
    with pytest.raises(DataError, match=words) as caught:
        upload(store, tmp_path / "a")
    assert "tasks.json" in caught.value.message and caught.value.hint


def test_a_kind_that_the_rows_cannot_serve_is_refused(store, tmp_path):
    path = lines(tmp_path / "a.jsonl", texts(10))
    with pytest.raises(DataError, match="no choices, but the kind is choice"):
        upload(store, path, kind="choice")
    with pytest.raises(ConfigurationError, match="not a kind"):
        upload(store, path, kind="ranking")


def test_labels_from_a_column_become_choices_of_every_row(store, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40)))
    info = upload(store, tmp_path / "a.csv")
    assert info.tasks["a"].kind == "classification" and info.tasks["a"].labels == ["a", "b"]
    assert store.rows(info.id, "a", "test")[0]["choices"] == ["a", "b"]


def test_duplicates_and_overlap_compare_letters_and_digits(store, tmp_path):
    lines(tmp_path / "t" / "train.jsonl", [*texts(10), {"input": "TEXT-3!", "output": "other"}])
    lines(tmp_path / "t" / "test.jsonl", [{"input": "text  7.", "output": "x"}, {"input": "new", "output": "y"}])
    seen = preview(tmp_path / "t", validation=0).tasks["t"]
    assert seen.duplicates["train"].rows == 1 and seen.duplicates["train"].conflicts == 1
    assert seen.overlap["test"].rows == 1 and seen.overlap["test"].examples == ["text  7."]
    kept = upload(store, tmp_path / "t", validation=0)
    assert kept.counts["train"] == 11 and any("1 of 2 test rows (50.0%)" in note for note in kept.notes)
    dropped = upload(store, tmp_path / "t", validation=0, drop_overlap=True)
    assert dropped.counts == {"train": 10, "test": 2} and "text 7" not in inputs(store, dropped, "t", "train")


def test_the_choices_count_with_the_input(store, tmp_path):
    rows = [{"input": "Pick.", "output": f"a{i}", "choices": [f"a{i}", f"b{i}"]} for i in range(10)]
    info = upload(store, lines(tmp_path / "a.jsonl", rows), validation=0)
    train, test = (store.table(info.id, "a", split) for split in ("train", "test"))
    assert duplicates(train, keys_of(train)).rows == 0
    assert overlap(keys_of(train), test, keys_of(test)).rows == 0


def test_a_preview_shows_the_exact_tokens_with_the_loss_mask(store, tmp_path):
    encoder = TextEncoder(BUNDLED_BASE_FOLDER)
    rows = [{"input": f"Word {i} " + "and more " * 30, "output": "the answer"} for i in range(20)]
    path = lines(tmp_path / "a.jsonl", rows)
    seen = preview(path, encoder=encoder, max_length=48, instruction="Read.").tasks["a"]
    first = seen.rows[0]
    assert first.cut > 0 and first.prompt_tokens + first.answer_tokens == 48
    assert [part.role for part in first.segments] == ["prompt", "cut", "prompt", "answer", "end"]
    assert "".join(part.text for part in first.segments if part.loss).startswith("the answer")
    assert seen.lengths["train"].truncated_share == 1.0
    whole = preview(path, encoder=encoder, max_length=None, instruction="Read.").tasks["a"].rows[0]
    text = "".join(part.text for part in whole.segments if part.role == "prompt")
    assert text == encoder.render(PromptTemplate().messages(whole.row | {"instruction": "Read."}))
    assert [part.loss for part in whole.segments] == [False, True, True]
    stored = preview_stored(store, upload(store, path, instruction="Read.").name, encoder=encoder, max_length=48)
    assert stored.tasks["a"].rows == seen.rows and stored.tasks["a"].lengths == seen.lengths


def test_a_path_that_is_not_there_names_the_nearest(store, tmp_path):
    lines(tmp_path / "reviews.jsonl", texts(2))
    with pytest.raises(NotFoundError) as caught:
        upload(store, tmp_path / "review.jsonl")
    assert "reviews.jsonl" in caught.value.hint
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data files"):
        upload(store, tmp_path / "empty")


def test_only_allowed_folders_are_read(tmp_path):
    (tmp_path / "open" / "a").mkdir(parents=True)
    (tmp_path / "open" / "link").symlink_to(tmp_path)
    assert inside(tmp_path / "open" / "a", [tmp_path / "open"]) == (tmp_path / "open" / "a").resolve()
    for outside in (tmp_path, tmp_path / "open" / ".." / "secret", tmp_path / "open" / "link"):
        with pytest.raises(DataError, match="outside the folders"):
            inside(outside, [tmp_path / "open"])


def test_a_hidden_test_split_is_left_out(store, tmp_path):
    folder = tmp_path / "glue"
    folder.mkdir()
    (folder / "train.csv").write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(20)))
    (folder / "test.csv").write_text("text,label\nhidden one,-1\nhidden two,-1\n")
    info = upload(store, folder)
    assert any("test.csv was left out" in note for note in info.notes)
    assert "hidden one" not in inputs(store, info, "glue", "test")


def test_reading_data_imports_no_torch(tmp_path):
    lines(tmp_path / "a.jsonl", texts(5))
    code = "import sys; from core.data.upload import preview; preview(sys.argv[1]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.jsonl")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
