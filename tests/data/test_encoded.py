"""Ids of rows are kept on disk for later runs, and are those that the encoder makes."""

from __future__ import annotations

import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core.data import encoded
from core.data.batches import TaskDataset
from core.data.encoded import EncodedRows
from core.data.sampling import MixtureSampler
from core.data.store import DatasetInfo, DatasetStore
from core.data.tasks import Task, load_tasks
from core.data.templates import TextEncoder
from core.home import BUNDLED_BASE_FOLDER
from core.schema import TaskSpec
from core.training.plan import WINDOW, LengthOrder, RunOrder
from tests.support.training import toy_store


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return toy_store(tmp_path / "datasets")


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(BUNDLED_BASE_FOLDER)


def tasks(store: DatasetStore, seed: int = 0, **spec: object) -> list[Task]:
    return load_tasks(store, [TaskSpec(dataset="toy", **spec)], seed)


def files(store: DatasetStore) -> list[Path]:
    return sorted(store.tokens.glob("*"))


@pytest.mark.parametrize("style", ["chat", "plain", "none"])
@pytest.mark.parametrize("length", [None, 9])
def test_kept_rows_are_the_encoded_ones(store: DatasetStore, encoder: TextEncoder, style: str, length: int | None):
    given = tasks(store, template={"style": style})
    fresh = TaskDataset(given, encoder, "train", length)
    wanted = [fresh[index] for index in range(len(fresh))]
    assert not fresh.kept and files(store) == []
    fresh.keep()
    later = TaskDataset(given, encoder, "train", length)
    assert later.kept and len(files(store)) == 2
    assert [later[index] for index in range(len(later))] == wanted == [fresh[index] for index in range(len(fresh))]


def test_a_kept_file_is_read_without_encoding(store: DatasetStore, encoder: TextEncoder, monkeypatch):
    rows = EncodedRows(tasks(store)[0], encoder, "train")
    rows.keep()
    monkeypatch.setattr(TextEncoder, "encode", None)
    monkeypatch.setattr(Task, "rows", None)
    again = EncodedRows(tasks(store)[0], encoder, "train")
    again.keep()
    assert again[3] == rows[3] and len(again) == 48


def test_what_changes_the_ids_changes_the_file(store: DatasetStore, encoder: TextEncoder):
    def path(max_length: int = 64, split: str = "train", seed: int = 0, **spec: object) -> Path:
        return EncodedRows(tasks(store, seed, **spec)[0], encoder, split, max_length).path

    others = [
        path(32), path(split="test"), path(instruction="Which colour?"), path(template={"style": "plain"}),
        path(template={"system": "Be brief."}), path(train_rows=5), path(train_rows=5, seed=1),
    ]  # fmt: skip
    assert len({path(), *others}) == 8
    assert path(seed=1) == path(), "the seed draws rows only where not all are taken"


def test_a_broken_file_is_made_again(store: DatasetStore, encoder: TextEncoder):
    rows = EncodedRows(tasks(store)[0], encoder, "train")
    rows.keep()
    wanted, (file,) = rows[0], files(store)
    file.write_bytes(file.read_bytes()[:100])
    again = EncodedRows(tasks(store)[0], encoder, "train")
    assert not again.kept and again[0] == wanted
    again.keep()
    assert EncodedRows(tasks(store)[0], encoder, "train").kept


def test_workers_that_begin_together_leave_one_file(store: DatasetStore, encoder: TextEncoder):
    def keep(_: int) -> list[int]:
        rows = EncodedRows(tasks(store)[0], TextEncoder(BUNDLED_BASE_FOLDER), "train")
        rows.keep()
        return rows[7].ids

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(keep, range(4)))
    assert found == [found[0]] * 4 and len(files(store)) == 1


def test_a_run_trains_where_nothing_can_be_written(store: DatasetStore, encoder: TextEncoder):
    store.tokens.parent.mkdir()
    store.tokens.write_text("in the way")
    rows = EncodedRows(tasks(store)[0], encoder, "train")
    rows.keep()
    assert rows.kept and rows[0] == EncodedRows(tasks(store)[0], encoder, "train")[0]


def test_the_files_used_longest_ago_go(store: DatasetStore, encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch):
    first = EncodedRows(tasks(store)[0], encoder, "train", 60)
    first.keep()
    os.utime(first.path, (1, 1))
    second = EncodedRows(tasks(store)[0], encoder, "train", 61)
    second.keep()
    os.utime(second.path, (2, 2))
    EncodedRows(tasks(store)[0], encoder, "train", 60)  # used again
    monkeypatch.setattr(encoded, "MOST", 2 * first.path.stat().st_size)
    third = EncodedRows(tasks(store)[0], encoder, "train", 62)
    third.keep()
    assert files(store) == sorted([first.path, third.path]) and second[0] == first[0]


def test_batches_of_like_lengths_hold_the_samples_of_their_window(store: DatasetStore, encoder: TextEncoder):
    dataset = TaskDataset(tasks(store), encoder, "train")
    lengths = [len(dataset[index]["input_ids"]) for index in range(len(dataset))]
    assert dataset.lengths.tolist() == lengths
    mixture = MixtureSampler(dataset.sizes, seed=5)
    size, samples = 4, 4 * (WINDOW + 5)
    plain, grouped = list(RunOrder(mixture, samples)), list(LengthOrder(mixture, samples, dataset.lengths, size))
    assert grouped == list(LengthOrder(mixture, samples, dataset.lengths, size)) != plain
    for start in (0, WINDOW * size):
        window = slice(start, start + WINDOW * size)
        assert sorted(grouped[window]) == sorted(plain[window])

    def padding(order: list[int]) -> int:
        batches = [[lengths[index] for index in order[i : i + size]] for i in range(0, samples, size)]
        return sum(max(batch) * size - sum(batch) for batch in batches)

    assert padding(grouped) < padding(plain) / 3


def test_a_run_of_few_samples_reads_those_alone(tmp_path: Path, encoder: TextEncoder):
    store, text = DatasetStore(tmp_path / "sets"), "word " * 100
    rows = [{"input": f"{number} {text}", "output": "x"} for number in range(4_000)]
    store.add(DatasetInfo(name="toy"), {"train": {"toy": rows}})
    task = tasks(store)[0]
    fresh, places = EncodedRows(task, encoder, "train", 16), (0, 511, 512, 3_999, 7)
    tracemalloc.start()
    found = [fresh[place] for place in places]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2 * 2**20 and not fresh.kept  # all rows at once are over 4 MB
    assert found == [encoder.encode(task.rows("train")[place], task.template, 16) for place in places]
