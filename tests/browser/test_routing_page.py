"""The Routing page as a person uses it: heatmaps, cells, moments, files, and a text token by token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from app.pages import routing
from core.studio import Studio
from tests.support import seed
from tests.support.talkers import spec, talker
from tests.support.tiny import tiny_base

HEAT = "#routing-heat svg"


def cells(page: Any) -> int:
    return page.locator("#routing-heat rect[data-at]").count()


def test_a_cell_is_chosen_kept_in_the_address_and_there_again_when_opened_fresh(page, serve, studio_home):
    address = serve(studio_home.home, routing=routing)
    page.goto(f"{address}/routing?run={studio_home.molora}&projection=v_proj")
    page.wait_for_selector(HEAT)
    assert cells(page) == len(seed.TASKS) * seed.LAYERS * seed.EXPERTS
    page.picture("routing")
    page.click("#routing-heat rect[data-at='1,0,5,2']")
    page.wait_for_url(re.compile("task=mood.*layer=5&expert=2"))
    page.goto(page.url)
    page.wait_for_selector("#routing-heat rect.picked[data-at='1,0,5,2']")
    assert "mood · v_proj · layer 5 · expert 2" in page.locator("#routing-cell").first.inner_text()


def test_the_keyboard_walks_the_heatmap(page, serve, studio_home):
    address = serve(studio_home.home, routing=routing)
    page.goto(f"{address}/routing?run={studio_home.molora}&projection=q_proj")
    page.wait_for_selector(HEAT)
    page.focus(HEAT)
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    page.wait_for_url(re.compile("layer=1&expert=1"))
    page.wait_for_selector("#routing-heat rect.picked[data-at='0,0,1,1']")


def test_moments_change_colours_but_neither_scale_nor_height(page, serve, studio_home):
    address = serve(studio_home.home, routing=routing)
    page.goto(f"{address}/routing?run={studio_home.molora}")
    page.wait_for_selector(HEAT)
    before = [page.locator(HEAT).inner_html(), page.locator("#routing-heat").first.bounding_box()["height"]]
    page.locator("#routing-moment input").focus()
    page.keyboard.press("Home")
    page.wait_for_url(re.compile("moment=step-40"))
    page.wait_for_function("text => document.querySelector('#routing-heat svg').innerHTML !== text", arg=before[0])
    assert page.locator("#routing-heat").first.bounding_box()["height"] == before[1]
    assert "step 40" in page.locator("#routing-moment output").inner_text()


def test_the_numbers_stand_in_a_table_and_files_come_down(page, serve, studio_home):
    address = serve(studio_home.home, routing=routing)
    page.goto(f"{address}/routing?run={studio_home.molora}&figure=entropy")
    page.wait_for_selector(HEAT)
    page.click("#routing-heat summary")
    assert page.locator("#routing-heat .numbers tbody tr").count() == 24
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV", exact=True).click()
    text = Path(saved.value.path()).read_text("utf-8")
    assert text.startswith("role,task,layer") and saved.value.suggested_filename.endswith(".csv")
    with page.expect_download() as picture:
        page.locator("#routing-heat .save-buttons button", has_text="SVG").first.click(force=True)
    saved_as = Path(picture.value.path()).read_text("utf-8")
    assert "<svg" in saved_as and "@font-face" in saved_as, "it looks the same wherever it is opened"
    assert "Normalised entropy" in saved_as and studio_home.molora in saved_as, "it says what it shows"


def test_a_run_without_gates_says_so_and_two_runs_stand_beside_each_other(page, serve, studio_home):
    address = serve(studio_home.home, routing=routing)
    page.goto(f"{address}/routing?run={studio_home.lora}")
    page.wait_for_selector("text=there are no gates")
    page.goto(f"{address}/routing?run={studio_home.molora}&beside=run:{studio_home.mosld[0]}")
    page.wait_for_selector("#routing-heat-beside svg")
    page.set_viewport_size({"width": 820, "height": 900})
    page.emulate_media(color_scheme="dark")
    page.picture("routing-beside-820")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_a_text_is_shown_token_by_token(page, serve, tmp_path):
    base = tiny_base(tmp_path / "base")
    studio = Studio(tmp_path / "home")
    run = talker(studio, spec(base), on=base)
    address = serve(studio.home.root, routing=routing)
    try:
        page.goto(f"{address}/routing?run={run}&tab=tokens")
        page.wait_for_selector("#inspect-task input")
        page.locator("#inspect-text textarea").fill("Name the colour <b>now</b>.")
        page.click("#inspect")
        page.wait_for_selector("#inspect-strip span[data-i]", timeout=90_000)
        page.locator("#inspect-strip span[data-i='3']").click()
        page.wait_for_url(re.compile("token=3"), timeout=60_000)
        page.wait_for_selector("text=Token 4, projection by projection")
        page.picture("routing-tokens")
        assert page.locator("#inspect-strip .mount b:not(.break)").count() == 0
        page.goto(page.url)
        page.wait_for_selector("#inspect-strip span.chosen[data-i='3']", timeout=90_000)
        assert page.locator("#inspect-text textarea").input_value() == "Name the colour <b>now</b>."
        page.wait_for_selector("#inspect-route rect[data-at]")
    finally:
        studio.chats.inference.stop()
        studio.close()
