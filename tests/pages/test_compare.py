"""What the Compare page shows, as plain functions over a real home."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest

from app.pages import compare, compare_views
from app.pages.compare import Choice
from tests.support import seed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> seed.Seeded:
    return seed.few(tmp_path_factory.mktemp("kept") / "home")


@pytest.fixture(scope="module")
def studio(home: seed.Seeded) -> Iterator[seed.QuietStudio]:
    made = seed.QuietStudio(home.home)
    yield made
    made.close()


def shown(studio: seed.QuietStudio, choice: Choice) -> str:
    found = compare.compared(studio, choice)
    return compare_views.table(found, {})


def text(html: str) -> str:
    return re.sub(r"<[^>]+>", " ", html)


def test_an_address_is_read_and_nonsense_falls_back():
    query = {"runs": "run-1, run-2,run-1,", "baseline": "base", "seeds": "false", "x": "tokens", "every": "true"}
    assert Choice.of(query) == Choice(("run-1", "run-2"), baseline="base", seeds=False, every=True)
    assert Choice.of({}) == Choice()
    assert len(Choice.of({"runs": [f"run-{n}" for n in range(100)]}).runs) == compare.MOST


def test_seeds_are_one_column_and_can_be_taken_apart(studio, home):
    together = shown(studio, Choice(tuple(home.done)))
    assert "mosld, 3 seeds" in together and together.count("<td") == 5 * 5  # three tasks, their mean, parameters
    apart = shown(studio, Choice(tuple(home.done), seeds=False))
    assert "3 seeds" not in apart and apart.count("<th class") == 1 + 5 + 1


def test_the_best_is_marked_and_ties_are_underlined(studio, home):
    html = shown(studio, Choice(tuple(home.done)))
    mood = html[html.index("<th>mood") : html.index("<th>topic")]
    assert mood.count('class="num best"') == 1 and mood.count('class="num tie"') == 2
    assert "untouched base" in html and ">0.500<" in mood  # chance


def test_differences_are_paired_and_the_baseline_has_none(studio, home):
    html = shown(studio, Choice(tuple(home.done), baseline=home.lora))
    assert "+0.042 ± 0.073" in html and "lora run-4 on the same rows" in text(html)
    assert 'class="delta down"' in html  # the untouched base is worse beyond doubt
    assert "no paired error" not in html


def test_what_cannot_be_paired_says_so(studio, home, tmp_path):
    other = seed.few(tmp_path / "home")
    for file in (other.home / "runs" / other.molora / "predictions").iterdir():
        file.unlink()
    bare = seed.QuietStudio(other.home)
    html = shown(bare, Choice((other.lora, other.molora), baseline=other.lora))
    bare.close()
    assert html.count("no paired error") == 4 and "Score the run again" not in text(html)
    assert "There are no predictions at" in html  # as a title, beside the plain difference


@pytest.mark.parametrize(("metric", "tasks"), [("macro_f1", 2), ("bleu", 1), ("token_f1", 1)])
def test_other_metrics_can_be_chosen(studio, home, metric, tasks):
    found = compare.compared(studio, Choice(tuple(home.done), metric=metric, baseline=home.lora))
    assert [row.metric for row in found.rows] == [metric] * tasks
    assert all(cell.difference or cell is row.cells[1] for row in found.rows for cell in row.cells)


def test_only_settings_that_differ_are_shown_unless_all_are_asked_for(studio, home):
    differing = compare_views.settings(compare.compared(studio, Choice((home.lora, home.molora))), False)
    assert "method.name" in differing and "train.steps" not in differing
    choice = Choice((home.lora, home.molora), every=True)
    assert "train.steps" in compare_views.settings(compare.compared(studio, choice), True)
    same = compare_views.settings(compare.compared(studio, Choice(tuple(home.mosld))), False)
    assert "differ in nothing but their seeds" in same


def test_curves_lie_on_each_other_in_steps_or_rows(studio, home):
    runs = studio.watch.several(home.done)
    found = compare.curves(studio, Choice(tuple(home.done)), runs)
    assert [one["colour"] for one in found["series"]] == [0, 0, 0, 1, 2]
    assert found["series"][0]["points"][-1][0] == 120 and found["y"].startswith("loss")
    rows = compare.curves(studio, Choice((home.lora,), x="rows"), runs[3:4])
    assert rows["series"][0]["points"][-1][0] == 120 * 16 and rows["x"] == "training rows seen"
    assert compare.curves(studio, Choice((home.lora,), curve="no such"), runs[3:4])["series"] == []


def test_score_against_parameters_is_drawn_with_its_base(studio, home):
    svg = compare_views.cost(compare.compared(studio, Choice(tuple(home.done))))
    assert svg.count("<circle") == 3 and "untouched base" in svg and "737,280 parameters" in svg
    assert "no task" in compare_views.cost(compare.compared(studio, Choice((home.queued[0],))))


def test_names_of_points_cover_neither_points_nor_each_other(studio, home):
    close = [(300.0, 90.0), (318.0, 92.0), (330.0, 96.0), (640.0, 90.0)]
    taken = [(at - 6, height - 6, at + 6, height + 6) for at, height in close]
    for at, height in close:
        compare_views._label(at, height, 80, taken)
    for index, box in enumerate(taken):
        assert box[0] >= compare_views.LEFT and box[2] <= compare_views.W
        assert not any(compare_views._overlap(box, other) for other in taken[max(index + 1, len(close)) :])


def test_files_hold_the_same_comparison(studio, home):
    choice = Choice(tuple(home.done), baseline=home.lora)
    path = Path(compare.exported(studio, choice, "csv"))
    lines = list(csv.DictReader(path.read_text().splitlines()))
    assert len(lines) == 3 * 4 and {line["best"] for line in lines} == {"0", "1"}
    assert "\\begin{tabular}" in Path(compare.exported(studio, choice, "latex")).read_text()
    assert "<u>" in Path(compare.exported(studio, choice, "markdown")).read_text()
    assert home.home not in path.parents
    with pytest.raises(gr.Error):
        compare.exported(studio, Choice(("run-99",)), "csv")


def test_a_run_that_is_gone_is_named_with_a_way_on(studio, home):
    table, *_, figures, _ = compare.view(studio, Choice((home.lora, "run-99")))
    assert 'role="alert"' in table and "run-99" in table and figures["visible"] is False


def test_without_runs_the_page_leads_on(studio, tmp_path):
    assert "/compare?runs=run-5,run-4,run-3,run-2" in compare.nothing(studio)
    empty = seed.QuietStudio(tmp_path / "home")
    assert 'href="/"' in compare.view(empty, Choice())[0]
    empty.close()


def test_runs_without_scores_say_when_scores_come(studio, home):
    assert "No scores yet" in compare.view(studio, Choice((home.running,)))[0]


def test_a_running_run_changes_the_state_that_the_timer_looks_at(tmp_path):
    seeded = seed.few(tmp_path / "home")
    studio, choice = seed.QuietStudio(seeded.home), Choice((seeded.running, seeded.lora))
    *_, seen = compare.view(studio, choice)
    assert compare.unchanged(studio, choice, seen)
    seed.more_steps(studio, seeded.running, 60, 62)
    assert not compare.unchanged(studio, choice, seen)
    studio.close()


def test_names_from_data_are_text(studio, home):
    html = compare_views.table(compare.compared(studio, Choice((home.lora,))), {home.lora: '<img src=x onerror="a">'})
    assert "<img" not in html and "&lt;img" in html


def test_many_runs_answer_quickly(tmp_path):
    made = seed.many(tmp_path / "home", 300)
    studio = seed.QuietStudio(tmp_path / "home")
    choice = Choice(tuple(made[:10]), seeds=False)
    compare.view(studio, choice)
    began = time.process_time()
    menu = compare.runs_menu(studio, choice)
    compare.view(studio, choice)
    took = time.process_time() - began
    assert len(menu) == 300 and took < 1.5, f"{took:.3f} s"
    studio.close()
