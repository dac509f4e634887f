"""Ten seeded kills of stand-in workers and their dispatcher: every page stays true, and nothing is left behind."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.pages import compare, home, routing, run_look
from app.pages.routing_choice import Choice
from app.pages.run_list import Filters
from benchmarks import soak_checks as checks
from benchmarks.soak_home import DISPATCHER, WORKER, House, until
from benchmarks.soak_runs import Ordered, settings
from benchmarks.soak_tabs import States, home_rows, listed, states_of_labels, viewed
from benchmarks.soak_watch import PROMISED, Truth, truth, untrue
from core.home import PROJECT
from storage.queries import jobs, runs, series

STEPS, KILLS = 40, 10
HELD = {str(attempt): STEPS - 2 for attempt in range(1, 5 * KILLS)}  # no run ends before the last kill
STAND_IN = PROJECT / "tests" / "jobs" / "stand_in_dispatcher.py"
LIMITS = {"slots": 3, "lost_attempts": 50}


class Kept(House):
    """A home whose dispatcher has short limits and starts stand-ins; the test starts it again."""

    def dispatch(self) -> None:
        with self.log.open("ab") as out:
            subprocess.Popen(
                [sys.executable, str(STAND_IN), str(self.home.root), json.dumps(LIMITS)],
                stdout=out,
                stderr=out,
                cwd=PROJECT,
                env={**os.environ, "PYTHONPATH": str(PROJECT)},
                start_new_session=True,
            )

    def let_go(self, one: Ordered) -> None:
        (self.home.run(one.id).create().root / "go").touch()

    def submit(self, number: int) -> Ordered:
        spec = settings("d", "lora", number, STEPS).model_dump(mode="json")
        wishes = {"steps": STEPS, "pause": 0.03, "checkpoint_every": 4, "children": number % 2, "hold": HELD}
        with self.studio.records.write() as session:
            run, _ = runs.add(session, spec=spec, name=f"stand-in {number}", request_id=f"request-{number}")
            jobs.add(session, run=run.id, kind="train", arguments=wishes, device="cpu")
        return Ordered(run.id, f"request-{number}", ("lora", number), spared=False)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path / "home", tmp_path / "log")
    yield made
    made.close()


def pages(house: House, chosen: str) -> dict[str, States]:
    """What each page shows, from the functions that its handlers call."""
    drawn = run_look.look(house.studio, chosen, "loss", Filters(), {})[0]
    menu = compare.runs_menu(house.studio, compare.Choice())
    return {
        "Home": home_rows(home.view(house.studio, None)["runs"]),
        "Runs": listed(drawn["list"]),
        "run view": viewed(drawn["head"] + drawn["facts"]),
        "Compare": states_of_labels(label for label, _ in menu),
        "Routing": states_of_labels(label for label, _ in routing.view(house.studio, Choice())["run"]["choices"]),
    }


def wrong_now(house: House, ordered: list[Ordered]) -> list[object]:
    ids = [one.id for one in ordered]
    before, shown = truth(house, ids), pages(house, ids[0])
    after = truth(house, ids)
    assert all(shown.values()), f"a page shows no run: {shown}"
    return [(page, *found) for page, states in shown.items() for found in untrue(states, before, after)]


def idle(house: House) -> bool:
    with house.studio.records.read() as session:
        return jobs.busy(session) == 0


def test_ten_kills(house: Kept) -> None:
    chance = random.Random(11)
    ordered = [house.submit(number) for number in range(4)]
    house.dispatch()
    slowest = 0.0
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.05, 0.4))
        roles = chance.choice(((WORKER,), (WORKER,), (DISPATCHER,), (DISPATCHER, WORKER)))
        targets = until(lambda roles=roles: house.seen(*roles), 15)
        assert targets, f"no {roles} came to life:\n{house.log.read_text()[-2000:]}"
        began = time.monotonic()
        assert house.kill(*(one.pid for one in targets))
        if DISPATCHER in roles:
            house.dispatch()
        wrong = until(lambda: not wrong_now(house, ordered), PROMISED)
        assert wrong, wrong_now(house, ordered)
        slowest = max(slowest, time.monotonic() - began)
    for one in ordered:
        house.let_go(one)
    assert until(lambda: idle(house), 40), house.log.read_text()[-2000:]
    assert slowest < PROMISED
    database = house.studio.records.database
    for check in (
        checks.requests(database, ordered),
        checks.ended(database),
        checks.steps(database, [one.id for one in ordered], STEPS),
        checks.attempts(database),
        checks.devices(database),
        checks.orphans(house, database),
        checks.database_whole(database),
        checks.halves(house.home.root),
    ):
        assert check.holds and check.looked_at, check
    expected = [float(np.float32(10.0 / step)) for step in range(1, STEPS + 1)]
    with database.session() as session:
        for one in ordered:
            assert series.read(session, run=one.id)["loss"].values.tolist() == expected
            assert runs.get(session, run=one.id).state == "done"


def test_an_untrue_page_is_noticed() -> None:
    alive, dead = Truth({("run-1", "train"): frozenset({1})}, frozenset()), Truth({}, frozenset())
    done = Truth({}, frozenset({("run-1", "train")}))
    other = Truth({("run-1", "train"): frozenset({2})}, frozenset())
    shown = lambda state: {("run-1", ""): state}  # noqa: E731
    assert untrue(shown("running"), dead, dead) == [("run-1", "", "running")]
    assert untrue(shown("queued"), alive, alive) and untrue(shown("running"), done, done)
    assert not untrue(shown("running"), alive, dead) and not untrue(shown("queued"), dead, alive)
    assert not untrue(shown("queued"), alive, other), "one attempt ended and the next began meanwhile"
    assert not untrue(shown("done"), done, done)
