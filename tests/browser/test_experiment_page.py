"""The Experiment page in a browser: tasks, a painted split, YAML, a draft that survives, one run for two clicks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.pages import data, experiment
from core.home import ASSETS
from core.studio import Studio


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A studio with the demo's tasks."""
    studio = Studio(tmp_path / "home")
    studio.upload(ASSETS / "demo", name="demo")
    studio.close()
    return tmp_path / "home"


@pytest.fixture
def opened(serve: Callable[..., str], page: Any, home: Path) -> Any:
    page.address = serve(home, data=data, experiment=experiment)
    page.goto(f"{page.address}/experiment?dataset=demo")
    page.get_by_text("Start queues one run on 4 tasks").wait_for()
    return page


def trainable(page: Any) -> int:
    return int(page.locator(".count b").inner_text().replace(",", ""))


def runs(home: Path) -> list[dict[str, Any]]:
    studio = Studio(home)
    found = studio.runs()
    studio.close()
    return found


def test_an_empty_studio_gets_its_first_tasks_in_one_click(serve: Callable[..., str], page: Any, tmp_path: Path):
    address = serve(tmp_path / "home", data=data, experiment=experiment)
    page.goto(f"{address}/experiment")
    page.get_by_text("No tasks are stored yet").wait_for()
    page.picture("experiment-empty")
    page.locator("#demo-tasks").click()
    page.get_by_text("Start queues one run on 4 tasks").wait_for()


def test_a_split_is_painted_and_counted(opened: Any):
    page = opened
    bar = page.locator("#start").bounding_box()
    assert bar["y"] + bar["height"] <= 900, "what starts the run is in sight without scrolling"
    before = trainable(page)
    page.picture("experiment-1440")
    page.locator("#grid .chip[data-side=down][data-word=unique]").click()
    page.locator("#grid [data-fill='o_proj|*']").click()
    page.locator("#method-card").get_by_text("Your own split").wait_for()
    page.wait_for_function(f"!document.querySelector('.count b').innerText.includes('{before:,}')")
    assert trainable(page) > before
    page.locator("#grid [data-cell='k_proj|0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")  # by keyboard as well
    assert page.locator("#grid [data-cell][tabindex='0']").count() == 1, "Tab stops at one cell of the grid"
    page.get_by_text("in 10 of 56 places").wait_for()  # eight layers of o_proj, one block of k_proj
    page.picture("experiment-split")


def test_a_draft_survives_a_reload(opened: Any):
    page = opened
    page.get_by_label("learning rate").fill("0.0005")
    page.get_by_label("steps", exact=True).fill("77")
    page.locator("#training .changed").nth(1).wait_for()
    page.wait_for_function("(localStorage.getItem('tessera-experiment') || '').length > 0")
    page.wait_for_timeout(1200)
    page.reload()
    page.get_by_text("Start queues one run on 4 tasks").wait_for()
    page.wait_for_function("[...document.querySelectorAll('#training input')].some(i => i.value === '77')")
    assert page.get_by_label("learning rate").input_value() == "0.0005"


def test_a_contradiction_is_said_and_start_refuses(opened: Any, home: Path):
    page = opened
    page.get_by_label("epochs", exact=True).fill("0")
    page.locator("#told .problem").get_by_text("train.epochs").wait_for()
    page.locator("#start").click()
    page.locator("#started .problem").wait_for()
    assert runs(home) == []
    page.picture("experiment-refused")
    page.get_by_label("epochs", exact=True).fill("1")
    page.locator("#started .problem").wait_for(state="detached")
    page.get_by_text("Start queues one run on 4 tasks").wait_for()


def test_a_base_that_is_not_there_is_said_and_the_page_stays(opened: Any):
    page = opened
    page.get_by_label("base model").fill("/nowhere/at/all")
    page.keyboard.press("Enter")
    page.locator("#figure .problem").get_by_text("/nowhere/at/all").wait_for()
    assert page.locator("#grid table").is_visible() and page.locator("#told .problem").is_visible()
    page.get_by_label("base model").fill("tessera-base")
    page.keyboard.press("Enter")
    page.locator("#figure svg.mixture").wait_for()
    page.get_by_text("Start queues one run on 4 tasks").wait_for()


def test_two_clicks_start_one_run_and_a_clone_shows_what_changed(opened: Any, home: Path):
    page = opened
    page.locator("#start").dblclick()
    page.locator("#started").get_by_text("In the queue").wait_for()
    page.wait_for_timeout(800)
    assert len(runs(home)) == 1
    run = runs(home)[0]["id"]
    assert page.locator("#started a").get_attribute("href") == f"/runs?run={run}"
    page.goto(f"{page.address}/experiment?clone={run}")
    page.get_by_text("The same settings as").wait_for()
    page.get_by_label("rank", exact=True).fill("4")
    page.locator("#told").get_by_text("method.options.rank").wait_for()
    page.locator("#options .changed").wait_for()
    page.picture("experiment-clone")


def test_yaml_is_read_into_the_forms(opened: Any):
    page = opened
    page.get_by_role("button", name="As YAML").click()
    editor = page.locator("#yaml .cm-content")
    editor.wait_for()
    editor.fill("tasks: [{dataset: demo, task: opinion}]\nmethod: {name: lora}\ntrain: {stepz: 3}")
    page.wait_for_timeout(300)
    page.locator("#apply").click()
    page.get_by_text("Did you mean steps?").wait_for()
    editor.fill("tasks: [{dataset: demo, task: opinion}]\nmethod: {name: lora}\ntrain: {steps: 3}")
    page.wait_for_timeout(300)
    page.locator("#apply").click()
    page.get_by_text("Start queues one run on 1 task,").wait_for()
    assert page.get_by_label("steps", exact=True).input_value() == "3"


def test_the_figure_is_saved(opened: Any):
    page = opened
    page.locator("#figure").hover()
    for kind in ("SVG", "PNG"):
        with page.expect_download() as download:
            page.locator("#figure .save-buttons").get_by_text(kind).click()
        assert download.value.suggested_filename == f"split.{kind.lower()}"


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_it_fits_a_narrow_window(opened: Any, mode: str):
    page = opened
    page.set_viewport_size({"width": 820, "height": 900})
    page.emulate_media(color_scheme=mode)
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.picture(f"experiment-820-{mode}")
