"""The Runs page in a browser: live, durable, and only its own run is acted on."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.pages import compare, runs
from tests.support import seed

SHIFTS = """() => { window.shifted = 0; new PerformanceObserver(list => {
  for (const one of list.getEntries()) if (!one.hadRecentInput) window.shifted += one.value; })
  .observe({ type: 'layout-shift', buffered: false }); }"""

NAMED = "name => document.querySelector('#run-name input, #run-name textarea').value === name"


def line(page: Any, run: str) -> Any:
    return page.locator(f'.runline[data-run="{run}"]')


def test_a_run_is_watched_while_it_goes_on_and_nothing_jumps(serve: Callable, studio_home: seed.Seeded, page: Any):
    address = serve(studio_home.home, runs=runs)
    page.goto(f"{address}/runs")
    page.get_by_text("step 60 of 120").wait_for()
    assert f"run={studio_home.running}" in page.url
    assert page.get_by_text("Safe to close this tab").is_visible()
    page.wait_for_timeout(1500)
    page.evaluate(SHIFTS)
    before = page.locator("#runs-curve path.smooth").first.get_attribute("d")
    studio = seed.QuietStudio(studio_home.home)
    seed.more_steps(studio, studio_home.running, 60, 75)
    studio.close()
    page.get_by_text("step 75 of 120").wait_for()
    page.wait_for_timeout(500)
    assert page.locator("#runs-curve path.smooth").first.get_attribute("d") != before
    page.wait_for_timeout(1500)
    assert page.evaluate("window.shifted") < 0.02
    page.picture("runs-light-1440")


def test_links_open_fresh_and_choices_stand_in_the_address(serve: Callable, studio_home: seed.Seeded, page: Any):
    address = serve(studio_home.home, runs=runs)
    page.goto(f"{address}/runs?run={studio_home.failed}&curve=tasks&state=failed")
    page.get_by_text("The GPU ran out of memory at step 31.").wait_for()
    assert page.locator(".runline").count() == 1 and page.locator("#runs-curve .keys button").count() == 3
    page.get_by_label("State").click()
    page.get_by_role("option", name="any").click()
    line(page, studio_home.lora).click()
    page.locator(".run-head h2", has_text=studio_home.lora).wait_for()
    page.locator(".curve-choice").get_by_text("Memory", exact=True).click()
    page.wait_for_function("location.search.includes('curve=memory')")
    page.reload()
    page.locator(".run-head h2", has_text=studio_home.lora).wait_for()
    page.locator("#runs-curve .axis", has_text="memory (GiB)").wait_for()
    page.goto(f"{address}/runs?run=run-999")
    page.get_by_text("There is no run").wait_for()
    assert page.get_by_role("button", name="Delete…").is_disabled()


def test_cancel_and_delete_ask_first(serve: Callable, studio_home: seed.Seeded, page: Any):
    address = serve(studio_home.home, runs=runs)
    page.goto(f"{address}/runs?run={studio_home.running}")
    page.get_by_text("step 60 of 120").wait_for()
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name=f"Cancel {studio_home.running}").wait_for()
    line(page, studio_home.lora).click()  # another run withdraws the question
    page.get_by_role("button", name=f"Cancel {studio_home.running}").wait_for(state="hidden")
    line(page, studio_home.running).click()
    page.locator(".run-head h2", has_text=studio_home.running).wait_for()
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name=f"Cancel {studio_home.running}").click()
    page.locator(".run-head .state.cancelling").wait_for()
    line(page, studio_home.cancelled).click()
    page.locator(".run-head h2", has_text=studio_home.cancelled).wait_for()
    page.get_by_role("button", name="Name, tags and notes").click()
    page.wait_for_function(NAMED, arg="molora on 3 tasks")
    page.get_by_role("button", name="Delete…").click()
    page.get_by_text("for good?").wait_for()
    page.get_by_role("button", name=f"Delete {studio_home.cancelled}").click()
    line(page, studio_home.cancelled).wait_for(state="detached")
    page.locator(".run-head h2", has_text=studio_home.running).wait_for()  # and the form is that of the run shown
    page.wait_for_function(NAMED, arg="mosld on 3 tasks")
    studio = seed.QuietStudio(studio_home.home)
    assert studio_home.cancelled not in [run["id"] for run in studio.runs()]
    assert studio.run(studio_home.running)["state"] == "cancelling"
    studio.close()


def test_a_run_is_resumed_annotated_and_its_bundle_saved(
    serve: Callable, studio_home: seed.Seeded, page: Any, tmp_path: Path
):
    address = serve(studio_home.home, runs=runs)
    page.goto(f"{address}/runs?run={studio_home.failed}")
    page.get_by_text("The GPU ran out of memory at step 31.").wait_for()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download bundle").click()
    saved.value.save_as(tmp_path / "bundle.zip")
    assert saved.value.suggested_filename == f"{studio_home.failed}-bundle.zip"
    assert f"{studio_home.failed}/events.jsonl" in zipfile.ZipFile(tmp_path / "bundle.zip").namelist()
    page.get_by_role("button", name="Name, tags and notes").click()
    page.get_by_label("Name").fill("smaller <b>batch</b>")
    page.get_by_label("Notes").fill("memory")
    page.get_by_role("button", name="Save", exact=True).click()
    page.locator(".run-head h2", has_text="smaller <b>batch</b>").wait_for()
    page.get_by_role("button", name="Resume").click()
    page.locator(".run-head .state.queued").wait_for()


def test_the_list_is_walked_by_keyboard_and_keeps_the_focus(serve: Callable, studio_home: seed.Seeded, page: Any):
    address = serve(studio_home.home, runs=runs)
    page.goto(f"{address}/runs")
    line(page, "run-10").wait_for()  # what is out of sight takes no focus
    line(page, "run-10").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator(".run-head h2", has_text="run-9").wait_for()
    page.wait_for_timeout(1500)
    assert page.evaluate("document.activeElement.dataset.run") == "run-9"


def test_three_hundred_runs_are_paged_and_searched(serve: Callable, crowded_home: Path, page: Any):
    address = serve(crowded_home, runs=runs)
    page.goto(f"{address}/runs")
    page.get_by_text("page 1 of 25").wait_for()
    page.get_by_role("button", name="Older runs").click()
    page.get_by_text("page 2 of 25").wait_for()
    assert page.locator(".runline").first.get_attribute("data-run") == "run-288"
    page.wait_for_function("location.search.includes('page=2')")
    page.get_by_label("Search").fill("number 17")
    page.get_by_text("11 runs match").wait_for()
    page.set_viewport_size({"width": 820, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 820


def test_an_empty_studio_leads_to_the_demo(serve: Callable, tmp_path: Path, page: Any):
    address = serve(tmp_path / "empty", runs=runs, compare=compare)
    page.goto(f"{address}/runs")
    page.get_by_role("link", name="Start the demo").wait_for()
    assert not page.locator(".runline").count()
    page.goto(f"{address}/compare")
    page.get_by_text("There is nothing to compare yet").wait_for()


def test_the_curve_of_a_fused_run_stays_chosen_beside_runs_that_have_none(
    serve: Callable, studio_home: seed.Seeded, page: Any
):
    studio = seed.QuietStudio(studio_home.home)
    fused = seed.fused(studio, studio_home.dataset, [studio_home.lora, studio_home.molora], steps=8)
    studio.close()
    page.goto(f"{serve(studio_home.home, runs=runs)}/runs?run={fused}&curve=entropy")
    page.locator("#runs-curve .axis", has_text="entropy (nats)").wait_for()
    page.locator(".curve-choice").get_by_text("Coefficients", exact=True).click()
    page.locator("#runs-curve .axis", has_text="mean coefficient").wait_for()
    assert page.get_by_role("button", name="Clone and change one thing").count() == 0
    line(page, studio_home.lora).click()
    page.locator("#runs-curve .axis", has_text="loss (nats").wait_for()
    assert page.locator(".curve-choice").get_by_text("Coefficients", exact=True).count() == 0
    line(page, fused).click()
    page.locator("#runs-curve .axis", has_text="mean coefficient").wait_for()
    link = page.get_by_role("link", name="Fuse again").get_attribute("href")
    assert link.startswith(f"/fusion?runs={studio_home.lora},{studio_home.molora}&method=adamerging")
