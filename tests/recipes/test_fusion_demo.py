"""The demo of every fusion method: settings that each method takes, and a table that says what was lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import ConfigurationError
from core.fusion.methods import fusion_methods, options_of
from core.schema import MethodSpec
from recipes import fusion_demo
from recipes.fusion_demo import TASKS, Outcome, expert, options, table, write_page


@pytest.mark.parametrize("name", list(fusion_methods()))
def test_every_method_takes_the_options_of_the_demo(name: str):
    method = fusion_methods()[name]
    given = options(method, 7)
    read = options_of(MethodSpec(name=name, options=given))
    assert read.form == "dense"
    if method.learns:
        assert read.steps == 7
    else:
        assert list(given) == ["form"]


def test_experts_are_plain_loras_of_one_task_each():
    found = [expert("demo", task, 5) for task in TASKS]
    assert [spec.tasks[0].task for spec in found] == list(TASKS)
    assert all((len(spec.tasks), spec.method.name, spec.train.steps) == (1, "lora", 5) for spec in found)


def test_the_table_has_a_row_for_each_method_and_the_loss_against_the_experts():
    base, own = dict.fromkeys(TASKS, 0.3), dict.fromkeys(TASKS, 0.9)
    half = dict(zip(TASKS, (0.9, 0.6, 0.3), strict=True))
    text = table(base, own, [Outcome(method, "run-9", half, 12.4) for method in fusion_methods().values()])
    rows = text.splitlines()[2:]
    assert len(rows) == 2 + len(fusion_methods())
    assert rows[0] == "| untouched base | 0.300 | 0.300 | 0.300 | 0.300 | 0.600 |  |"
    assert rows[1] == "| each task's own expert | 0.900 | 0.900 | 0.900 | 0.900 | 0.000 |  |"
    assert all(row.endswith("| 0.900 | 0.600 | 0.300 | 0.600 | 0.300 | 12 |") for row in rows[2:])


def test_only_what_stands_between_the_markers_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "fusion.md"
    monkeypatch.setattr(fusion_demo, "PAGE", page)
    mark = "<!-- demo: written by python -m recipes.fusion_demo --page -->"
    page.write_text(f"before\n{mark}\nof yesterday\n<!-- end -->\nafter\n", "utf-8")
    write_page("| of today |")
    write_page("| of today |")
    assert page.read_text("utf-8") == f"before\n{mark}\n| of today |\n<!-- end -->\nafter\n"
    page.write_text("no markers", "utf-8")
    with pytest.raises(ConfigurationError, match="no place for the table"):
        write_page("| of today |")
