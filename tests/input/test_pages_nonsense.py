"""Every handler of every page, called with what no page sends: a sentence or an answer, never a raw error."""

from __future__ import annotations

import random
from contextlib import suppress

import gradio as gr
import pytest

from app.acting import UNEXPECTED, as_actor
from app.auth import Access
from app.shell import HOME, PAGES, blocks
from core.access import acting
from core.errors import StudioError
from tests.input.hostile import LONG, TEXTS, Visit
from tests.support import seed

PATHS = [page.path for page in (HOME, *PAGES)]
QUERIES = (
    "run",
    "runs",
    "dataset",
    "clone",
    "method",
    "options",
    "task",
    "split",
    "part",
    "tab",
    "conversation",
    "page",
)
QUICK, MANY = 0, 8
LONG_ALONE = [pytest.mark.long, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    seed.few(home)
    studio = seed.QuietStudio(home)
    for starts_a_process in ("warm", "ask", "_trace", "open"):
        setattr(studio.chats, starts_a_process, _no_model)
    yield studio, blocks(studio)
    studio.close()


def _no_model(*_, **__):
    raise StudioError("No model answers in this test.", "Ask in another one.")


def wrong(path: str, demo: gr.Blocks, query: dict[str, str], chance: random.Random, each: int) -> list[str]:
    visit, found = Visit(demo, path, query), []
    for fn, values, event in visit.attempts(chance, each):
        try:
            visit.call(fn, values, event)
        except (StudioError, gr.Error) as error:
            assert str(error)
        except Exception as error:
            found.append(f"{fn.name}: {type(error).__name__}: {str(error)[:200]}, given {str(values)[:200]}")
    return found


@pytest.mark.parametrize("each", [QUICK, pytest.param(MANY, marks=LONG_ALONE)], ids=["quick", "many"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_handler_raises_a_raw_error(opened, path, each):
    studio, demo = opened
    dataset = studio.datasets()[0]["id"]
    query = {"run": "run-1", "runs": "run-1,run-2", "dataset": dataset}
    assert wrong(path, demo, query, random.Random(each), each) == []
    assert not each or wrong(path, demo, {}, random.Random(1), each) == []


@pytest.mark.parametrize("each", [2, pytest.param(150, marks=LONG_ALONE)], ids=["quick", "many"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_address_keeps_a_page_from_opening(opened, path, each):
    _, demo = opened
    chance = random.Random(each)
    texts = [text for text in TEXTS if text is not None]
    for _ in range(each):
        Visit(demo, path, {name: chance.choice(texts) for name in QUERIES})


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nonsense_in_the_forms_that_make_something_makes_nothing(opened):
    studio, demo = opened
    before, tried = (len(studio.runs(limit=500)), len(studio.datasets())), 0
    for path, named in (("/experiment", ("start", "queue")), ("/data", ("keep",)), ("/fusion", ())):
        visit = Visit(demo, path, {})
        for fn, values, event in visit.attempts(random.Random(2), 2):
            if not named or fn.name in named:
                tried += 1
                with suppress(StudioError, gr.Error):
                    visit.call(fn, values, event)
    assert tried > 60
    assert (len(studio.runs(limit=500)), len(studio.datasets())) == before


def test_names_and_notes_have_the_bounds_of_a_new_run(opened):
    studio, _ = opened
    for given in ({"name": LONG}, {"notes": "x" * 20_001}, {"tags": [LONG]}, {"name": "\ud800"}):
        with pytest.raises(StudioError, match=next(iter(given))):
            studio.annotate("run-1", **given)
    text = "🙂 مرحبا \u202e" * 10
    assert studio.annotate("run-1", name=text, notes=LONG)["name"] == text
    assert LONG[:9] in str(studio.run("run-1"))


def test_what_a_handler_does_not_expect_becomes_a_sentence(opened, monkeypatch):
    studio, _ = opened
    monkeypatch.setattr("app.acting.who", lambda *_: acting())
    with pytest.raises(gr.Error, match=UNEXPECTED[:40]):
        as_actor(lambda value: value["x"], Access(studio.users), person=False)([])
