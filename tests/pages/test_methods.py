"""The Methods page without a browser: what it shows of every method, its address, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import app
from app.pages import (
    chat_views,
    compare_views,
    experiment_state,
    experiment_views,
    home_views,
    methods,
    routing,
    run_list,
    run_views,
)
from app.pages.methods import Choice
from core import method_facts
from core.adapters.methods import presets
from tests.support import seed
from tests.support.seed import QuietStudio

BADGE = "interpretation"


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


@pytest.fixture
def interpreted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[QuietStudio, str, str]]:
    """A studio with a finished run of a method that is an interpretation, and one of a method that is none."""
    monkeypatch.setitem(seed.PARAMETERS, "moelora", 1234)
    monkeypatch.setitem(seed.SKILL, "moelora", 0.5)
    made = QuietStudio(tmp_path / "home")
    dataset = seed.dataset(made.home.root).id
    yield made, seed.finished(made, dataset, "moelora"), seed.finished(made, dataset, "lora")
    made.close()


def test_the_badge_is_seen_wherever_a_run_of_such_a_method_is_reported(interpreted: tuple[QuietStudio, str, str]):
    studio, run, plain = interpreted
    for one, marked in ((run, True), (plain, False)):
        found = studio.run(one)
        assert (BADGE in run_views.head(found)) == marked and (BADGE in run_views.facts(found)) == marked
        assert (BADGE in home_views.recent([found])) == marked
        assert (BADGE in chat_views.pane(one, found, [])["about"]) == marked
    entries = {one["id"]: one for one in run_list.listing(studio, run_list.Filters(), run)["groups"][0]["runs"]}
    assert entries[run]["badge"] == BADGE and entries[plain]["badge"] is None
    grouped = run_list.listing(studio, run_list.Filters(seeds=True), run)["groups"]
    assert sorted(BADGE in group["title"] for group in grouped) == [False, True]


def test_the_badge_is_seen_in_comparisons_of_every_form(interpreted: tuple[QuietStudio, str, str]):
    studio, run, plain = interpreted
    found = studio.compare([run, plain])
    assert [column.badge for column in found.columns][:2] == [BADGE, None]
    assert compare_views.table(found, {}).count('class="badge"') == 1
    for form in ("text", "markdown", "latex"):
        assert f"moelora {run} [{BADGE}]" in found.render(form).replace("\\[", "[").replace("\\]", "]")
    assert found.render("csv").splitlines()[0].endswith(",badge") and BADGE in found.render("csv")
    assert BADGE not in studio.compare([plain]).render()


def test_the_badge_is_seen_on_the_command_line(interpreted: tuple[QuietStudio, str, str]):
    studio, run, plain = interpreted
    home = str(studio.home.root)
    listed = CliRunner().invoke(app, ["--home", home, "runs"]).stdout.splitlines()
    assert [f"moelora [{BADGE}]" in line for line in listed if line.startswith((run, plain))].count(True) == 1
    assert f"[{BADGE}]" in CliRunner().invoke(app, ["--home", home, "compare", run, plain]).stdout
    assert BADGE in CliRunner().invoke(app, ["methods"]).stdout


def test_the_badge_is_seen_where_a_method_is_chosen(studio: QuietStudio):
    desk = experiment_state.Desk(studio)
    assert BADGE in experiment_views.method_card(desk.methods["moa"])
    assert BADGE not in experiment_views.method_card(desk.methods["mosld"])
    assert "/methods?method=moa" in experiment_views.method_card(desk.methods["moa"])


def test_methods_without_routing_say_why(interpreted: tuple[QuietStudio, str, str]):
    studio, run, plain = interpreted
    assert studio.run(run)["unrouted"] is None and "no gates" in routing.no_routing(studio.run(plain))
    found = {name: method_facts.unrouted(name) for name in (*presets(), "base", "elsewhere")}
    assert {name for name, why in found.items() if why and "no gates" in why} == {
        "base", "lora", "rslora", "dora", "full"
    }  # fmt: skip
    assert "not recorded" in found["poly"] and found["elsewhere"] is None and found["split"] is None
