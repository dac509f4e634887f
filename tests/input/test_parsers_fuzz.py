"""Whatever a file or a text holds, its parser reads it or says in a sentence why not; nothing else escapes."""

from __future__ import annotations

import gzip
import io
import json
import string
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import overrides, pipelines, yaml_text
from core.adapters.folders import read_config
from core.adapters.methods import resolve
from core.data.formats import read_file
from core.data.mapping import ROLES, detect
from core.data.metadata import read_metadata
from core.data.templates import PromptTemplate
from core.data.upload import preview
from core.errors import StudioError
from core.fusion_plan import find_source
from core.schema import RunSpec
from core.transfer import import_adapter, import_run

QUICK, MANY = 12, 500
CALM = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
texts = st.text(st.characters(codec=None), max_size=12)  # halves of surrogate pairs too
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
anything = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)
SPEC = {
    "name": "one", "tasks": [{"dataset": "d", "template": {"user": "{input}"}}], "train": {"steps": 3, "warmup": 0.1},
    "method": {"name": "mosld", "options": {"experts": 4, "top_k": 2}}, "model": {"base": "tessera-base"},
    "tags": ["a"],
}  # fmt: skip
YAML = "name: one\ntasks:\n- {dataset: d, test_rows: 5}\nmethod: {name: lora, options: {rank: 4}}\ntrain: {steps: 3}\n"
ROWS = [{"input": f"text {i}", "output": f"answer {i}", "split": "train", "choices": None} for i in range(4)]
TABLE = "text,label\n" + "".join(f'"text, {i}",{i % 2}\n' for i in range(6))


def parquet(table: pa.Table) -> bytes:
    into = io.BytesIO()
    pq.write_table(table, into)
    return into.getvalue()


GOOD = {
    "a.csv": TABLE.encode(), "a.tsv": TABLE.replace(",", "\t").encode("utf-16"), "a.json": json.dumps(ROWS).encode(),
    "a.jsonl": "\n".join(map(json.dumps, ROWS)).encode(), "a.csv.gz": gzip.compress(TABLE.encode()),
    "a.parquet": parquet(pa.table({"input": ["x", "y"], "output": ["1", "2"]})),
}  # fmt: skip


@pytest.fixture(
    params=[QUICK, pytest.param(MANY, marks=[pytest.mark.long, pytest.mark.timeout(1500)])], ids=["quick", "many"]
)
def tries(request, tmp_path) -> Callable[..., None]:
    """Calls a check with drawn values; StudioErrors with a sentence are what it may raise."""

    def run(check: Callable[..., Any], **drawn: Any) -> None:
        @settings(max_examples=request.param, deadline=None, suppress_health_check=CALM, database=None)
        @given(**drawn)
        def body(**values: Any) -> None:
            try:
                check(**values)
            except StudioError as error:
                assert error.message
                str(error).encode()
                assert len(str(error)) < 20_000

        body()

    return run


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A good file with a few places cut, doubled, overwritten or filled in."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(found)))
        upto = min(len(found), at + draw(st.integers(0, 9)))
        kept = bytes(found[at:upto])
        found[at:upto] = draw(
            st.sampled_from([b"", kept * 2, b"\0", b'"', b"\n", b"{", b",", b"\xff"]) | st.binary(max_size=5)
        )
    return bytes(found)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_with_damage(tries, tmp_path, name):
    path = tmp_path / name

    def check(content: bytes) -> None:
        path.write_bytes(content)
        preview(path)

    tries(check, content=damaged(GOOD[name]))


values = st.sampled_from([
    pa.array(["x", None]), pa.array([1, None]), pa.array([1.5, float("nan")]), pa.array([b"x", b"\xff"]), pa.nulls(2),
    pa.array([[1], []]), pa.array([{"role": "user", "content": "x"}] * 2), pa.array([["a", "b"], ["a"]]),
    pa.array([2**62, -(2**62)], pa.timestamp("us")), pa.array([1, 2], pa.date32()), pa.array([True, None]),
    pa.array(["x", "y"]).dictionary_encode(), pa.array([10**9] * 2, pa.duration("s")),
    pa.array([1, 2], pa.decimal128(9, 3)),
    pa.array([[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 2),
])  # fmt: skip
names = st.sampled_from(
    ["input", "output", "label", "choices", "messages", "references", "task", "split", "text", "", "x"]
)


def test_parquet_columns_of_any_type(tries, tmp_path):
    def check(columns: dict[str, pa.Array], packed: bool) -> None:
        path = tmp_path / ("a.parquet.gz" if packed else "a.parquet")
        content = parquet(pa.table(columns))
        path.write_bytes(gzip.compress(content) if packed else content)
        preview(path)

    tries(check, columns=st.dictionaries(names, values, min_size=1, max_size=5), packed=st.booleans())


def test_any_json_value_with_any_text(tries, tmp_path):
    def check(data: Any, ending: str) -> None:
        path = tmp_path / f"a{ending}"
        path.write_text(json.dumps(data), "utf-8")
        preview(path)

    rows = st.lists(st.dictionaries(names | texts, anything, max_size=5), max_size=5)
    tries(check, data=rows | anything, ending=st.sampled_from([".json", ".jsonl"]))


def test_any_text_as_a_table(tries, tmp_path):
    letters = st.text(st.sampled_from('ab1,;|\t"\n\r \x00\x1aé🙂-'), max_size=60)

    def check(text: str, ending: str, header: bool | None) -> None:
        path = tmp_path / f"a{ending}"
        path.write_bytes(text.encode())
        preview(path, header=header)

    tries(check, text=letters, ending=st.sampled_from([".csv", ".tsv"]), header=st.sampled_from([None, True, False]))


def test_any_mapping_of_columns(tries, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD["a.jsonl"])
    raw = read_file(path)
    roles = st.sampled_from([*ROLES, "label_names", "first_choice", "lable", ""])
    columns = st.sampled_from([*raw.columns, "inputs", ""])

    def check(given: Any, validation: Any, seed: Any, task: Any) -> None:
        detect(raw.columns, raw.sample(), given=given if isinstance(given, dict) else None)
        preview(path, mapping=given, validation=validation, seed=seed, task=task)

    chosen = st.dictionaries(roles, columns | st.lists(columns, max_size=2) | anything, max_size=4)
    tries(check, given=chosen | anything, validation=plain, seed=plain, task=plain)


def test_any_prompt_template(tries):
    pieces = st.lists(
        st.sampled_from(["{input}", "{", "}", "{{", "{task!r}", "{input:>9}", "{0}", "{}", "\n\n", "{input.x}"]) | texts
    )

    def check(user: list[str], row: dict[str, Any]) -> None:
        spec = RunSpec.parse({"tasks": [{"dataset": "d", "template": {"user": "".join(user)}}]})
        text = spec.tasks[0].template.messages(row)[-1]["content"]
        assert isinstance(text, str) and len(text) < 10_000

    row = st.fixed_dictionaries(
        {"input": texts, "instruction": texts, "task": texts, "choices": st.lists(texts, max_size=3)}
    )
    tries(check, user=pieces, row=row)
    with pytest.raises(ValueError, match="a name alone"):
        PromptTemplate(user="{input:>1000000000}")


def test_any_metadata(tries, tmp_path):
    path = tmp_path / "tasks.json"
    keys = st.sampled_from(["name", "kind", "labels", "metric", "chance", "trivial", "instruction", "scored_as", "x"])
    entries = st.lists(st.dictionaries(keys, anything, max_size=5), max_size=3)

    def check(data: Any) -> None:
        path.write_text(json.dumps(data), "utf-8")
        read_metadata(path)

    tries(check, data=entries | anything)
    tries(
        lambda content: (path.write_bytes(content), read_metadata(path)),
        content=damaged(b'[{"name": "a", "labels": ["x"]}]'),
    )


@st.composite
def changed(draw: st.DrawFn, value: Any = SPEC) -> Any:
    """A good run with one value somewhere replaced, or a key written otherwise."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        new = draw(st.sampled_from([key, key[:-1], key.upper(), ""]))
        return {**{k: v for k, v in value.items() if k != key}, new: draw(changed(value[key]))}
    if isinstance(value, list) and value and draw(st.booleans()):
        return [draw(changed(value[0])), *value[1:]]
    return draw(anything)


def test_any_run(tries):
    def check(data: Any) -> None:
        spec = RunSpec.parse(data)
        assert RunSpec.from_yaml(spec.to_yaml()) == spec
        resolve(spec.method)

    tries(check, data=changed())


def test_any_yaml(tries):
    letters = st.text(st.sampled_from("ab:{}[],-&*!|>'\"#%@`? \n\t01.~=<"), max_size=60)
    mutated = damaged(YAML.encode()).map(lambda content: content.decode("utf-8", "surrogateescape"))
    tries(lambda text: RunSpec.from_yaml(text), text=letters | mutated | texts)
    tries(lambda text: yaml_text.read(text), text=letters)
    tries(
        lambda text: overrides.with_seeds(RunSpec.parse(SPEC), text),
        text=st.text(st.sampled_from("0123456789,- x"), max_size=20),
    )


def test_any_override(tries):
    spec = RunSpec.parse(SPEC)
    paths = st.lists(
        st.sampled_from(["train", "steps", "tasks", "0", "-1", "9", "method", "options", "", "x", "template"]) | texts
    )
    written = st.builds(
        lambda path, sign, value: f"{'.'.join(path)}{sign}{value}", paths, st.sampled_from(["=", "", "=="]), texts
    )

    def check(assignments: list[str], known: dict[str, Any]) -> None:
        with suppress(StudioError):
            overrides.apply(spec, known)
        overrides.apply(spec, overrides.parse(assignments))

    known = st.dictionaries(paths.map(".".join), anything, max_size=3)
    tries(check, assignments=st.lists(written, max_size=3), known=known)


def test_any_name_of_a_run_or_expert(tries, tmp_path):
    letters = st.text(st.sampled_from("run-1:/.~\0\n🙂 \ud800"), max_size=12) | st.sampled_from(
        ["~nobody/x", "x" * 5000, "..", "a:b:c"]
    )

    def check(name: str) -> None:
        with suppress(StudioError):
            pipelines.expert_folder(name, tmp_path)
        find_source(name, tmp_path)

    tries(check, name=letters)


def test_any_adapter_config(tries, tmp_path, studio):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    good = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "x"}
    own = {
        "peft_type": "TESSERA",
        "method": "lora",
        "cells": [{"modules": ["q_proj"], "rank": 4}],
        "options": {"rank": 4},
    }

    def check(data: Any) -> None:
        (folder / "adapter_config.json").write_text(json.dumps(data), "utf-8")
        with suppress(StudioError):
            read_config(folder)
        import_adapter(str(folder), studio.home, studio.records, base="tessera-base")

    tries(check, data=changed(good) | changed(own))


def test_any_run_folder(tries, tmp_path, studio):
    folder = tmp_path / "run"
    folder.mkdir()
    events = "".join(
        json.dumps({"event": "status", "time": f"2026-01-01T00:00:0{i}+00:00", "job": "train", "state": "running"})
        + "\n"
        for i in range(3)
    ).encode()

    def check(data: Any, lines: bytes) -> None:
        (folder / "spec.json").write_text(json.dumps(data), "utf-8")
        (folder / "events.jsonl").write_bytes(lines)
        import_run(folder, studio.home, studio.records, studio.store, None)

    tries(check, data=changed() | st.just(SPEC), lines=damaged(events))


@pytest.fixture
def studio(tmp_path):
    from core.studio import Studio

    made = Studio(tmp_path / "home")
    yield made
    made.close()


def test_the_letters_of_names_are_all_taken(studio, tmp_path):
    """Every printable ASCII sign in a data set's name, so that no page or file chokes on one."""
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,b\nc,d\n")
    for sign in string.punctuation + string.whitespace:
        info = studio.upload(path, name=f"x{sign}y")
        assert studio.dataset(f"x{sign}y")["id"] == info["id"]
    assert len(studio.datasets()) == 1 and Path(studio.home.datasets).is_dir()
