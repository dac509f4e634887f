"""The Fusion page in a browser, as a user walks it: each test goes on where the one before it left off."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app.pages import fusion
from core.schema import RunSpec
from core.studio import Studio
from tests.support import seed
from tests.support.tiny import tiny_base

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORDS = {"colours": ("red", "green"), "sizes": ("big", "small")}
NAMES = {"colours": "Farben 色 <b>bold</b>", "sizes": "sizes, " + "a very long name " * 6}
FUSED = 300_000  # milliseconds within which a small fusion is through the queue, on a machine with other work
WIDE = "document.documentElement.scrollWidth"


class Trained(NamedTuple):
    """A home with an expert for each of two tasks, and one on another base."""

    studio: Studio
    address: str
    colours: str
    sizes: str
    elsewhere: str

    @property
    def both(self) -> str:
        return f"{self.colours},{self.sizes}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, serve_long: Callable[..., str]) -> Iterator[Trained]:
    room = tmp_path_factory.mktemp("fusion")
    studio = Studio(room / "home")
    bases = [str(tiny_base(room / name)) for name in ("tiny", "another")]
    runs = [studio.submit(_spec(room, bases[0], name)) for name in WORDS]
    runs.append(studio.submit(_spec(room, bases[1], "colours", name="on another base")))
    for run in runs:
        assert list(studio.follow(run))[-1] == "finished"
    yield Trained(studio, serve_long(room / "home", fusion=fusion), *runs)
    studio.dispatcher("stop")
    studio.close()


def _spec(room: Path, base: str, task: str, name: str = "") -> RunSpec:
    file = room / f"{task}.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "label"])
        words = WORDS[task]
        writer.writerows([f"{task}: thing {i} is {words[i % 2]}", words[i % 2]] for i in range(60))
    train = {"steps": 4, "batch_size": 4, "max_length": 64, "validation_rows": 4, "routing_moments": 1}
    method = {"name": "lora", "options": {"rank": 2, "modules": ["q_proj", "v_proj"]}}
    head = {"name": (name or NAMES[task])[:120], "model": {"base": base}, "device": "cpu"}
    return RunSpec.parse({**head, "tasks": [{"dataset": str(file), "test_rows": 8}], "method": method, "train": train})


@pytest.fixture(autouse=True)
def patient(page: Any) -> None:
    page.set_default_timeout(120_000)


def pick(page: Any, run: str) -> Any:
    return page.locator(f'#fusion-runs .picklines [data-run="{run}"]')


def test_nothing_to_fuse_leads_to_the_demo(serve: Callable[..., str], tmp_path: Path, page: Any):
    page.goto(f"{serve(tmp_path / 'home', fusion=fusion)}/fusion")
    page.get_by_role("link", name="Start the demo").wait_for()
    assert not page.locator("#fusion-start").count()


def test_runs_are_chosen_and_their_conflicts_come_first(trained: Trained, page: Any):
    page.goto(f"{trained.address}/fusion")
    pick(page, trained.colours).click()
    refused = pick(page, trained.elsewhere)
    refused.locator(".reason").wait_for()
    assert refused.is_disabled() and "their weights do not add up" in refused.inner_text()
    assert page.locator("#fusion-start").is_disabled()
    pick(page, trained.sizes).click()
    page.locator("#fusion-heat rect[data-at]").first.wait_for()
    said = page.locator("#fusion-told").inner_text()
    assert re.search(rf"{trained.colours} and {trained.sizes}: cosine [+-]0\.\d+ over all projections", said)
    assert page.locator("#fusion-runs .chip").count() == 2 and page.locator("#fusion-runs .chip b b").count() == 0
    page.get_by_role("radio", name="Norm").click()
    page.locator("#fusion-lengths .bar").nth(1).wait_for()
    page.get_by_role("radio", name="Sign disagreement").click()
    page.locator("#fusion-square svg").wait_for()
    page.locator('#fusion-heat rect[data-at="0,0,1,1"]').click()
    page.wait_for_function("location.search.includes('at=model.layers.1')")
    page.picture("fusion-choose-light-1440")


def test_a_link_and_a_reload_keep_the_choice_and_the_form(trained: Trained, page: Any):
    page.goto(f"{trained.address}/fusion?runs={trained.both}&figure=signs&method=ties")
    page.locator("#fusion-heat rect[data-at]").first.wait_for()
    assert page.locator("#fusion-methods .on").get_attribute("data-method") == "ties"
    page.locator("#fusion-methods [data-method=task_arithmetic]").click()
    coefficient = page.locator('#fusion-form [data-name="method.options.coefficient"]')
    coefficient.fill("much")
    page.locator("#fusion-wish .problem", has_text="not a number").wait_for()
    coefficient.fill("0.25")
    page.wait_for_function("location.search.includes('0.25')")
    page.reload()
    page.locator("#fusion-heat rect[data-at]").first.wait_for()
    assert coefficient.input_value() == "0.25" and page.get_by_role("radio", name="Sign disagreement").is_checked()
    assert "with coefficient 0.25" in page.locator("#fusion-wish").inner_text()
    assert pick(page, trained.sizes).get_attribute("aria-pressed") == "true"


def test_two_runs_are_fused_and_what_was_lost_is_a_table(trained: Trained, page: Any, tmp_path: Path):
    page.goto(f"{trained.address}/fusion?runs={trained.both}")
    page.locator("#fusion-heat rect[data-at]").first.wait_for()
    page.locator("#fusion-start").click()
    page.wait_for_url("**/fusion?run=run-*")
    page.locator("#fusion-head .state").wait_for()
    trained.studio.dispatcher("start")
    page.locator("#fusion-table tbody tr.mean").wait_for(timeout=FUSED)
    heads = page.locator("#fusion-table thead").inner_text()
    assert all(name in heads for name in ("untouched base", "own expert", "fused", "lost"))
    assert page.locator("#fusion-table tbody tr").count() == 3
    page.get_by_text("Saved exactly").wait_for()
    own = page.url.partition("run=")[2]
    link = page.get_by_role("link", name="Compare with its sources").get_attribute("href")
    assert link == f"/compare?runs={own},{trained.both}&baseline={own}"
    chat = page.get_by_role("link", name="Chat with it and its sources").get_attribute("href")
    assert chat == f"/chat?runs={own},{trained.both}"
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV").click()
    saved.value.save_as(tmp_path / "table.csv")
    lines = list(csv.DictReader((tmp_path / "table.csv").read_text("utf-8").splitlines()))
    assert [line["own_run"] for line in lines] == [trained.colours, trained.sizes, ""] and lines[-1]["task"] == "mean"
    with page.expect_download() as saved:
        page.get_by_role("button", name="Figures as a page").click()
    assert saved.value.suggested_filename == f"{own}-fusion.html"
    page.reload()
    page.locator("#fusion-table tbody tr.mean").wait_for()
    assert page.locator("#fusion-past a.on b").inner_text() == own
    page.picture("fusion-result-light-1440")


def test_a_method_that_learns_is_watched(trained: Trained, page: Any):
    page.goto(f"{trained.address}/fusion?runs={trained.both}&method=adamerging")
    form = page.locator("#fusion-form")
    form.locator('[data-name="method.options.prompts"]').select_option("train")
    for name, value in (("steps", "4"), ("evaluate_every", "1")):
        form.locator(f'[data-name="method.options.{name}"]').fill(value)
        page.keyboard.press("Tab")
    page.wait_for_function("decodeURIComponent(location.search).includes('evaluate_every')")
    page.locator("#fusion-start").click()
    page.wait_for_url("**/fusion?run=run-*")
    trained.studio.dispatcher("start")
    page.locator("#fusion-learnt path.raw").nth(1).wait_for(state="attached", timeout=FUSED)  # a flat line has no area
    page.locator("#fusion-coefficients rect[data-at]").first.wait_for()
    page.locator("#fusion-combined .keys button").nth(1).wait_for()
    page.get_by_role("radio", name="Objective").click()
    page.wait_for_function("location.search.includes('curve=loss')")
    page.locator("#fusion-table tbody tr.mean").wait_for(timeout=FUSED)
    page.reload()
    page.locator("#fusion-learnt .keys", has_text="loss").wait_for()
    page.picture("fusion-learns-light-1440")


def test_a_fusion_that_waits_is_cancelled_and_resumed(trained: Trained, page: Any):
    quiet = seed.QuietStudio(trained.studio.home.root)
    run = quiet.fuse([trained.colours, trained.sizes], method="average")
    page.goto(f"{trained.address}/fusion?run={run}")
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name=f"Cancel {run}").click()
    page.locator("#fusion-failure .note", has_text="It was cancelled").wait_for()
    page.get_by_text("It ended before it was scored.").wait_for()
    page.get_by_role("button", name="Resume").click()
    page.locator("#fusion-head .state.queued, #fusion-head .state.running").wait_for()
    quiet.cancel(run)
    quiet.close()


def test_dark_narrow_and_what_is_no_fused_run(trained: Trained, page: Any):
    page.emulate_media(color_scheme="dark")
    for width in (820, 420):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(f"{trained.address}/fusion?runs={trained.both}")
        page.locator("#fusion-heat rect[data-at]").first.wait_for()
        assert page.evaluate(WIDE) <= width and page.evaluate("document.body.classList.contains('dark')")
        page.picture(f"fusion-choose-dark-{width}")
    page.goto(f"{trained.address}/fusion?run={trained.colours}")
    page.locator("#fusion-head .problem", has_text="was trained, not fused").wait_for()
    page.goto(f"{trained.address}/fusion?run=run-99")
    page.locator("#fusion-head .problem", has_text="run-99").wait_for()
    page.get_by_role("link", name="Choose runs to fuse").click()
    page.locator(".pickline").first.wait_for()
    page.goto(f"{trained.address}/fusion?runs={trained.colours},{trained.elsewhere}")
    page.locator("#fusion-told .problem", has_text="their weights do not add up").wait_for()
