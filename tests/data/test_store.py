"""Data sets are stored once, found by name or id, and give back the rows that went in."""

from __future__ import annotations

import pytest

from core.data import store as module
from core.data.store import DatasetInfo, DatasetStore
from core.errors import DataError, NotFoundError


def rows(count, start=0, **more):
    return [{"input": f"input {i}", "output": f"output {i}", **more} for i in range(start, start + count)]


@pytest.fixture
def store(tmp_path):
    return DatasetStore(tmp_path / "datasets")


def test_rows_come_back_in_all_eight_columns(store):
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    row = {"system": "s", "instruction": "do", "input": "é\n\u2028x", "output": "y", "references": ["y", "z"],
           "choices": ["y", "n"], "history": history}  # fmt: skip
    info = store.add(DatasetInfo(name="a"), {"train": {"t": [row]}, "test": {"t": rows(1)}})
    assert store.rows(info.id, "t", "train") == [{"task": "t", **row}]
    bare = store.rows(info.id, "t", "test")[0]
    assert bare["references"] == [] and bare["system"] == "" and bare["task"] == "t"


def test_a_name_means_the_content_that_was_given_it_last(store):
    old = store.add(DatasetInfo(name="a"), {"train": {"t": rows(3)}})
    new = store.add(DatasetInfo(name="a"), {"train": {"t": rows(4)}})
    assert store.find("a").id == new.id
    store.add(DatasetInfo(name="a"), {"train": {"t": rows(3)}})
    assert store.find("a").id == old.id and len(store.list()) == 2


def test_the_same_content_is_stored_once_under_both_names(store):
    first = store.add(DatasetInfo(name="a"), {"train": {"t": rows(3)}})
    second = store.add(DatasetInfo(name="b"), {"train": {"t": rows(3)}})
    assert first.id == second.id and len(store.list()) == 1
    assert store.find("b").id == store.find("a").id == store.find(first.id).id


def test_other_rows_or_another_instruction_give_another_id(store):
    base = store.add(DatasetInfo(name="a"), {"train": {"t": rows(3)}})
    other = store.add(DatasetInfo(name="a"), {"train": {"t": rows(3, start=1)}})
    task = base.tasks["t"].model_copy(update={"instruction": "Do it."})
    told = store.add(DatasetInfo(name="a", tasks={"t": task}), {"train": {"t": rows(3)}})
    assert len({base.id, other.id, told.id}) == 3


def test_slices_cross_row_groups_and_stay_inside_their_task(store, monkeypatch):
    monkeypatch.setattr(module, "ROW_GROUP", 7)
    info = store.add(DatasetInfo(name="a"), {"train": {"x": rows(20), "y": rows(30, start=100), "z": rows(5)}})
    assert [r["input"] for r in store.rows(info.id, "y", "train", 5, 12)] == [f"input {i}" for i in range(105, 117)]
    assert len(store.rows(info.id, "y", "train", 25)) == 5
    assert store.rows(info.id, "y", "train", 30) == [] == store.rows(info.id, "y", "test")
    assert store.find("a").counts == {"train": 55}


def test_an_unknown_name_is_refused_with_the_nearest_one(store):
    store.add(DatasetInfo(name="reviews"), {"train": {"t": rows(1)}})
    with pytest.raises(NotFoundError, match="no data set 'review'") as caught:
        store.find("review")
    assert "reviews" in caught.value.hint
    with pytest.raises(NotFoundError, match="no task 'u'"):
        store.rows(store.find("reviews").id, "u", "train")


@pytest.mark.parametrize("name", ["../reviews", "", ".new-1", "a/b"])
def test_a_name_is_never_a_path(store, name):
    with pytest.raises(NotFoundError):
        store.find(name)


def test_a_deleted_set_leaves_nothing(store):
    info = store.add(DatasetInfo(name="a"), {"train": {"t": rows(3)}})
    store.delete("a")
    assert store.list() == [] and list(store.root.iterdir()) == []
    with pytest.raises(NotFoundError):
        store.delete(info.id)


def test_no_rows_and_unknown_splits_are_refused(store):
    with pytest.raises(DataError, match="no rows"):
        store.add(DatasetInfo(name="a"), {"train": {"t": []}})
    with pytest.raises(DataError, match="'dev' is not a split"):
        store.add(DatasetInfo(name="a"), {"dev": {"t": rows(1)}})
