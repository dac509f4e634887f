"""A JSON file of any length is read row by row, and no refusal is worse for it."""

import gzip
import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.data import jsonfile, jsonstream
from core.data.formats import read_file
from core.data.prepare import Options, prepare
from core.errors import DataError

MIB = 2**20
ROW = {"input": 'a question, Grüße 😀 \\ "x" \n', "output": -1.5e300, "more": [None, True, {"deep": [1, 2]}]}
CALM = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

parts = st.sampled_from([*'[]{},:"0.5e-', "\n", " ", "\\u", "\\", "'", "NaN", "-Infinity", "tru", "null", "\ud83d"[:0]])
indents = st.sampled_from([None, 1])


def layouts(rows: list[dict]) -> dict[str, object]:
    return {
        "array": rows,
        "under a key": {"count": 2, "rows": rows, "next": None},
        "splits": {"train": rows, "test": rows[:1]},
        "positions": {"columns": list(ROW), "data": [list(row.values()) for row in rows]},
        "columns": {"input": ["a"] * 3, "output": ["b"] * 3},
        "keys": {"first": ROW, "second": ROW},
        "instances": {"Definition": ["Answer."], "Instances": rows},
    }


def found(path) -> list | str:
    """The rows of a file with their places, or why it has none."""
    try:
        return list(read_file(path))
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("layout", layouts([ROW]))
def test_where_the_text_is_cut_while_it_is_read_changes_nothing(tmp_path, monkeypatch, layout):
    path = tmp_path / "a.json"

    @CALM
    @given(
        chunk=st.integers(1, 40), indent=indents, at=st.none() | st.integers(0, 400), part=parts, gone=st.integers(0, 9)
    )
    def check(chunk: int, indent: int | None, at: int | None, part: str, gone: int) -> None:
        text = json.dumps(layouts([ROW, ROW, ROW])[layout], indent=indent, ensure_ascii=chunk % 2 == 0)
        text = text if at is None else text[:at] + part + text[at + gone :]
        path.write_text(text, "utf-8", newline="")
        monkeypatch.setattr(jsonstream, "_CHUNK", MIB)
        whole = found(path)
        monkeypatch.setattr(jsonstream, "_CHUNK", chunk)
        assert repr(found(path)) == repr(whole)

    check()


def test_what_is_no_json_is_refused_where_the_library_refuses_it(tmp_path, monkeypatch):
    path, seen = tmp_path / "a.json", set()
    monkeypatch.setattr(jsonstream, "_CHUNK", 7)

    @CALM
    @given(indent=indents, at=st.integers(1, 300), part=parts, gone=st.integers(0, 5))
    def check(indent: int | None, at: int, part: str, gone: int) -> None:
        text = json.dumps([ROW, ROW], indent=indent)
        text = text[:at] + part + text[at + gone :]
        path.write_text(text, "utf-8", newline="")
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            seen.add(error.msg)
            said = found(path)
            place = f"line {error.lineno}, column {error.colno}: {error.msg}."
            assert place in said or "where an object is expected" in said or "comma" in error.msg, (text, error)

    check()
    assert len(seen) > 3


def test_long_lists_of_rows_take_little_memory_wherever_they_lie(tmp_path):
    rows = ", ".join(json.dumps({"input": f"{number} " + "word " * 200, "output": "x"}) for number in range(12_000))
    assert len(rows) > 11 * MIB
    for name, text in (("a", f"[{rows}]"), ("b", f'{{"version": 1, "data": [{rows}], "end": {{}}}}')):
        (tmp_path / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), 1))
        del text
        tracemalloc.start()
        assert sum(1 for _ in read_file(tmp_path / f"{name}.json.gz")) == 12_000
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
        tracemalloc.stop()


def test_what_must_be_read_whole_has_a_limit_and_lists_of_rows_have_none(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"input": ["a question"] * 200, "output": ["b"] * 200}))
    assert len(found(path)) == 200
    monkeypatch.setattr(jsonfile, "WHOLE", 1000)
    assert "a.json holds columns or rows under keys" in found(path) and ".jsonl" in found(path)
    path.write_text(json.dumps({str(number): ROW for number in range(200)}))
    assert "a.json holds columns or rows under keys" in found(path)
    path.write_text(json.dumps({"train": [ROW] * 200, "test": [ROW]}))
    assert len(found(path)) == 201


@pytest.mark.parametrize(("name", "text"), [("a.json", '[{"x": "'), ("a.json", '[{"x": ['), ("a.jsonl", '{"x": "')])
def test_a_value_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch, name, text):
    monkeypatch.setattr(jsonstream, "WHOLE", MIB)
    (tmp_path / name).write_text(text + "1234567890123456789, " * (3 * MIB // 21))
    tracemalloc.start()
    assert f"{name}, line 1: a value of more than 1 million characters" in found(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 100 * MIB
    tracemalloc.stop()


def test_rows_of_one_line_can_be_parted(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"input": f"question {number}", "output": "x"} for number in range(50)]))
    assert prepare(path, Options()).info.counts == {"train": 36, "validation": 4, "test": 10}
