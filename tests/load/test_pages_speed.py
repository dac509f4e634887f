"""How long pages take on a home after much work. The bound of the small home leaves room for a machine that is busy."""

import pytest
from sqlalchemy import event

from app.pages import chat_state, compare, data, home, routing, runs
from app.pages.run_list import Filters
from benchmarks import load_fixture, load_pages
from benchmarks.load import percentile
from benchmarks.load_browser import PATHS
from core.studio import Studio
from storage.models import Run
from storage.queries import settings
from tests.support.seed import QuietStudio


def test_every_page_answers_through_the_real_server(year):
    times = load_pages.measured(year, PATHS, 2)
    slow = {path: own for path, own in times.items() if min(own["load"]) > 0.3 or min(own.get("tick", [0])) > 0.1}
    assert len(times) == len(PATHS) and not slow


@pytest.mark.long
def test_pages_of_five_hundred_runs_are_filled_in_300_ms(tmp_path):
    load_fixture.build(tmp_path / "home")
    times = load_pages.measured(tmp_path / "home", load_pages.paths(tmp_path / "home"), load_pages.LOADS)
    late = {path: own["load"] for path, own in times.items() if percentile(own["load"], 95) > load_pages.BOUND}
    assert not late


def counted(studio: Studio, work) -> tuple[int, int]:
    """Statements, and rows of runs that they brought."""
    found = [0, 0]

    def executed(connection, cursor, statement, *rest):
        found[0] += 1

    def loaded(target, context):
        found[1] += 1

    event.listen(studio.records.database.engine, "after_cursor_execute", executed)
    event.listen(Run, "load", loaded)
    try:
        work()
    finally:
        event.remove(studio.records.database.engine, "after_cursor_execute", executed)
        event.remove(Run, "load", loaded)
    return found[0], found[1]


@pytest.fixture
def studio(year) -> Studio:
    studio = QuietStudio(year)
    yield studio
    studio.close()


def test_what_all_tabs_look_at_is_read_once(studio):
    seen: dict[str, str] = {}

    def tick() -> None:
        version = studio.watch.changes.recent()
        runs.shown(studio, "run-50", "loss", Filters(), seen, version)

    tick()
    assert counted(studio, tick) == (0, 0)  # another tab at the same moment
    with studio.records.write() as session:
        settings.put(session, key="touched", value={"by": "the test"})
    studio.watch.changes.now()
    first, _ = counted(studio, tick)
    assert 0 < first <= 20  # the list anew; the run rests, so of it only what says so


def test_a_tab_sees_at_once_what_it_did_itself(studio):
    run = studio.runs(limit=1)[0]["id"]
    fresh, seen = runs.run_look.look(studio, run, "loss", Filters(), {})
    assert "changed by a test" not in fresh["head"]
    studio.annotate(run, name="changed by a test")
    fresh, _ = runs.run_look.look(studio, run, "loss", Filters(), seen)
    assert "changed by a test" in fresh["head"] and "list" in fresh


@pytest.mark.parametrize("look", [
    lambda studio: home.view(studio, None),
    lambda studio: runs.shown(studio, "", "loss", Filters(), {}),
    lambda studio: data.stored(studio, ""),
], ids=["home", "runs", "data"])  # fmt: skip
def test_lists_read_a_page_not_everything(studio, look):
    _, rows = counted(studio, lambda: look(studio))
    assert rows <= 40


def test_menus_are_read_once_until_something_is_written(studio):
    chat_state.start(studio, {})
    compare.runs_menu(studio, compare.Choice.of({}))
    routing.view(studio, routing.Choice())
    _, rows = counted(studio, lambda: (chat_state.start(studio, {}), compare.runs_menu(studio, compare.Choice.of({}))))
    assert rows <= 20
