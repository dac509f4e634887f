"""The Methods page without a browser: what it shows of every method, its address, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.pages import methods
from app.pages.methods import Choice
from core.adapters.methods import presets
from tests.support.seed import QuietStudio


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuietStudio]:
    made = QuietStudio(tmp_path_factory.mktemp("methods") / "home")
    yield made
    made.close()


@pytest.mark.parametrize("name", presets())
def test_every_method_is_shown_whole(studio: QuietStudio, name: str):
    shown, preset = methods.view(studio, Choice(name)), presets()[name]
    assert set(shown) == set(methods.PARTS)
    assert f"/experiment?method={name}" in shown["head"] and "Use in an experiment" in shown["head"]
    assert ("badge" in shown["head"]) == bool(preset.badge)
    assert shown["figure"]["html"].startswith("<svg") and "trainable parameters" in shown["counts"]
    assert shown["equation"].startswith("## Equation\n\n```text\n") and "When to use it" in shown["use"]
    assert "What is known" in shown["rest"] and "python app.py train" in shown["rest"]
    for option in preset.options.model_fields:
        assert f"<th>{option}</th>" in shown["options"]
    assert "<!--" not in "".join(shown[part] for part in ("equation", "use", "effects", "rest"))


def test_the_list_has_all_methods_with_their_badges(studio: QuietStudio):
    value = methods.view(studio, Choice("moa"))["list"]
    assert [one["name"] for one in value["methods"]] == list(presets()) and value["chosen"] == "moa"
    badges = {one["name"]: one["badge"] for one in value["methods"]}
    assert badges["moa"] == "interpretation" and badges["mosld"] is None
    assert "tasks always" in next(one["words"] for one in value["methods"] if one["name"] == "mtl_lora")


def test_counts_are_those_of_the_chosen_base_and_tasks(studio: QuietStudio):
    assert "13,893,632" in methods.sized(studio, Choice("mosld", "LLaMA2-7B"))["counts"]
    assert "16,845,824" in methods.sized(studio, Choice("mtl_lora", "LLaMA2-7B", 8))["counts"]
    three = methods.sized(studio, Choice("mtl_lora", "LLaMA2-7B", 3))
    assert "16,845,824" not in three["counts"] and "r * in + tasks * r * r" in three["counts"]


def test_settings_of_papers_stand_beside_what_they_print(studio: QuietStudio):
    shown = methods.view(studio, Choice("malora"))["published"]
    assert "158,859,264" in shown and "2.3 %" in shown and "MALoRA-Small" in shown
    assert "not read" in methods.view(studio, Choice("mixlora"))["published"]
    assert methods.view(studio, Choice("hydralora"))["published"] == ""


def test_the_address_names_what_is_shown_and_nothing_plain():
    assert Choice.of({}) == Choice("mosld", "", 8) and Choice().query() == "method=mosld"
    choice = Choice.of({"method": "moa", "base": "Mistral-7B", "tasks": "3"})
    assert choice.query() == "method=moa&base=Mistral-7B&tasks=3"
    for tasks, meant in (("0", 1), ("999", 32), ("-4", 8), ("many", 8), (None, 8), (12, 12)):
        assert Choice.of({"tasks": tasks}).tasks == meant


def test_what_does_not_exist_is_told_as_text(studio: QuietStudio):
    shown = methods.view(studio, Choice("<mosld>"))
    assert "&lt;mosld&gt;" in shown["head"] and "<mosld>" not in shown["head"] and shown["options"] == ""
    assert shown["list"]["methods"]


def test_a_base_without_the_projections_is_told_where_the_count_stands(studio: QuietStudio, tmp_path: Path):
    shown = methods.view(studio, Choice("mosld", str(tmp_path / "<none>")))
    assert "problem" in shown["counts"] and "&lt;none&gt;" in shown["counts"] and shown["figure"]["html"] == ""
    assert "MoSLD" in shown["head"]
