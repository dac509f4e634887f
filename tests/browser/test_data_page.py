"""The Data page in a browser: an awkward file is mended, stored, opened by its link and deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.pages import data


@pytest.fixture
def awkward(tmp_path: Path) -> Path:
    """No header, the wanted text first, an id that says nothing, and the question last."""
    path = tmp_path / "awkward.tsv"
    lines = [f"answer number {i}\tid{i}\tWhat is the answer to question number {i}, please?\n" for i in range(60)]
    path.write_text("".join(lines), "utf-8")
    return path


def test_an_empty_studio_says_what_to_do_and_stores_the_demo(serve: Callable[..., str], page: Any, tmp_path: Path):
    address = serve(tmp_path / "home", data=data)
    page.goto(f"{address}/data")
    page.get_by_text("No data is stored yet").wait_for()
    page.picture("data-empty")
    page.get_by_role("button", name="Use the demo tasks").click()
    page.locator("#stored").get_by_role("link", name="demo").wait_for()
    page.locator("#stored").get_by_role("link", name="demo").click()
    page.get_by_role("heading", name="demo").wait_for()
    assert page.get_by_role("link", name="Use in an experiment").get_attribute("href") == "/experiment?dataset=demo"


def test_an_awkward_file_is_mended_and_stored(serve: Callable[..., str], page: Any, tmp_path: Path, awkward: Path):
    address = serve(tmp_path / "home", data=data)
    page.goto(f"{address}/data")
    page.get_by_text("No data is stored yet").wait_for()
    page.set_input_files("#files input[type=file]", str(awkward))
    page.locator("#told").get_by_text("no column holds the wanted answers").wait_for()
    page.locator("#seen").get_by_text("answer number 0").first.wait_for()
    page.picture("data-refused")
    page.get_by_label("output", exact=True).select_option("column1")
    page.locator("#again").click()
    page.locator("#seen .learnt").get_by_text("answer number").first.wait_for()
    page.locator("#seen").get_by_text("has no header line").wait_for()
    page.picture("data-mended")
    page.locator("#set-name textarea, #set-name input").fill("mended <b>")
    page.locator("#store").click()
    page.get_by_text("Stored as").wait_for()
    page.locator("#stored").get_by_role("link", name="mended <b>").wait_for()


def test_a_link_opens_the_same_rows_and_deletion_asks_first(
    serve: Callable[..., str], page: Any, studio_home: Any, tmp_path: Path
):
    address = serve(tmp_path / "own", data=data)
    page.goto(f"{address}/data")
    page.get_by_role("button", name="Use the demo tasks").click()
    page.get_by_text("Stored as").wait_for()
    page.goto(f"{address}/data?dataset=demo&task=subject&split=test&part=2")
    page.get_by_text("rows 20 to 39 of 300").wait_for()
    page.get_by_role("button", name="Later").click()
    page.get_by_text("rows 40 to 59 of 300").wait_for()
    page.wait_for_function("location.search.includes('part=3')")
    page.reload()
    page.get_by_text("rows 40 to 59 of 300").wait_for()
    page.locator("#prompts").click()
    page.locator(".learnt").first.wait_for()
    page.picture("data-detail")
    page.locator("#delete").click()
    page.locator("#sure").click()
    page.get_by_text("demo was deleted").wait_for()


def test_a_set_that_runs_use_is_not_deleted(serve: Callable[..., str], page: Any, studio_home: Any):
    address = serve(studio_home.home, data=data)
    page.goto(f"{address}/data?dataset={studio_home.dataset}")
    page.locator("#delete").click()
    page.locator("#sure").click()
    page.get_by_text("Delete those runs first").wait_for()
    words, button = (page.locator(one).bounding_box() for one in ("#delete-refused .problem", "#delete"))
    assert 0 < words["y"] - button["y"] < 120, "the refusal stands where the button was pressed"


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_it_fits_a_narrow_window(serve: Callable[..., str], page: Any, studio_home: Any, mode: str):
    page.set_viewport_size({"width": 820, "height": 900})
    page.emulate_media(color_scheme=mode)
    address = serve(studio_home.home, data=data)
    page.goto(f"{address}/data")
    page.locator("#stored table").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.picture(f"data-820-{mode}")
