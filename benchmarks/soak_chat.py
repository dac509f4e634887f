"""People who chat while things die: each question is asked as the page asks it, and what became of it is looked up."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.soak_home import CHAT, WEB, House, until
from benchmarks.soak_tabs import Tab
from benchmarks.soak_watch import spread

ASKED, TOKENS, TEMPERATURE, TOP_P = 0, 5, 6, 7  # where they stand among what the page sends
SHORT, LONG = {TOKENS: 6}, {TOKENS: 400, TEMPERATURE: 2.0, TOP_P: 1.0}  # the hot one comes to no end by itself
IDLE = 15  # seconds after which a chat worker leaves
PATIENCE = 90.0  # seconds in which a question is answered where nothing is killed meanwhile
WHOLE = ("end", "length")


@dataclass
class Asked:
    """A question: ``at`` and ``over`` are when it was sent and when its stream ended, in monotonic seconds."""

    text: str
    at: float
    began: bool = False  # whether the page said that it is being answered
    over: float | None = None
    state: str = ""  # as the page shows it afterwards


@dataclass
class Blow:
    """A kill of the chat worker, and the seconds until somebody was answered again."""

    kind: str
    at: float
    pids: int
    again: float | None = None


@dataclass(frozen=True)
class Kill:
    """When processes of these roles were killed."""

    at: float
    roles: frozenset[str]


@dataclass
class Talk:
    """Asks a short question now and then, and at once after each blow until one is answered; in a thread of its own."""

    house: House
    chance: random.Random
    asked: list[Asked] = field(default_factory=list)
    blows: list[Blow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _hurry: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self._go(self._talk_on)

    def stop(self) -> None:
        """No question more; those on their way end."""
        self._over.set()
        self._hurry.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def begin(self) -> Asked:
        """Ask for a long answer in the background."""
        asked = self._new()
        self._go(self._ask, asked, LONG)
        return asked

    def note(self, blow: Blow) -> None:
        self.blows.append(blow)
        self._hurry.set()

    def waiting(self) -> list[Blow]:
        """Kills after which nobody was answered yet."""
        return [blow for blow in self.blows if blow.again is None]

    def answered(self) -> bool:
        """Ask until somebody is answered, for as long as people are patient."""
        return bool(until(lambda: self._ask(self._new(), SHORT), PATIENCE, pause=0.5))

    def _go(self, work: Any, *given: Any) -> None:
        thread = threading.Thread(target=work, args=given, name="chat", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _talk_on(self) -> None:
        while not self._over.is_set():
            waiting = self.waiting()
            if self._ask(self._new(), SHORT):
                for blow in waiting:
                    blow.again = time.monotonic() - blow.at
            self._hurry.wait(0.5 if waiting else self.chance.uniform(4.0, 10.0))
            self._hurry.clear()

    def _new(self) -> Asked:
        with self._lock:
            self.asked.append(Asked(f"Question {len(self.asked) + 1}: which colour is the sky?", time.monotonic()))
            return self.asked[-1]

    def _ask(self, asked: Asked, settings: dict[int, Any]) -> bool:
        """Whether it was answered whole; a server that is away, or dies meanwhile, answers nobody."""
        try:
            with httpx.Client(base_url=self.house.address, timeout=PATIENCE, follow_redirects=True) as client:
                tab = Tab(client, "/chat?runs=base")
                asked.at = time.monotonic()
                for _ in tab.press("chat-box", {ASKED: asked.text, **settings}):
                    asked.began = True
                asked.over = time.monotonic()
                asked.state = last_turn(tab).get("state", "")
        except httpx.TimeoutException:
            self.problems.append(f"{asked.text[:12]} was told nothing for {PATIENCE:.0f} s")
        except httpx.HTTPError:
            pass  # no web server, or one that died while it answered
        finally:
            asked.over = asked.over or time.monotonic()
        return asked.state in WHOLE


def last_turn(tab: Tab) -> dict[str, Any]:
    """The newest turn of the first model, as the page has it."""
    turns = (tab.value("chat-pane-1") or {}).get("turns") or [{}]
    return turns[-1]


def answering(house: House) -> bool:
    """Whether a chat worker computes an answer."""
    return any(one["active"] for one in house.studio.chats.inference.workers())


def interrupted(asked: Asked, kills: Sequence[Kill]) -> bool:
    """Whether one of those who answer was killed between question and answer."""
    return any(asked.at <= kill.at <= (asked.over or kill.at) and kill.roles & {CHAT, WEB} for kill in kills)


def report(talk: Talk) -> dict[str, Any]:
    """Figures as JSON: ``again``: seconds from a kill until a question was answered, by what was killed."""
    kinds = sorted({blow.kind for blow in talk.blows})
    again = {kind: [one.again for one in talk.blows if one.kind == kind and one.again is not None] for kind in kinds}
    whole = [one for one in talk.asked if one.state in WHOLE]
    return {
        "asked": sum(one.began for one in talk.asked),
        "answered": len(whole),
        "kills": len(talk.blows),
        "again": {kind: spread(values) for kind, values in again.items()},
        "answers": spread([one.over - one.at for one in whole if one.over]),
    }
