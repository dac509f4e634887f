"""The Home page in a browser: one click to the demo, what runs, cleaning up, signing in."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from app import server
from tests.support import seed

# Notes what moves on the page by itself, as browsers count it.
SHIFTS = """window.moved = []; new PerformanceObserver(list => { for (const entry of list.getEntries())
  if (!entry.hadRecentInput)
    window.moved.push([entry.value, ...entry.sources.map(one => one.node?.closest?.('#home-body') ? 'ours' : 'frame')]);
}).observe({type: 'layout-shift', buffered: true});"""
# What Gradio says when a page is left while it listens to the server.
LEFT = re.compile("AbortError|Failed to fetch|network error|ERR_ABORTED|[Cc]onnection errored out", re.I)
PATHS = ("/", "/data", "/methods", "/experiment", "/runs", "/compare", "/routing", "/chat")


@pytest.mark.slow
def test_one_click_leads_a_newcomer_to_the_demo(tmp_path: Path, serve: Callable[..., str], page: Any):
    page.goto(serve(tmp_path / "home"))
    button = page.get_by_role("button", name="Run the demo")
    button.wait_for()
    page.picture("home-empty-light-1440")
    button.dblclick()
    page.locator("#home-demo").get_by_text("MoSLD").wait_for(timeout=120_000)
    page.locator("#home-demo").get_by_text("The demo is at work").wait_for(timeout=120_000)
    button.wait_for(state="hidden")
    studio = seed.QuietStudio(tmp_path / "home")
    assert len(studio.runs()) == 3
    studio.close()
    page.reload()
    links = page.locator("#home-demo a")
    links.first.wait_for()
    assert re.search(r"/runs\?run=run-1$", links.first.get_attribute("href"))


def test_what_runs_is_seen_and_nothing_moves(studio_home: seed.Seeded, serve: Callable[..., str], page: Any):
    page.add_init_script(SHIFTS)
    page.goto(serve(studio_home.home))
    page.locator("#home-runs").get_by_text("run-10").wait_for()
    page.locator("#home-teaser svg").wait_for()
    page.locator("#home-disk table").wait_for()
    page.wait_for_timeout(2500)
    moved = page.evaluate("window.moved")
    assert sum(value for value, *sources in moved if "ours" in sources) < 0.01, moved
    assert sum(value for value, *_ in moved) < 0.1, moved  # the frame moves once, when Gradio's loading sign goes
    page.picture("home-light-1440")
    page.set_viewport_size({"width": 820, "height": 900})
    page.get_by_role("button", name="Switch between light and dark").click()
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 820
    page.picture("home-dark-820")
    page.locator("#home-runs").get_by_role("link", name="run-4").click()
    page.wait_for_url("**/runs?run=run-4")


def test_cleaning_up_asks_first(studio_home: seed.Seeded, serve: Callable[..., str], page: Any):
    folder = studio_home.home / "runs" / studio_home.lora / "checkpoints" / "step-1"
    folder.mkdir(parents=True)
    (folder / "state").write_bytes(b"x" * 4096)
    page.goto(serve(studio_home.home))
    page.get_by_label("Checkpoints of finished runs").check()
    page.get_by_role("button", name="Clean up…").click()
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("button", name="Delete it for good").wait_for(state="hidden")
    assert folder.exists()
    page.get_by_role("button", name="Clean up…").click()
    page.get_by_role("button", name="Delete it for good").click()
    page.get_by_text("4.0 KiB freed").wait_for()
    assert not folder.exists()


@pytest.fixture
def locked(studio_home: seed.Seeded) -> Iterator[str]:
    """The whole application, as it is served beyond loopback."""
    studio = seed.QuietStudio(studio_home.home)
    studio.web_presence = lambda: threading.Lock()  # no dispatcher
    listener = socket.create_server(("127.0.0.1", 0))
    studio.users.add("ada", "admin", "correct horse")
    app = server.build(studio)
    served = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=served.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not served.started and time.monotonic() < deadline:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    served.should_exit = True
    thread.join(timeout=15)
    studio.close()


@pytest.mark.slow
def test_signing_in_using_every_page_and_signing_out(locked: str, page: Any):
    said: list[str] = []
    page.goto(f"{locked}/runs?run=run-4")
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("Name and password do not belong together.").wait_for()
    assert page.get_by_label("Name").input_value() == "ada"
    page.picture("sign-in-light-1440")
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("response", lambda answer: said.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    page.get_by_label("Password").fill("correct horse")
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs?run=run-4")
    for path in PATHS:
        page.goto(f"{locked}{path}")
        page.locator(".page-head h1").wait_for()
        page.wait_for_timeout(1500)
    assert [text for text in said if not LEFT.search(text)] == []
    page.goto(locked)
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/login")
    page.goto(f"{locked}/data")
    page.get_by_label("Password").wait_for()
