"""The way of a newcomer through the studio, in order: each test goes on where the one before it left off.

A real server process, its dispatcher and its workers on the bundled base; the demo and the runs are short ones.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.small_studio import SmallServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRAINED = 300_000  # milliseconds within which short runs are through the queue, on a machine with other work
SEEN = 150_000
# Names of columns that mislead, semicolons, a byte order mark, quotes, empty lines, a space that does not break.
SURVEY = "\ufefftext;label;remark;verdict\n" + "".join(
    f'K-{100 + n};{"web" if n % 3 else "desk"};"The {thing}, no. {n}, was {word};\u00a0so I {act}.";{verdict}\n\n'
    for n, thing in enumerate(["soup", "train", "film", "hotel", "lesson", "garden", "concert", "phone"] * 6)
    for word, act, verdict in [("fine", "stayed", "pleased") if n % 2 else ("dull", "left", "annoyed")]
)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallServer]:
    server = SmallServer(tmp_path_factory.mktemp("journey") / "home")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """What later tests come back to: names of runs, and links."""
    return {}


@pytest.fixture(autouse=True)
def patient(page: Any) -> None:
    page.set_default_timeout(SEEN)


def line(page: Any, run: str, state: str = "") -> Any:
    return page.locator(f'.runline[data-run="{run}"]').filter(has=page.locator(f".state{state and '.'}{state}"))


def step(page: Any) -> int:
    """How far the shown run is; its total when it is past training."""
    found = re.search(r"step ([\d,]+) of", page.locator(".run-progress").inner_text())
    return int(found[1].replace(",", "")) if found else 0


def links(text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"run-\d+", text)))


def test_an_empty_studio_leads_to_the_demo_with_one_click(studio: SmallServer, page: Any):
    page.goto(studio.address)
    page.get_by_text("See it work first").wait_for()
    page.locator("#run-demo").click()
    card = page.locator("#home-demo")
    card.get_by_text("The demo").first.wait_for()
    card.locator(".line").nth(2).wait_for(timeout=TRAINED)
    page.reload()  # it goes on without this page
    card.locator(".line .state").nth(2).wait_for()
    assert page.locator("#home-demo a[href^='/runs?run=']").count() == 3
    page.picture("journey-demo")


def test_an_awkward_file_is_uploaded_and_its_mapping_mended(studio: SmallServer, page: Any, kept: dict[str, Any]):
    page.goto(f"{studio.address}/data")
    survey = {"name": "Umfrage (final) 2.csv", "mimeType": "text/csv", "buffer": SURVEY.encode("utf-8")}
    page.locator("#files input[type=file]").set_input_files(survey)
    seen, form = page.locator("#seen"), page.locator("#mend")
    seen.get_by_text("K-1").first.wait_for()  # what is called text is a code
    assert "so I" not in seen.locator(".prompt").first.inner_text()
    columns = form.locator('[data-name="column.input"]')
    columns.locator('button[data-choice="text"]').click()
    columns.locator('button[data-choice="remark"]').click()
    form.locator('select[data-name="column.label"]').select_option("verdict")
    page.locator("#set-name input, #set-name textarea").fill("survey")
    page.locator("#again").click()
    seen.locator(".prompt", has_text="so I").first.wait_for()
    assert seen.locator(".prompt", has_text="K-1").count() == 0
    assert {"pleased", "annoyed"} <= set(re.findall("pleased|annoyed", seen.inner_text()))
    page.picture("journey-mapping")
    page.locator("#store").click()
    page.locator("#told").get_by_text("Stored as").wait_for()
    kept["use"] = page.get_by_role("link", name="Use it in an experiment").get_attribute("href")
    page.locator("#stored").get_by_text("survey").first.wait_for()
    page.reload()
    page.locator("#stored").get_by_text("survey").first.wait_for()


def test_a_split_is_painted_and_two_runs_start(studio: SmallServer, page: Any, kept: dict[str, Any]):
    page.goto(studio.address + kept["use"])
    grid = page.locator("#grid")
    grid.locator("td button").first.wait_for()
    page.locator("#tasks").get_by_text("survey").first.wait_for()
    grid.locator('.brush [data-side="up"][data-word="shared"]').click()
    grid.locator('[data-fill="q_proj|*"]').click()
    page.locator("#method-card").get_by_text("split", exact=False).first.wait_for()
    grid.locator(".brush [data-off]").click()
    grid.locator('[data-fill="down_proj|*"]').click()
    page.locator("#figure").get_by_text("not adapted").first.wait_for()
    training = page.locator("#training")
    wanted = {"train.steps": "600", "train.batch_size": "2", "train.max_length": "64", "run.seeds": "0, 1"}
    for name, value in wanted.items():
        training.locator(f'[data-name="{name}"]').fill(value)
        page.keyboard.press("Tab")
    page.locator("#told").get_by_text("Start queues 2 runs, seeds 0, 1").wait_for()
    page.picture("journey-split")
    page.locator("#start").click()
    page.locator("#started").get_by_text("In the queue").wait_for()
    page.locator("#start").click()  # the same wish once more is the same two runs
    page.wait_for_timeout(1000)
    kept["two"] = links(page.locator("#started").inner_text())
    assert len(kept["two"]) == 2


def test_two_runs_are_watched_and_one_is_cancelled(studio: SmallServer, page: Any, kept: dict[str, Any]):
    first, second = kept["two"]
    page.goto(f"{studio.address}/runs?run={second}")
    line(page, first, "running").wait_for(timeout=TRAINED)
    line(page, second, "running").wait_for(timeout=TRAINED)
    page.locator("#runs-curve path.raw").first.wait_for()
    page.locator(".run-progress", has_text=re.compile("step [1-9]")).wait_for()
    page.picture("journey-two-runs")
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name=f"Cancel {second}").click()
    line(page, second, "cancelled").wait_for()
    assert page.get_by_role("button", name="Resume").is_enabled()
    assert not line(page, first, "cancelled").count()


def test_a_run_outlives_reload_browser_and_server(studio: SmallServer, _chromium: Any, kept: dict[str, Any]):
    first = kept["two"][0]
    link = f"{studio.address}/runs?run={first}"
    tab = _chromium.new_context().new_page()
    tab.goto(link)
    tab.locator(".run-head h2", has_text=first).wait_for()
    before = step(tab)
    tab.reload()
    tab.locator(".run-head h2", has_text=first).wait_for()
    assert step(tab) >= before or line(tab, first, "done").count()
    tab.context.close()
    tab = _chromium.new_context().new_page()  # another browser
    tab.set_default_timeout(SEEN)
    tab.goto(link)
    tab.locator(".run-head h2", has_text=first).wait_for()
    studio.kill()
    tab.wait_for_timeout(1500)  # the page asks a server that is not there
    studio.start()
    tab.goto(link)
    tab.locator(".run-head h2", has_text=first).wait_for()
    line(tab, first, "done").wait_for(timeout=TRAINED)
    tab.locator("#runs-curve path.raw").first.wait_for()
    tab.context.close()


def test_the_demo_is_done_and_its_scores_are_compared(studio: SmallServer, page: Any, kept: dict[str, Any]):
    page.goto(studio.address)
    page.get_by_text("The demo is done").wait_for(timeout=TRAINED)
    kept["demo"] = links(page.locator("#home-demo").inner_html())
    page.get_by_role("link", name="Compare the three").click()
    page.locator(".compared thead th").nth(3).wait_for()
    page.locator(".compared td.best").first.wait_for()
    for method in ("lora", "molora", "mosld"):
        assert method in page.locator(".compared thead").inner_text()
    page.locator("#compare-curves path.raw").nth(2).wait_for()
    page.picture("journey-compare")
    kept["compare"] = page.url


def test_a_cell_of_the_routing_is_clicked(studio: SmallServer, page: Any, kept: dict[str, Any]):
    page.goto(studio.address)
    page.get_by_role("link", name="See which expert speaks for which task").click()
    page.locator("#routing-heat rect[data-at]").first.wait_for()
    page.locator('#routing-heat rect[data-at="0,0,1,1"]').click()
    page.wait_for_function("location.search.includes('layer=1&expert=1')")
    page.locator("#routing-cell").get_by_text("expert 1").first.wait_for()
    kept["cell"] = page.locator("#routing-cell").inner_text()
    kept["routing"] = page.url
    page.picture("journey-routing")


def test_tokens_are_inspected(studio: SmallServer, page: Any, kept: dict[str, Any]):
    page.goto(kept["routing"])
    page.locator("#routing-heat rect[data-at]").first.wait_for()
    page.get_by_role("tab", name="Token by token").click()
    page.locator("#inspect-text textarea").fill("Name the opinion: <b>what</b> a wonderful film!")
    page.get_by_text("no answer").click()
    page.locator("#inspect").click()
    tokens = page.locator("#inspect-strip span[data-i]")
    tokens.nth(5).wait_for(timeout=TRAINED)  # the worker loads the base first
    assert page.locator("#inspect-strip b:not(.break)").count() == 0, "a text is shown, never run as markup"
    tokens.nth(4).hover()
    page.locator("#inspect-strip .tip").wait_for()
    tokens.nth(4).click()
    page.get_by_text("Token 5, projection by projection").wait_for()
    page.locator("#inspect-route rect[data-at]").first.wait_for()
    page.wait_for_function("location.search.includes('token=4')")
    kept["tokens"] = page.url
    page.picture("journey-tokens")


def test_three_models_are_asked_at_once_and_one_is_stopped(studio: SmallServer, page: Any, kept: dict[str, Any]):
    page.goto(f"{studio.address}/chat?runs={','.join(kept['demo'])}")
    page.locator("#chat-pane-3 header").wait_for()
    page.get_by_text("Sampling and system message").click()
    page.get_by_label("Longest answer, tokens").fill("300")
    page.get_by_label("number input for Temperature").fill("2")
    page.keyboard.press("Tab")
    late = pytest.importorskip("playwright.sync_api").TimeoutError
    for seed in range(8):  # at this temperature an answer may be over after a word: then another one is asked for
        page.locator("#chat-send:enabled").wait_for(timeout=TRAINED)
        page.get_by_label("Seed, the same for all").fill(str(seed))
        page.locator("#chat-box textarea").fill(f"Tell me everything about rain, please ({seed}).")
        page.keyboard.press("Enter")
        page.locator(".chat-panes .said", has_text=re.compile(r"\S{2}")).first.wait_for(timeout=TRAINED)
        with contextlib.suppress(late):
            page.locator(".chat-panes button.stop:visible").first.click(timeout=5_000)
            page.locator(".chat-panes footer.stopped").wait_for(timeout=10_000)
            break
    page.wait_for_function("!document.querySelector('.chat-panes footer.growing')", timeout=TRAINED)
    assert page.locator(".chat-panes footer.stopped").count() == 1
    assert page.locator(".chat-panes article").count() == 3 * (seed + 1)
    page.wait_for_function("location.search.includes('conversation=')")
    kept["chat"] = page.url
    kept["answers"] = page.locator(".chat-panes .said").all_inner_texts()
    page.picture("journey-chat")


def test_links_open_fresh_as_they_were_left(studio: SmallServer, page: Any, kept: dict[str, Any]):
    page.goto(kept["compare"])
    page.locator(".compared td.best").first.wait_for()
    page.goto(kept["routing"])
    page.locator("#routing-cell").get_by_text("expert 1").first.wait_for()
    assert page.locator("#routing-cell").inner_text() == kept["cell"]
    page.goto(kept["tokens"])
    page.get_by_text("Token 5, projection by projection").wait_for()
    assert "<b>what</b>" in page.locator("#inspect-text textarea").input_value()
    page.goto(kept["chat"])
    page.locator(".chat-panes footer.stopped").wait_for()
    assert page.locator(".chat-panes .said").all_inner_texts() == kept["answers"]
    page.goto(f"{studio.address}/runs?run={kept['two'][1]}&curve=tasks")
    page.locator(".run-head h2", has_text=kept["two"][1]).wait_for()
    line(page, kept["two"][1], "cancelled").wait_for()
