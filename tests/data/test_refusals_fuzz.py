"""Whatever a file holds, it is read or refused with an explanation; nothing else escapes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.data.formats import FORMATS
from core.data.upload import preview
from core.errors import StudioError

plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
nested = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    ["input", "output", "label", "choices", "answer", "messages", "references", "task", "split", "x"]
)
rows = st.lists(st.dictionaries(names, nested, max_size=4), max_size=5)


@pytest.fixture
def attempt(tmp_path) -> Callable[[str, bytes], None]:
    def read(name: str, content: bytes) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        try:
            preview(path)
        except StudioError as error:
            assert error.message and error.hint

    return read


SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(ending=st.sampled_from(sorted(FORMATS)), content=st.binary(max_size=200))
def test_any_bytes(attempt, ending, content):
    attempt(f"a{ending}", content)


@SETTINGS
@given(data=rows)
def test_any_rows_as_lines_and_as_an_array(attempt, data):
    attempt("a.jsonl", "\n".join(json.dumps(row) for row in data).encode())
    attempt("a.json", json.dumps(data).encode())


@SETTINGS
@given(data=nested)
def test_any_json_value(attempt, data):
    attempt("a.json", json.dumps(data).encode())


@SETTINGS
@given(data=st.lists(st.lists(st.text(max_size=6), max_size=4), max_size=6), separator=st.sampled_from(",\t;|"))
def test_any_table_of_texts(attempt, data, separator):
    attempt("a.csv", "\n".join(separator.join(cells) for cells in data).encode("utf-8", "replace"))
