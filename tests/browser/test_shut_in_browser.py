"""What somebody's role does not allow is out of reach in a real browser, and stays so when the page is drawn anew."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from app import server
from app.auth import Access
from app.sign_in import COOKIE
from tests.support import seed

PASSWORD = "correct horse"
WHY = "This needs a researcher, and you are a viewer."


@pytest.fixture
def locked(studio_home: seed.Seeded) -> Iterator[tuple[str, Access]]:
    studio = seed.QuietStudio(studio_home.home)
    for name, role in (("ada", "admin"), ("vera", "viewer")):
        studio.users.add(name, role, PASSWORD)
    access = Access(studio.users)
    web = uvicorn.Server(uvicorn.Config(server.build(studio, access=access), log_level="error"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not web.started and time.monotonic() < deadline:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", access
    web.should_exit = True
    thread.join(timeout=15)
    studio.close()


def enter(page: Any, address: str, access: Access, name: str) -> None:
    page.context.clear_cookies()
    page.context.add_cookies([{"name": COOKIE, "value": access.sign_in(name, PASSWORD, "x").token, "url": address}])


@pytest.mark.long
def test_a_viewer_reaches_nothing_that_is_refused(locked: tuple[str, Access], page: Any):
    address, access = locked
    enter(page, address, access, "vera")
    page.goto(f"{address}/runs?run=run-4")
    delete, export = (page.get_by_role("button", name=name) for name in ("Delete…", "Export adapter"))
    delete.wait_for()
    page.wait_for_function("document.querySelector('.needs-researcher[title]')")
    export.and_(page.locator(":enabled")).wait_for()
    assert delete.is_disabled() and delete.get_attribute("title") == WHY
    delete.evaluate("button => { button.disabled = false; }")  # as when the page makes it ready for others
    page.wait_for_function("document.querySelector('button.needs-researcher').disabled")
    page.get_by_text("Name, tags and notes").click()
    save = page.get_by_role("button", name="Save", exact=True)
    save.wait_for()
    assert save.is_disabled() and save.get_attribute("title") == WHY
    page.goto(f"{address}/data")
    page.locator("#files[title]").wait_for(state="attached")
    assert (
        page.locator("#files input").first.is_disabled() and page.locator("#typed :is(input, textarea)").is_disabled()
    )
    assert page.get_by_placeholder("Search names and tasks").is_enabled()


@pytest.mark.long
def test_an_admin_reaches_everything(locked: tuple[str, Access], page: Any):
    address, access = locked
    enter(page, address, access, "ada")
    page.goto(f"{address}/runs?run=run-4")
    page.get_by_role("button", name="Delete…").and_(page.locator(":enabled")).wait_for()
    assert page.locator("[data-shut]").count() == 0
