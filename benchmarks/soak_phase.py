"""The part of the soak in which everything is killed: from an empty home to its figures."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import soak_chat, soak_chat_checks
from benchmarks import soak_checks as checks
from benchmarks.soak_home import House, until
from benchmarks.soak_kills import PAUSES, Killer, kill_while_opening, moments, order
from benchmarks.soak_runs import METHODS, OPEN, Ordered, People, small_data
from benchmarks.soak_watch import PAGES, PROMISED, Happening, Watcher, spread
from storage import Database

STEPS = 96
WAITING = 3  # runs that always wait
SUBMITTING = 0.55  # of the time; then what is queued is worked off
KILLING = 0.75
GRACE = 240.0  # seconds past the end in which the last runs may finish
OPENINGS = 8


def soak(root: Path, *, seconds: float, seed: int, kills: int, steps: int = STEPS, say: Any = print) -> dict[str, Any]:
    """Serve ``root``, let people work in it for ``seconds``, kill ``kills`` times, and check everything.

    A run has ``steps`` steps. On a slow machine it takes longer, so that every kill has its moment.
    """
    chance, began = random.Random(seed), time.monotonic()
    house = House(root, root.parent / "web.log")
    with tempfile.TemporaryDirectory() as folder:
        people = People(house.studio, small_data(house.studio, Path(folder) / "data"), chance, steps)
        opened = kill_while_opening(chance, Path(folder), OPENINGS)
    watcher = Watcher(house, lambda: _shown(house, people), lambda: list(people.ordered))
    talk = soak_chat.Talk(house, random.Random(seed + 1))
    killer = Killer(house, people, watcher, talk, chance)
    try:
        house.serve()
        if not until(house.answers, 120):
            raise RuntimeError(f"the web server does not start: {house.log.read_text()[-2000:]}")
        watcher.start()
        talk.start()
        _work(people, killer, seconds - (time.monotonic() - began), kills, say)
        _finish(people, GRACE, say)
        until(lambda: not watcher.unsettled() and not talk.waiting(), PROMISED * 2)
        talk.stop()
        chats = [soak_chat_checks.again(talk, talk.answered())]
        chats += [soak_chat_checks.answers(house.studio, talk), soak_chat_checks.undisturbed(talk, killer.killed)]
        watcher.stop()
        chats.append(soak_chat_checks.workers(house, watcher.crowded))
        found = _audit(house, people) + chats
        found.append(checks.Check("a data base opens whole after a kill while it is migrated", OPENINGS, tuple(opened)))
        found += _of_pages(watcher) + _of_people(people)
        return report(people, killer, watcher, found, time.monotonic() - began) | {"seed": seed}
    finally:
        house.close()


def _shown(house: House, people: People) -> str | None:
    """The run whose view stays open: one that works, if any does."""
    working = [one.run for one in house.workers() if one.run in people.ordered]
    return working[0] if working else next(reversed(people.ordered), None)


def _work(people: People, killer: Killer, seconds: float, kills: int, say: Any) -> None:
    """Kills at their moments; people submit, cancel, resume and score between them."""
    began, kinds = time.monotonic(), order(people.chance, kills)
    due = list(zip(moments(people.chance, len(kinds), seconds * KILLING), kinds, strict=True))
    busy_until, next_whim, done = seconds * SUBMITTING, 0.0, 0
    while (now := time.monotonic() - began) < seconds + GRACE and (due or now < busy_until):
        if now < busy_until or due:  # there is always somebody to kill
            people.keep_queue(WAITING if now < busy_until else 1)
        if now >= next_whim:
            _whim(people)
            next_whim = now + people.chance.uniform(4.0, 10.0)
        if due and now >= due[0][0]:
            _, kind = due.pop(0)
            happening = killer.do(kind)
            if not happening.pids:  # nobody was there: another time
                due.append((now + 5.0, kind))
            done += happening.counted
            say(f"{time.monotonic() - began:6.1f} s  {done:3d}  {happening.kind} ({happening.pids} processes)")
        time.sleep(0.1)
    for _, kind in due:
        people.problems.append(f"no time was left for a kill: {kind}")


def _whim(people: People) -> None:
    wish = people.chance.random()
    if wish < 0.2:
        people.cancel()
    elif wish < 0.7:
        people.resume(share=0.5)
    elif wish < 0.8:
        people.score()


def _finish(people: People, seconds: float, say: Any) -> None:
    """Resume what failed or was cancelled (but a few, which stay), train missing references, wait for the end."""
    deadline, kept = time.monotonic() + seconds, set()
    while time.monotonic() < deadline:
        states = people.states()
        cancelled = [run for run, state in states.items() if state == "cancelled" and run in people.ordered]
        kept |= set(cancelled[:2]) if not kept else set()
        people.resume(but=kept)
        for group, runs in people.groups().items():
            if not any(not one.touched for one in runs):
                people.order(group, spared=True)
        working = [run for run, state in people.states().items() if state in OPEN]
        jobs = people.studio.dispatcher("status")
        if not working and not jobs["working"] and not jobs["waiting"]:
            return
        time.sleep(1.0)
    say(f"not finished after {seconds:.0f} s more")


def _audit(house: House, people: People) -> list[checks.Check]:
    states, ordered = people.states(), list(people.ordered.values())
    database = Database(house.home.database_url)
    with database:
        finished = [one.id for one in ordered if states.get(one.id) == "done"]
        found = [
            checks.requests(database, ordered),
            checks.ended(database),
            checks.steps(database, finished, people.steps),
            checks.twins(house.home, database, pairs(people, states)),
            checks.attempts(database),
            checks.devices(database),
            checks.orphans(house, database),
            checks.database_whole(database),
        ]
    house.studio.dispatcher("stop")
    return [*found, checks.halves(house.home.root)]


def pairs(people: People, states: dict[str, str]) -> list[tuple[str, str, str]]:
    """(uninterrupted run, touched run, state of that) of every setting and seed that has both."""
    found = []
    for runs in people.groups().values():
        whole: list[Ordered] = [one for one in runs if not one.touched and states.get(one.id) == "done"]
        others = [one for one in runs if one is not (whole[0] if whole else None)]
        found += [(whole[0].id, one.id, states[one.id]) for one in others if whole and one.id in states]
    return found


def _of_pages(watcher: Watcher) -> list[checks.Check]:
    late = [
        f"{one.kind}: {'never' if one.served is None else f'{one.served:.1f} s'}"
        for one in watcher.happened
        if one.served is None or one.served > PROMISED
    ]
    long = [f"{page}: {seconds:.1f} s" for page, seconds in watcher.wrong.items() if seconds > PROMISED]
    return [
        checks.Check(f"every page is right {PROMISED:.0f} s after each event", len(watcher.happened), tuple(late)),
        checks.Check(f"no page says anything untrue for {PROMISED:.0f} s", watcher.polls, tuple(long)),
        checks.Check("every page answers while its server lives", watcher.polls, tuple(watcher.problems)),
    ]


def _of_people(people: People) -> list[checks.Check]:
    return [checks.Check("what people ask for is done", sum(people.done.values()), tuple(people.problems))]


def report(
    people: People, killer: Killer, watcher: Watcher, found: list[checks.Check], seconds: float
) -> dict[str, Any]:
    """Figures and checks as JSON."""
    happened, talk = watcher.happened, killer.talk
    killed = [one for one in happened if one.counted] + [blow for blow in talk.blows if "web" not in blow.kind]
    states = Counter(people.states().values())
    with people.studio.records.read() as session:
        from sqlalchemy import func, select

        from storage.models import Attempt

        outcomes = dict(session.execute(select(Attempt.outcome, func.count()).group_by(Attempt.outcome)).tuples().all())
    return {
        "seconds": round(seconds),
        "kills": len(killed),
        "processes": sum(one.pids for one in killed),
        "kinds": dict(Counter(one.kind for one in killed)),
        "pauses": sum(one.kind in PAUSES for one in happened),
        "people": dict(sorted(people.done.items())),
        "runs": dict(states),
        "methods": list(METHODS),
        "attempts": {str(outcome): count for outcome, count in outcomes.items()},
        "settled": by_kind(happened, "settled"),
        "served": by_kind(happened, "served"),
        "pages": {
            page: spread([one.pages[page] for one in happened if one.counted and page in one.pages]) for page in PAGES
        },
        "untrue": {page: round(value, 2) for page, value in watcher.wrong.items()},
        "outages": spread(watcher.outages),
        "answers": spread(watcher.answers),
        "polls": watcher.polls,
        "without_dispatcher": spread(watcher.alone),
        "chat": soak_chat.report(killer.talk),
        "checks": [
            {"promise": one.promise, "looked_at": one.looked_at, "wrong": list(one.wrong[:20])} for one in found
        ],
    }


def by_kind(happened: list[Happening], field: str) -> dict[str, Any]:
    """Seconds of every kind of event, and of all."""
    found = {kind: [one for one in happened if one.kind == kind] for kind in sorted({one.kind for one in happened})}
    seconds = lambda ones: spread([value for one in ones if (value := getattr(one, field)) is not None])  # noqa: E731
    return {kind: seconds(ones) for kind, ones in found.items()} | {"all": seconds(happened)}
