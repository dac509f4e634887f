"""What is killed, and when: seeded kinds in a seeded order, each waiting for its moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.soak_chat import Blow, Kill, Talk, answering
from benchmarks.soak_home import CHAT, DISPATCHER, WEB, WORKER, House, Seen, until
from benchmarks.soak_runs import People
from benchmarks.soak_watch import Happening, Watcher
from core.home import PROJECT

# kind -> its part of the kills
CHATS = {
    "chat worker": 2,
    "chat worker while it answers": 4,
    "chat worker while it starts": 3,
    "chat worker and web server": 3,
}
KINDS = CHATS | {
    "worker": 13,
    "worker while it starts": 4,
    "worker while it writes a checkpoint": 5,
    "dispatcher": 8,
    "dispatcher while it starts": 3,
    "dispatcher while it reads events": 4,
    "web server": 4,
    "web server while it starts": 2,
    "all three": 4,
    "right after a submission": 3,
    "right after a cancellation": 3,
}
PAUSES = ("worker stopped for a while", "dispatcher stopped for a while", "web server stopped for a while")
MOMENT = 8.0  # seconds that a kill waits for its moment


def order(chance: random.Random, kills: int) -> list[str]:
    """The kinds in their proportions, every kind at least once where there are enough, with pauses among them."""
    whole = sum(KINDS.values())
    kinds = [kind for kind, part in KINDS.items() for _ in range(max(1, round(kills * part / whole)))]
    while len(kinds) < kills:
        kinds.append("worker")
    chance.shuffle(kinds)
    kinds = kinds[:kills]
    for _ in range(kills // 5):
        kinds.insert(chance.randrange(len(kinds) + 1), chance.choice(PAUSES))
    return kinds


def moments(chance: random.Random, count: int, seconds: float, first: float = 6.0) -> list[float]:
    """Random seconds since the beginning, in order."""
    return sorted(chance.uniform(first, max(seconds, first + 1)) for _ in range(count))


@dataclass
class Killer:
    """Does what a kind says to the house, and tells the watcher."""

    house: House
    people: People
    watcher: Watcher
    talk: Talk
    chance: random.Random
    killed: list[Kill] = field(default_factory=list)

    def do(self, kind: str) -> Happening:
        if "web" in kind or kind == "all three":
            until(self.house.answers, 2 * MOMENT)  # each time without a web server is one kill's, and is told of it
        happening = self._acts()[kind](kind)
        if happening.pids and (kind not in CHATS or "web" in kind):  # pages of runs know nothing of chats
            self.watcher.note(happening)
        return happening

    def _acts(self) -> dict[str, Callable[[str], Happening]]:
        return {
            "worker": self._worker,
            "worker while it starts": lambda kind: self._worker(kind, self._starting),
            "worker while it writes a checkpoint": lambda kind: self._worker(kind, self._writing),
            "dispatcher": lambda kind: self._kill(kind, self._living(DISPATCHER)),
            "dispatcher while it starts": lambda kind: self._again(kind, DISPATCHER),
            "dispatcher while it reads events": self._reading,
            "web server": lambda kind: self._kill(kind, self._living(WEB)),
            "web server while it starts": lambda kind: self._again(kind, WEB),
            "all three": lambda kind: self._kill(kind, self.house.seen(WEB, DISPATCHER, WORKER)),
            "right after a submission": self._after_submission,
            "right after a cancellation": self._after_cancellation,
            **dict.fromkeys(CHATS, self._chat),
            **dict.fromkeys(PAUSES, self._pause),
        }

    def _living(self, role: str) -> list[Seen]:
        """The process, waited for if it is away."""
        return until(lambda: self.house.seen(role), MOMENT) or []

    def _kill(self, kind: str, targets: list[Seen]) -> Happening:
        at = time.monotonic()
        self.killed.append(Kill(at, frozenset(one.role for one in targets)))
        self._touch(targets)
        hit = self.house.kill(*(one.pid for one in targets))
        if any(one.role == WEB for one in targets):
            self.house.serve()
        return Happening(kind, at, len(hit), counted=bool(hit))

    def _touch(self, targets: list[Seen]) -> None:
        for one in targets:
            if one.run in self.people.ordered:
                self.people.ordered[one.run].touched = True

    def _victims(self) -> list[Seen]:
        """Workers of runs that are not spared, which are the uninterrupted twins."""
        ordered = self.people.ordered
        return [one for one in self.house.workers() if one.run in ordered and not ordered[one.run].spared]

    def _worker(self, kind: str, choose: Callable[[], Seen | None] | None = None) -> Happening:
        """At its moment, else any moment: then it counts as a plain one."""
        chosen = until(choose, MOMENT, pause=0.001) if choose else None
        if chosen is None:
            kind = "worker"
            chosen = until(lambda: (found := self._victims()) and self.chance.choice(found), MOMENT)
        return self._kill(kind, [chosen] if chosen else [])

    def _starting(self) -> Seen | None:
        """A worker that has not said ``started`` yet, at any moment of its first seconds."""
        for one in self._victims():
            events = self.house.home.run(one.run).events
            own = f'"job": "{one.job}", "attempt": {one.attempt}, '
            with suppress(OSError):
                told = events.read_text(errors="replace") if events.exists() else ""
                if not any(own in line and '"kind": "started"' in line for line in told.splitlines()):
                    time.sleep(self.chance.uniform(0.0, 1.5))
                    return one
        return None

    def _writing(self) -> Seen | None:
        """A worker in whose folder a checkpoint is being written."""
        victims = self._victims()
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            for one in victims:
                if any(self.house.home.run(one.run).checkpoints.glob(".writing-*")):
                    return one
        return None

    def _reading(self, kind: str) -> Happening:
        """Kill the dispatcher within a pass after a worker said something: the next has to find the place."""
        sizes = {one.run: self._size(one.run) for one in self.house.workers()}
        until(lambda: any(self._size(run) > size for run, size in sizes.items()), MOMENT, pause=0.005)
        time.sleep(self.chance.uniform(0.0, 0.5))
        return self._kill(kind, self._living(DISPATCHER))

    def _size(self, run: str) -> int:
        with suppress(OSError):
            return self.house.home.run(run).events.stat().st_size
        return 0

    def _again(self, kind: str, role: str) -> Happening:
        """Kill it, and kill what takes its place in its first seconds: the database is being opened then."""
        first = self._kill(kind, self._living(role))
        until(lambda: self.house.seen(role), MOMENT, pause=0.01)
        time.sleep(self.chance.uniform(0.0, 3.0))
        second = self._kill(kind, self._living(role))
        return Happening(kind, second.at, first.pids + second.pids, counted=first.counted or second.counted)

    def _after_submission(self, kind: str) -> Happening:
        self.people.submit()
        roles = self.chance.choice(((DISPATCHER,), (DISPATCHER, WORKER)))
        return self._kill(kind, self.house.seen(*roles))

    def _after_cancellation(self, kind: str) -> Happening:
        run = self.people.cancel()
        own = [one for one in self.house.workers() if one.run == run]
        return self._kill(kind, own if own and self.chance.random() < 0.5 else self._living(DISPATCHER))

    def _chat(self, kind: str) -> Happening:
        """Somebody asks, and the one who answers dies; where its moment does not come, it counts as any."""
        if kind.endswith("starts"):
            self._kill(kind, self.house.seen(CHAT))
            self.talk.begin()
            until(lambda: self.house.seen(CHAT), MOMENT, pause=0.01)
            time.sleep(self.chance.uniform(0.0, 3.0))
        elif kind != "chat worker":
            self.talk.begin()
            if not until(lambda: answering(self.house), 2 * MOMENT) and "web" not in kind:
                kind = "chat worker"
        found = self._living(CHAT)
        if not found:
            return Happening(kind, time.monotonic())
        happening = self._kill(kind, found + (self.house.seen(WEB) if "web" in kind else []))
        self.talk.note(Blow(kind, happening.at, happening.pids))
        return happening

    def _pause(self, kind: str) -> Happening:
        """SIGSTOP, a few seconds, SIGCONT; what is promised counts from the end of the pause."""
        role = next(role for role in (WORKER, DISPATCHER, WEB) if kind.startswith(role))
        targets = (until(self._victims, MOMENT) or [])[:1] if role == WORKER else self._living(role)
        self._touch(targets)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for one in targets:
                with suppress(ProcessLookupError):
                    os.kill(one.pid, number)
            if number == signal.SIGSTOP:
                time.sleep(self.chance.uniform(0.5, 4.0))
        return Happening(kind, time.monotonic(), len(targets), counted=False)


OPEN_ONE = "import sys; from storage import Database; Database(sys.argv[1]).close()"


def kill_while_opening(chance: random.Random, folder: Path, times: int) -> list[str]:
    """Kill processes that open a database of the first schema, at random moments; then open it. Returns what is wrong.

    The database has a run from then; it must be there once, whole, in the newest schema, with a copy beside it.
    """
    problems = []
    for number in range(times):
        path = folder / f"opened-{number}.db"
        old_database(path)
        opening = subprocess.Popen([sys.executable, "-c", OPEN_ONE, f"sqlite:///{path}"], cwd=PROJECT)
        time.sleep(chance.uniform(0.3, 1.6))
        opening.kill()
        opening.wait()
        problems += opened_whole(path)
    return problems


def old_database(path: Path) -> None:
    """A database as the first schema left it, with one run."""
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine, text

    from storage.database import MIGRATIONS

    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO runs (slug, name, spec, method, base, tasks, seed, setting_hash, state, created, notes, "
                "folder, events_offset) VALUES ('run-1', 'old', '{}', 'lora', 'b', '[]', 0, 'h', 'done', "
                "'2025-01-01 00:00:00', '', 'run-1', 0)"
            )
        )
    engine.dispose()


def opened_whole(path: Path) -> list[str]:
    from sqlalchemy import text

    from storage import Database

    with Database(f"sqlite:///{path}") as database, database.session() as session:
        names = session.execute(text("SELECT slug FROM runs")).scalars().all()
        whole = session.execute(text("PRAGMA integrity_check")).scalar()
        broken = session.execute(text("PRAGMA foreign_key_check")).all()
    if names != ["run-1"] or whole != "ok" or broken:
        return [f"{path.name}: runs {names}, integrity {whole}, broken references {len(broken)}"]
    return [] if list(path.parent.glob(f"{path.name}.*.bak")) else [f"{path.name}: no copy was made"]
