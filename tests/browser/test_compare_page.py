"""The Compare page in a browser: chosen in the address, saved as files, dark and narrow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.pages import compare
from tests.support import seed


def test_a_link_shows_the_same_comparison_again(serve: Callable, studio_home: seed.Seeded, page: Any):
    address = serve(studio_home.home, compare=compare)
    page.goto(f"{address}/compare?runs={','.join(studio_home.done)}&baseline={studio_home.lora}")
    page.locator(".compared th", has_text="mosld, 3 seeds").wait_for()
    assert page.locator(".compared td.best").count() == 4 and page.locator(".compared .delta").count() >= 12
    assert page.locator("#compare-curves path.smooth").count() == 5
    assert page.locator("#compare-cost circle").count() == 3
    page.get_by_label("Group seeds").uncheck()
    page.locator(".compared th", has_text="run-2").nth(1).wait_for(state="detached")
    page.wait_for_function("location.search.includes('seeds=false')")
    page.reload()
    page.locator(".compared thead th").nth(7).wait_for()
    assert page.locator(".compared thead th").count() == 8
    page.picture("compare-light-1440")


def test_runs_are_chosen_by_search(serve: Callable, studio_home: seed.Seeded, page: Any):
    address = serve(studio_home.home, compare=compare)
    page.goto(f"{address}/compare")
    page.get_by_role("link", name="The newest runs").wait_for()
    field = page.locator("#compare-runs input")
    for run in (studio_home.lora, studio_home.molora):
        field.fill(f"{run} ")
        page.get_by_role("option", name=run).first.click()
    page.locator(".compared thead th", has_text="molora").wait_for()
    page.wait_for_function(f"location.search.includes('runs={studio_home.lora},{studio_home.molora}')")
    page.get_by_label("Metric").click()
    page.get_by_role("option", name="macro f1").click()
    page.locator(".compared th small", has_text="macro f1").first.wait_for()


def test_files_are_saved_in_three_forms(serve: Callable, studio_home: seed.Seeded, page: Any, tmp_path: Path):
    address = serve(studio_home.home, compare=compare)
    page.goto(f"{address}/compare?runs={studio_home.lora},{studio_home.molora}&baseline=base")
    page.locator(".compared td.best").first.wait_for()
    for name, end, part in (
        ("CSV", "csv", "task,dataset"),
        ("Markdown", "md", "| task |"),
        ("LaTeX", "tex", "tabular"),
    ):
        with page.expect_download() as saved:
            page.get_by_role("button", name=name).click()
        saved.value.save_as(tmp_path / name)
        assert saved.value.suggested_filename == f"comparison-2-runs.{end}"
        assert part in (tmp_path / name).read_text()


def test_dark_and_narrow_and_a_run_that_is_gone(serve: Callable, studio_home: seed.Seeded, page: Any):
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 820, "height": 1000})
    address = serve(studio_home.home, compare=compare)
    page.goto(f"{address}/compare?runs={','.join(studio_home.done)}&baseline=base&every=true")
    page.get_by_text("All settings", exact=True).wait_for()
    page.wait_for_timeout(600)
    assert page.evaluate("document.body.classList.contains('dark')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 820
    page.picture("compare-dark-820")
    page.goto(f"{address}/compare?runs=run-1,run-99")
    page.locator(".compared .problem", has_text="run-99").wait_for()


def test_with_three_hundred_runs_the_page_opens_and_compares(serve: Callable, crowded_home: Path, page: Any):
    address = serve(crowded_home, compare=compare)
    page.goto(f"{address}/compare?runs=run-298,run-299,run-300")
    page.locator(".compared td.best").first.wait_for()
    page.locator("#compare-runs input").fill("number 17 ")
    page.get_by_role("option", name="mosld number 171").wait_for(state="detached")
