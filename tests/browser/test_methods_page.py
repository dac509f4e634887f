"""The Methods page in a browser: a deep link, the filter, another method, another base, the way into an experiment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_a_method_is_found_looked_at_and_taken_into_an_experiment(tmp_path: Path, serve: Callable[..., str], page: Any):
    address = serve(tmp_path / "home")
    page.goto(f"{address}/methods?method=moa&base=LLaMA2-7B")
    page.locator("#method-head h2:has-text('MoA')").wait_for()
    assert page.locator("#method-head .badge").inner_text() == "interpretation"
    page.locator("#method-counts b:has-text('144,179,456')").wait_for()
    assert page.locator("#methods-list .badge").count() >= 5
    page.picture("methods-moa-light-1440")

    page.get_by_label("Filter the methods").fill("subspace")
    assert page.locator("#methods-list a").all_inner_texts()[0].startswith("MALoRA")
    assert page.locator("#methods-list a").count() == 1
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator("#method-head h2:has-text('MALoRA')").wait_for()
    page.locator("#method-counts b:has-text('158,859,264')").wait_for()
    page.locator("#method-figure svg").wait_for()
    page.wait_for_url("**/methods?method=malora*")

    page.get_by_label("Filter the methods").fill("nothing of the kind")
    page.get_by_text("No method matches").wait_for()
    page.locator("#method-tasks input").fill("3")
    page.wait_for_url("**tasks=3*")
    page.locator("#method-rest a:has-text('HydraLoRA')").click()
    page.locator("#method-head h2:has-text('HydraLoRA')").wait_for()

    page.set_viewport_size({"width": 420, "height": 900})
    page.get_by_role("button", name="Switch between light and dark").click()
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.picture("methods-hydralora-dark-420")
    page.locator("#use-method").click()
    page.wait_for_url("**/experiment?method=hydralora")
    page.locator("#method-card:has-text('HydraLoRA')").wait_for()
