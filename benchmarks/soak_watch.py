"""Whether pages tell the truth: what they show beside the processes that live, again and again while things die."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.soak_home import CHAT, House
from benchmarks.soak_tabs import States, Tab, home_states, list_states, menu_states, view_states
from core.jobs.service import dispatcher_status

WORKING = ("starting", "running", "cancelling")
PROMISED = 15.0  # seconds in which every page is right again
POLL = 0.5
PAGES = ("Home", "Runs", "run view", "Compare", "Routing")
MENDS = {"dispatcher", "web", "all"}  # words of kills after which a page is mended anew
TAIL = 1 << 13


@dataclass(frozen=True)
class Truth:
    """``alive``: (run, job) -> attempts with a living worker; ``finished``: those whose last word is ``finished``."""

    alive: dict[tuple[str, str], frozenset[int]]
    finished: frozenset[tuple[str, str]]


def truth(house: House, runs: Iterable[str]) -> Truth:
    alive: dict[tuple[str, str], set[int]] = {}
    for worker in house.workers():
        alive.setdefault((worker.run, worker.job), set()).add(worker.attempt)
    finished = {place for run in runs if (place := _finished(house, run)) is not None and place not in alive}
    return Truth({place: frozenset(found) for place, found in alive.items()}, frozenset(finished))


def _finished(house: House, run: str) -> tuple[str, str] | None:
    """The job of a run that said last that it is done; a page may not say otherwise once its worker is gone."""
    try:
        with house.home.run(run).events.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            last = json.loads(file.read().rstrip(b"\n").rpartition(b"\n")[2])
    except (OSError, ValueError):
        return None
    return (run, last["job"]) if last.get("kind") == "finished" else None


def untrue(states: States, before: Truth, after: Truth) -> list[tuple[str, str, str]]:
    """What a page shows against what was so both before and after it was asked: run, job and the state shown."""
    wrong = []
    for (run, job), state in states.items():
        place = (run, job or "train")
        stayed = before.alive.get(place, frozenset()) & after.alive.get(place, frozenset())
        idle = place not in before.alive and place not in after.alive
        done = place in before.finished and place in after.finished
        if (state in WORKING and idle) or (state not in WORKING and stayed) or (state != "done" and done):
            wrong.append((run, job, state))
    return wrong


@dataclass
class Happening:
    """Something that was done to the house, and when every page was right again: ``settled`` seconds since then, and
    ``served`` seconds since the web server was back, if it was away meanwhile."""

    kind: str
    at: float
    pids: int = 0
    counted: bool = True  # a kill; pauses and what people do are not
    settled: float | None = None
    served: float | None = None
    pages: dict[str, float] = field(default_factory=dict)


@dataclass
class Watcher:
    """Polls every page in a thread. All in seconds: ``wrong``: the longest time that each page said something untrue;
    ``outages``: without a web server; ``alone``: without a dispatcher; ``answers``: of the pages; ``crowded``: the
    longest time with more than one chat worker."""

    house: House
    shown: Callable[[], str | None]  # the run that the run view shows
    runs: Callable[[], list[str]]  # the runs that are not over
    happened: list[Happening] = field(default_factory=list)
    wrong: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PAGES, 0.0))
    polls: int = 0
    answers: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    outages: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    crowded: float = 0.0
    _crowded_since: float | None = None
    _alone_since: float | None = None
    _back: float = 0.0
    _tabs: dict[str, Tab] = field(default_factory=dict)
    _since: dict[str, dict[tuple[str, str], float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._poll_on, name="watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(60)

    def note(self, happening: Happening) -> None:
        with self._lock:
            self.happened.append(happening)

    def unsettled(self) -> int:
        return sum(one.settled is None for one in list(self.happened))

    def _poll_on(self) -> None:
        with httpx.Client(base_url=self.house.address, timeout=20, follow_redirects=True) as client:
            down: float | None = None
            while not self._over.wait(POLL):
                began = time.monotonic()
                self._look_for_dispatcher(began)
                self._count_chats(began)
                if down is not None and not self.house.answers():
                    continue
                if down is not None:
                    self._back = time.monotonic()
                    self.outages.append(self._back - down)
                    down = None
                try:
                    self._poll(client, began)
                except httpx.TimeoutException:
                    self.problems.append("a page did not answer within 20 s")
                except httpx.TransportError:  # no web server, or one that died while it answered
                    down = began
                    self._tabs.clear()
                    self._since.clear()
                except Exception as error:
                    self._tabs.clear()
                    self.problems.append(f"{type(error).__name__}: {error}"[:400])

    def _look_for_dispatcher(self, now: float) -> None:
        if not dispatcher_status(self.house.home).alive:
            self._alone_since = self._alone_since or now
        elif self._alone_since is not None:
            self.alone.append(now - self._alone_since)
            self._alone_since = None

    def _count_chats(self, now: float) -> None:
        several = len(self.house.seen(CHAT)) > 1  # people of a soak ask one base alone
        self._crowded_since = (self._crowded_since or now) if several else None
        self.crowded = max(self.crowded, now - (self._crowded_since or now))

    def _poll(self, client: httpx.Client, began: float) -> None:
        """Ask each page and compare it with the processes before and after its own answer."""
        right_at: dict[str, float] = {}
        for page in PAGES:
            before, asked = truth(self.house, self.runs()), time.monotonic()
            states = self._states(client, page)
            answered = time.monotonic()
            self.answers.append(answered - asked)
            found = untrue(states, before, truth(self.house, self.runs()))
            self._keep_account(page, found, states, asked, answered)
            if not found:
                right_at[page] = answered
        self.polls += 1
        with self._lock:
            for one in self.happened:
                if one.settled is None and one.at <= began:
                    for page, at in right_at.items():
                        one.pages.setdefault(page, at - one.at)
                    if len(right_at) == len(PAGES):
                        last = max(right_at.values())
                        one.settled, one.served = last - one.at, last - max(one.at, self._back)

    def _keep_account(
        self, page: str, found: list[tuple[str, str, str]], states: States, asked: float, answered: float
    ) -> None:
        """How long each untruth has lasted: from the last answer in which the page was right about that job, and
        from the last kill of what mends it."""
        places, before = {(run, job) for run, job, _ in found}, self._since.get(page, {})
        self._since[page] = {place: before.get(place, asked) if place in places else asked for place in states}
        with self._lock:
            again = max((one.at for one in self.happened if one.counted and MENDS & set(one.kind.split())), default=0.0)
        for place in places:
            self.wrong[page] = max(self.wrong[page], answered - max(again, self._since[page][place]))

    def _states(self, client: httpx.Client, page: str) -> States:
        if page == "Home":
            return home_states(self._tab(client, page, "/"))
        if page == "Runs":
            return list_states(self._tab(client, page, "/runs"))
        if page == "run view":
            run = self.shown()
            return view_states(self._tab(client, page, f"/runs?run={run}")) if run else {}
        if page == "Compare":
            return menu_states(Tab(client, "/compare"), "compare-runs")
        return menu_states(Tab(client, "/routing"), "routing-run")

    def _tab(self, client: httpx.Client, page: str, path: str) -> Tab:
        """A tab that stays open while its address is wanted: opened once, then its timer asks."""
        known = self._tabs.get(page)
        if known is not None and known.path == path:
            known.tick()
        else:
            known = self._tabs[page] = Tab(client, path)
        return known


def spread(values: list[float]) -> dict[str, Any]:
    """Median, 95th percentile, most and how many."""
    ordered = sorted(values)
    if not ordered:
        return {"count": 0, "median": None, "p95": None, "most": None}
    median, p95 = (round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2) for share in (0.5, 0.95))
    return {"count": len(ordered), "median": median, "p95": p95, "most": round(ordered[-1], 2)}
