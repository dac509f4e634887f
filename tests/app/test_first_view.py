"""What makes a page come into sight once and quickly: before Gradio's scripts, without its queue, from the cache."""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from app import server, shell
from app.caching import how_long
from tests.support import seed


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory):
    made = seed.QuietStudio(tmp_path_factory.mktemp("first") / "home")
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser(studio):
    server.build(studio)  # a second mount in one process adds nothing
    with TestClient(server.build(studio), base_url="http://127.0.0.1") as client:
        yield client


@pytest.mark.parametrize("page", [page.path for page in (shell.HOME, *shell.PAGES)])
def test_every_page_keeps_out_of_sight_until_it_is_filled_and_keeps_the_chosen_mode(browser, page):
    html = browser.get(page).text
    head, _, rest = html.partition("window.gradio_config")
    assert head.count("classList.add('opening')") == 1 and "tessera-mode" in head
    waits = {int(count) for count in re.findall(r"tesseraFilled\?\.\((\d+)\)", rest)}
    assert len(waits) == 1, "every load handler of a page says when it has answered"
    assert len(re.findall(r"tesseraFilled\?\.\(", rest)) == waits.pop()


def test_what_a_page_shows_when_opened_and_at_every_tick_waits_in_no_queue(studio):
    pages = shell.blocks(studio)
    found = [fn for fn in pages.fns.values() if any(event in ("load", "tick") for _, event in fn.targets)]
    assert len(found) > len(shell.PAGES) and not any(fn.queue for fn in found)


def test_scripts_are_asked_for_once_and_pages_every_time(browser):
    script = re.search(r'src="\.(/assets/index-[\w-]+\.js)"', browser.get("/").text)
    assert script and "immutable" in browser.get(script[1]).headers["cache-control"]
    assert browser.get("/").headers["cache-control"] == "private"
    assert browser.get("/assets/none-12345678.js").headers["cache-control"] == "private"


def test_only_what_is_named_by_its_content_is_kept_for_long():
    assert how_long("/assets/Blocks-D1GWYZdr.js", b"") and how_long("/theme.css", b"v=4dc1")
    assert how_long("/theme.css", b"") is None and how_long("/gradio_api/file=/tmp/a-12345678.csv", b"") is None
