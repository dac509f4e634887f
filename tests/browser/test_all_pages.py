"""What holds for every page: empty and with 300 runs, narrow, dark, by keyboard, quick, calm, without errors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.shell import HOME, PAGES
from tests.support.views import SHIFTS, VIEWS

FIRST_VIEW = 4.0  # seconds on a quiet machine, twice the aim: docs/benchmarks.md says what was measured
SHIFT = 0.05  # half of what browsers call good
LEFT = ("AbortError", "Connection errored out")  # what the console says of a request whose page was left
STOPS = 40  # presses of Tab within which the main action is reached
LIGHTNESS = """selector => {
  const probe = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const seen = property => { let node = document.querySelector(selector), colour;
    do { colour = getComputedStyle(node)[property]; node = node.parentElement; }
    while (node && /rgba\\(0, 0, 0, 0\\)|transparent/.test(colour));
    probe.fillStyle = colour; probe.fillRect(0, 0, 1, 1);
    const [r, g, b] = probe.getImageData(0, 0, 1, 1).data; return (r + g + b) / 765; };
  return [seen('color'), seen('backgroundColor')]; }"""


# What a newcomer does next, by Tab and Enter: the element, and what is seen then.
ACTIONS = {
    "Home": ("#run-demo", "#home-demo .line"),
    "Data": ("button:has-text('Use the demo tasks')", "#told :text('Stored as')"),
    "Experiment": ("#demo-tasks", "#told :text('Start queues one run')"),
    "Methods": ("#use-method", "#grid td button"),
    "Runs": (".empty a", "#run-demo"),
    "Compare": (".empty a", "#run-demo"),
    "Fusion": (".empty a", "#run-demo"),
    "Routing": (".empty a", "#grid td button"),
    "Chat": (".empty a", "#grid td button"),
    "Account": ("#account-first-button", "#account-told :text('name')"),
}
CHANGING = ("Home", "Data", "Experiment")  # their action stores something: in a studio of its own
every_page = pytest.mark.parametrize("name", VIEWS)
empty_and_full = pytest.mark.parametrize("state", ["empty", "full"])


@pytest.fixture(scope="module")
def addresses(serve_long: Callable[..., str], crowded_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return {"empty": serve_long(tmp_path_factory.mktemp("nothing") / "home"), "full": serve_long(crowded_home)}


@pytest.fixture
def told(page: Any) -> list[str]:
    """Errors in the console; a request that ends because the page is left is none."""
    found: list[str] = []
    page.on("console", lambda said: found.append(said.text) if said.type == "error" else None)
    page.add_init_script(SHIFTS)
    return found


def opened(page: Any, address: str, name: str, state: str) -> float:
    """Seconds until the page shows what it is for."""
    view = VIEWS[name]
    began = time.monotonic()
    page.goto(address + view.path)
    page.locator(view.empty if state == "empty" else view.full).first.wait_for()
    return time.monotonic() - began


def busy() -> float:
    """How many processes want each core, at least one."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def errors(told: list[str]) -> list[str]:
    return [text for text in told if not any(left in text for left in LEFT)]


def test_every_page_of_the_navigation_is_looked_at():
    assert {page.name: page.path for page in (HOME, *PAGES)} == {name: view.path for name, view in VIEWS.items()}


@empty_and_full
@every_page
def test_a_page_opens_quickly_stays_calm_fits_and_is_dark_where_that_is_wished(
    addresses: dict[str, str], page: Any, told: list[str], name: str, state: str
):
    page.set_viewport_size({"width": 820, "height": 1000})
    page.emulate_media(color_scheme="dark")
    opened(page, addresses[state], name, state)
    assert page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]") == [820, 820]
    for part in ("h1", "nav, .nav-holder, body"):
        ink, paper = page.evaluate(LIGHTNESS, part)
        assert paper < 0.25 and ink > 0.6, part
    page.picture(f"all-{name}-{state}-dark-820")
    assert page.evaluate("window.shifted") < SHIFT, page.evaluate("window.movers")
    page.set_viewport_size({"width": 1440, "height": 900})
    page.emulate_media(color_scheme="light")
    seconds = opened(page, addresses[state], name, state)  # the server is warm by now
    page.wait_for_timeout(700)
    shifted = page.evaluate("window.shifted")
    print(f"{name}, {state}: first view after {seconds:.2f} s, layout shift {shifted:.3f}")
    page.picture(f"all-{name}-{state}-light-1440")
    assert seconds < FIRST_VIEW * busy()
    assert errors(told) == []
    assert shifted < SHIFT, page.evaluate("window.movers")


@every_page
def test_the_keyboard_reaches_what_to_do_next(
    addresses: dict[str, str], serve: Callable[..., str], tmp_path: Path, page: Any, told: list[str], name: str
):
    action, then = ACTIONS[name]
    opened(page, serve(tmp_path / "home") if name in CHANGING else addresses["empty"], name, "empty")
    for _ in range(STOPS):
        page.keyboard.press("Tab")
        if page.locator(action).and_(page.locator(":focus")).count():
            break
    else:
        pytest.fail(f"{STOPS} presses of Tab do not reach {action}")
    outline = page.evaluate("(s => s.outlineStyle + s.boxShadow)(getComputedStyle(document.activeElement))")
    assert outline != "nonenone", "where the focus is can be seen"
    page.keyboard.press("Enter")
    page.locator(then).first.wait_for()
    assert errors(told) == []
