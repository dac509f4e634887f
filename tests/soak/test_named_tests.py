"""Whatever docs/reliability.md says is tested, is: the tests that it names exist, and every complaint has an answer."""

from __future__ import annotations

import ast
import re

import pytest

from core.home import PROJECT

PAGE = (PROJECT / "docs" / "reliability.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def test_every_complaint_is_answered() -> None:
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if re.match(r"\| \d+\. ", line)]
    assert [int(row[0].split(".")[0]) for row in rows] == list(range(1, 26))
    for complaint, answer, proof in rows:
        assert "::" in proof or "not done" in answer, complaint


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_named_tests_exist(file: str) -> None:
    tree = ast.parse((PROJECT / file).read_text("utf-8"))
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert {name for own, name in NAMED if own == file} <= defined


def test_named_tests_are_found() -> None:
    assert len(NAMED) > 30
