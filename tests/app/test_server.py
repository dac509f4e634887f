"""The web process: who may talk to it, what its first page says, and that a browser shows it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app import server
from app.middleware import LocalOnly, is_loopback, own_names, require_users
from core.errors import ConfigurationError
from core.home import PROJECT
from core.studio import Studio

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for path in map(shutil.which, BROWSERS) if path), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def client(studio: Studio) -> Iterator[TestClient]:
    with TestClient(server.build(studio), base_url="http://127.0.0.1:7860") as client:
        yield client


def test_the_page_and_its_health_are_served_and_a_dispatcher_is_there(client: TestClient, studio: Studio):
    assert client.get("/health").json() == {"database": "ok"}
    assert "Tessera" in client.get("/").text
    deadline = time.monotonic() + 60
    while not studio.dispatcher()["alive"] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert studio.dispatcher()["alive"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:7860"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:7860"}, 403),
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_only_this_machine_and_its_own_pages_may_ask(client: TestClient, headers: dict[str, str], status: int):
    assert client.get("/health", headers=headers).status_code == status


def test_every_route_stands_behind_the_check(client: TestClient):
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/queue/status", "/health", "/nothing"):
        assert client.get(path, headers={"host": "evil.example"}).status_code == 403, path
    assert client.post("/gradio_api/queue/join", headers={"origin": "http://evil.example"}, json={}).status_code == 403


def test_files_of_the_home_and_the_checkout_are_not_handed_out(client: TestClient, studio: Studio):
    secret = studio.home.root / "secret.txt"
    secret.write_text("precious")
    for path in (secret, PROJECT / "requirements.txt"):
        answer = client.get(f"/gradio_api/file={path}")
        assert answer.status_code in (403, 404) and "precious" not in answer.text


def test_a_request_without_a_host_is_refused():
    assert LocalOnly(None).problem({"type": "http", "method": "GET", "headers": []})
    twice = [(b"host", b"127.0.0.1"), (b"host", b"evil.example")]
    assert LocalOnly(None).problem({"type": "http", "method": "GET", "headers": twice})
    assert LocalOnly(None).problem({"type": "websocket", "headers": [(b"host", b"127.0.0.1")]}) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", ""])
def test_others_may_come_in_only_with_users(host: str):
    with pytest.raises(ConfigurationError, match="without users"):
        require_users(host, (), False)
    require_users(host, (), True)


def test_a_proxy_that_brings_others_needs_users_too():
    with pytest.raises(ConfigurationError, match="studio.example.org without users"):
        require_users("127.0.0.1", ["studio.example.org"], False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_alone_needs_none(host: str):
    require_users(host, (), False)
    assert is_loopback(host) and host in own_names(host)


def test_a_studio_for_all_answers_to_the_names_and_addresses_of_its_machine():
    names = own_names("0.0.0.0")
    assert {"localhost", "127.0.0.1", socket.gethostname().lower()} <= set(names)
    assert own_names("192.168.1.7")[-1] == "192.168.1.7" and "0.0.0.0" not in names


def test_the_next_free_port_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with server.listen("127.0.0.1", port) as listener:
            assert port < listener.getsockname()[1] < port + server.PORTS_TRIED


@pytest.mark.browser
@pytest.mark.slow
def test_a_browser_shows_the_state_and_follows_it(tmp_path: Path, colours: Path):
    """An empty studio says what to do; an upload elsewhere appears without a reload; dark, wide and narrow."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    process, address = _serve(tmp_path / "home")
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="dark")
            problems: list[str] = []
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.goto(address)
            page.get_by_role("button", name="Run the demo").wait_for(timeout=60_000)
            assert page.evaluate("document.body.classList.contains('dark')")
            Studio(tmp_path / "home").upload(colours)
            page.locator("#home-counts").get_by_text("data sets").wait_for(timeout=30_000)
            page.set_viewport_size({"width": 820, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= 820
            assert problems == []
            browser.close()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        Studio(tmp_path / "home").dispatcher("stop")


def _serve(home: Path) -> tuple[subprocess.Popen[str], str]:
    """``python app.py serve`` on a free port; the process and its address."""
    command = [sys.executable, str(PROJECT / "app.py"), "--home", str(home), "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    line = process.stdout.readline()
    address = re.search(r"http://\S+", line).group()
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return process, address
        except OSError:
            time.sleep(0.3)
    process.kill()
    raise AssertionError("the server did not answer")
