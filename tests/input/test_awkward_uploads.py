"""Every awkward file is stored with exactly its rows, or refused with place and remedy; never half."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest

from app.cli import main
from app.pages import data
from core.errors import DataError, StudioError
from core.studio import Studio
from tests.input.awkward import CASES
from tests.input.awkward.cases import Case

LEAST = 200
ALONE = {"validation": 0.0, "test": 0.0}
ROLES = ("input", "output", "label")
INTERNAL = re.compile(r"Traceback|<class|object at 0x|\bNoneType\b|site-packages|\bpydantic\b|errors\.pydantic")


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    opened = Studio(tmp_path_factory.mktemp("home"))
    known = tmp_path_factory.mktemp("known") / "known.csv"
    known.write_text("text,label\nkept,before\nand,after\n")
    opened.upload(known)
    assert opened.runs() == []  # the database is there
    yield opened
    opened.close()


def test_there_are_at_least_two_hundred():
    assert len(CASES) >= LEAST
    assert len({case.name for case in CASES}) == len(CASES)
    assert all((case.rows is None) == bool(case.refused) for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_stored_whole_or_refused(studio, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    source = case.write(tmp_path)
    before = state(studio.home.root)
    if case.rows is None:
        with pytest.raises(StudioError, match="(?s)" + case.refused) as caught:
            upload(studio, case, source)
        check_sentence(case, caught.value)
        assert state(studio.home.root) == before
    else:
        info = upload(studio, case, source)
        assert stored(studio, info) == sorted(case.rows)
        assert any(re.search(case.note, note) for note in info["notes"]) or not case.note
        new = {path.split("/")[1] for path in set(state(studio.home.root)) - set(before)}
        assert new == {info["id"]}  # one folder, and nothing half-made beside it
        studio.delete_dataset(info["id"])
        assert state(studio.home.root) == before


def upload(studio: Studio, case: Case, source: Path):
    roles = {name: value for name, value in case.options.items() if name in ROLES}
    options = {name: value for name, value in case.options.items() if name not in ROLES}
    mapping = {"mapping": roles} if roles else {}
    return studio.upload(str(source), **{**ALONE, **mapping, **options})


def check_sentence(case: Case, error: StudioError) -> None:
    assert len(error.hint) > 10 and re.search(case.remedy, error.hint), error.hint
    assert not INTERNAL.search(str(error)), str(error)
    assert len(str(error)) < 3000
    str(error).encode()  # it can be printed


def stored(studio: Studio, info) -> list[tuple[str, str]]:
    found = []
    for task, facts in info["tasks"].items():
        for split, count in facts["counts"].items():
            rows = studio.rows(info["id"], task, split, limit=count)
            found += [(row["input"], row["output"]) for row in rows]
    return sorted(found)


def state(home: Path) -> dict[str, str]:
    """Every file of a home with its content."""
    found = {}
    for folder, _, names in os.walk(home):
        for name in names:
            path = Path(folder) / name
            if not path.name.endswith(("-wal", "-shm")):
                found[str(path.relative_to(home))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


SAMPLE = [case for case in CASES if not case.options][::9]


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.name)
def test_page_and_command_line_say_the_same(studio, tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TESSERA_DATA", str(tmp_path))
    source, before = str(case.write(tmp_path)), state(studio.home.root)
    roles = studio.drafts.settings()["columns"]
    assert isinstance(data.preview_view(studio, roles, None, source, "", None), list)
    assert state(studio.home.root) == before  # a preview stores nothing
    said = data.store_view(studio, roles, None, source, "", None)[0]
    code = main(["--home", str(studio.home.root), "upload", source])
    printed = capsys.readouterr()
    if case.rows is None:
        assert code == 1 and printed.err.startswith("Error: ") and "problem" in said
        assert not INTERNAL.search(printed.err + said)
        assert state(studio.home.root) == before
    else:
        assert code == 0 and "Stored as" in said
        for info in studio.datasets():
            if info["name"] != "known":
                studio.delete_dataset(info["id"])
    assert state(studio.home.root) == before


def test_a_write_that_breaks_off_leaves_nothing_behind(studio, tmp_path, monkeypatch):
    """The second split's file fails, as on a disk that fills up."""
    path, before, written = tmp_path / "a.csv", state(studio.home.root), []

    def fails(target: Path, parts: object) -> None:
        if written:
            raise DataError("The disk is full.", "Make room.")
        written.append(target)
        target.write_bytes(b"PAR1")

    path.write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(40)))
    monkeypatch.setattr("core.data.store._write_parquet", fails)
    with pytest.raises(DataError, match="disk is full"):
        studio.upload(path)
    assert written and state(studio.home.root) == before
