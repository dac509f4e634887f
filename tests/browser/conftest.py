"""Pages in a browser: a home with runs of every state, a server in a thread, a page."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from app import server
from app.middleware import LocalOnly
from app.shell import Page, blocks
from tests.support import seed

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")  # the lightest first
CHROMIUM = next((path for path in map(shutil.which, BROWSERS) if path), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent != Path(__file__).parent:
            continue
        item.add_marker(pytest.mark.browser)
        if item.path.name != "test_browser_journey.py":  # its steps build on each other
            item.add_marker(pytest.mark.flaky(reruns=2))  # a browser on a busy machine may miss a bound once
        if CHROMIUM is None:
            item.add_marker(pytest.mark.skip(reason="no chromium on this machine"))


@pytest.fixture(scope="session")
def _seeded_once(tmp_path_factory: pytest.TempPathFactory) -> seed.Seeded:
    return seed.few(tmp_path_factory.mktemp("seeded") / "home")


@pytest.fixture
def studio_home(_seeded_once: seed.Seeded, tmp_path: Path) -> seed.Seeded:
    """A home of this test's own with runs of every state."""
    home = tmp_path / "home"
    shutil.copytree(_seeded_once.home, home)
    return seed.Seeded(**{**vars(_seeded_once), "home": home})


@pytest.fixture(scope="session")
def crowded_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 finished runs; tests only look at it."""
    home = tmp_path_factory.mktemp("crowded") / "home"
    seed.many(home, 300)
    return home


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """``serve(home, runs=runs_module)`` shows modules of ``app/pages`` at ``/runs`` ...; returns the address.

    Without modules: all pages of the studio. No dispatcher is started.
    """
    yield from _serving()


@pytest.fixture(scope="module")
def serve_long() -> Iterator[Callable[..., str]]:
    """``serve`` for the tests of a whole file that only look."""
    yield from _serving()


def _serving() -> Iterator[Callable[..., str]]:
    stops: list[Callable[[], None]] = []

    def start(home: Path, **pages: ModuleType) -> str:
        studio = seed.QuietStudio(home)
        stop, address = _start(studio, pages)
        stops.extend([stop, studio.close])
        return address

    yield start
    for stop in stops:
        stop()


def _start(studio: seed.QuietStudio, pages: dict[str, ModuleType]) -> tuple[Callable[[], None], str]:
    chosen = {"pages": [Page(name.title(), f"/{name}", module) for name, module in pages.items()]} if pages else {}
    app = FastAPI()
    server.mount(app, studio, blocks(studio, **chosen))
    app.add_middleware(LocalOnly)
    listener = socket.create_server(("127.0.0.1", 0))
    web = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not web.started and time.monotonic() < deadline:
        time.sleep(0.05)

    def stop() -> None:
        web.should_exit = True
        thread.join(timeout=15)

    return stop, f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="session")
def _chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(_chromium: Any) -> Iterator[Any]:
    """A page of 1440 x 900; errors of its scripts fail the test. PICTURES=folder keeps ``page.picture(name)``."""
    context = _chromium.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.picture = lambda name: _picture(opened, name)
    yield opened
    context.close()
    assert problems == [], problems


def _picture(page: Any, name: str) -> None:
    if folder := os.environ.get("PICTURES"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)
