"""A split that is none of the presets: built in the browser, trained, and found in Compare and Routing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from core.home import ASSETS
from core.studio import Studio
from tests.support.small_studio import SmallServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TRAINED = 300_000  # milliseconds, on a machine with other work


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallServer]:
    made = SmallServer(tmp_path_factory.mktemp("designer") / "home")
    studio = Studio(made.home)
    studio.upload(ASSETS / "demo", name="demo")
    studio.close()
    made.start()
    yield made
    made.stop()


def trainable(page: Any) -> int:
    return int(page.locator(".count b").inner_text().replace(",", ""))


def brush(page: Any, **words: str) -> None:
    for part, word in words.items():
        page.locator(f"#grid .chip[data-side={part}][data-word={word}]").click()


def changed(page: Any, before: int) -> int:
    page.wait_for_function(f"document.querySelector('.count b').innerText !== '{before:,}'")
    return trainable(page)


def test_a_split_of_ones_own_is_built_trained_and_seen(server: SmallServer, page: Any):
    page.goto(f"{server.address}/experiment?dataset=demo&method=mosld")
    page.get_by_text("Start queues one run on 4 tasks").wait_for()
    mosld = trainable(page)

    brush(page, down="unique", gate="sequence")
    page.locator("#grid [data-cell='v_proj|3']").click()  # one cell of the preset
    page.locator("#method-card").get_by_text("It begins with the cells of MoSLD").wait_for()
    unique = changed(page, mosld)
    assert unique > mosld

    page.locator("#grid [data-off]").click()
    page.locator("#grid [data-cell='q_proj|0']").click()
    frozen = changed(page, unique)
    assert frozen < unique and "frozen" in page.locator("#grid [data-cell='q_proj|0']").inner_text()

    brush(page, down="pool")  # a combination that cannot be: said at its cell, before anything starts
    page.locator("#grid [data-cell='k_proj|1']").click()
    page.locator("#grid [data-cell='k_proj|1'].wrong").wait_for()
    page.locator("#marks .problem").get_by_text("a pool of factors needs a pool").wait_for()
    assert page.locator("#grid .cell.wrong").count() == 1
    page.picture("designer-wrong")
    page.locator("#start").click()
    page.locator("#started .problem").wait_for()
    page.locator("#grid [data-off]").click()
    page.locator("#grid [data-cell='k_proj|1']").click()
    page.locator("#marks .problem").wait_for(state="detached")

    page.locator("#grid [data-pick]").click()  # the settings of one cell alone
    page.locator("#grid [data-cell='q_proj|2']").click()
    page.locator("#options").get_by_text("Only q_proj, layers 4–5").wait_for()
    page.locator('#options [data-name="split.rank"]').fill("4")
    page.keyboard.press("Tab")
    page.locator("#grid [data-cell='q_proj|2']").get_by_text("rank 4").wait_for()
    assert changed(page, frozen) < frozen
    page.picture("designer-split")

    wanted = {"train.steps": "6", "train.batch_size": "4", "train.max_length": "96", "train.validation_rows": "4"}
    for name, value in wanted.items():
        field = page.locator(f'#training [data-name="{name}"]')
        if not field.is_visible():
            page.locator("#training summary", has_text="More training settings").click()
        field.fill(value)
        page.keyboard.press("Tab")
    page.locator("#task-form summary", has_text="All tasks").click()
    page.locator('#task-form [data-name$="test_rows"]').first.fill("6")
    page.keyboard.press("Tab")
    page.wait_for_timeout(1000)
    page.locator("#start").click()
    page.locator("#started").get_by_text("In the queue").wait_for()
    run = re.search(r"run-\d+", page.locator("#started").inner_text())[0]

    page.goto(f"{server.address}/runs?run={run}")
    page.locator(f'.runline[data-run="{run}"] .state.done').wait_for(timeout=TRAINED)
    page.locator(".facts-list").get_by_text("estimated").wait_for()  # beside the measured peak
    page.goto(f"{server.address}/compare?runs={run}")
    page.locator(".compared thead th").nth(1).wait_for()
    assert "split" in page.locator(".compared thead").inner_text()
    page.goto(f"{server.address}/routing?run={run}")
    page.locator("#routing-heat rect[data-at]").first.wait_for()
    page.picture("designer-routing")

    studio = Studio(server.home)
    snapshot = studio.routing(run)
    stored = studio.run(run)
    studio.close()
    names = {(site.layer, site.projection) for site in snapshot.sites}
    assert (0, "q_proj") not in names and (0, "v_proj") in names, "a frozen projection routes nothing"
    assert {site.unit for site in snapshot.sites if (site.layer, site.projection) == (7, "v_proj")} == {"sample"}
    assert {site.unit for site in snapshot.sites if (site.layer, site.projection) == (0, "v_proj")} == {"token"}
    assert stored["memory"]["estimate"] and stored["memory"]["peak"]
    assert any(cell.get("frozen") for cell in stored["spec"]["method"]["cells"])
