"""Computes every request in one thread: answers grow as one batch, traces take turns with them."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.chat.lines import Request, error_fields
from core.chat.pieces import Piece
from core.chat.settings import Sampling
from core.errors import ConfigurationError, StudioError

if TYPE_CHECKING:
    from core.chat.answers import Answer, Answers, Asked
    from core.chat.engine import ChatEngine

log = logging.getLogger("tessera.inference")

MOST_ADAPTERS = 24
TOGETHER_SECONDS = 0.003  # the panes of a page ask one after the other


@dataclass(eq=False)
class Ticket:
    """A request and where its replies go; ``stop`` may be set by any thread."""

    request: Request
    reply: Callable[..., None]
    stop: threading.Event = field(default_factory=threading.Event)
    steps: Iterator[None] | None = None
    answers: list[Answer] = field(default_factory=list)

    def send(self, **fields: Any) -> None:
        self.reply(id=self.request.get("id"), **fields)


class Work:
    """``submit`` and ``report`` from any thread, ``run`` in one. ``computed`` counts tokens of answers."""

    def __init__(self) -> None:
        self.engine: ChatEngine | None = None
        self.computed = 0
        self.answers: Answers | None = None
        self.active: list[Ticket] = []
        self.touched = time.monotonic()
        self._waiting: queue.Queue[Ticket] = queue.Queue()
        self._adapters: dict[str, tuple[str, int]] = {}  # name -> folder and stamp, least recently used first

    @property
    def busy(self) -> bool:
        return bool(self.active) or not self._waiting.empty()

    def submit(self, ticket: Ticket) -> None:
        self.touched = time.monotonic()
        self._waiting.put(ticket)

    def report(self) -> dict[str, Any]:
        engine = self.engine
        state = "loading" if engine is None else "ready"
        adapters = list(self._adapters)
        return {"state": state, "active": len(self.active), "computed": self.computed, "adapters": adapters}

    def refuse_all(self, error: StudioError) -> bool:
        """Answer everything that waits with an error; whether there was anything."""
        any_waited = False
        while not self._waiting.empty():
            self._waiting.get().send(**error_fields(error))
            any_waited = True
        return any_waited

    def run(self, engine: ChatEngine, over: Callable[[], bool], pause: float = 0.25) -> None:
        """Until nothing is to be computed and ``over()``, which is asked after every round."""
        from core.chat.answers import Answers

        self.engine, self.answers = engine, Answers(engine)
        while True:
            self._begin(self._taken(pause))
            for ticket in list(self.active):
                self._advance(ticket)
            self._grow()
            if over() and not self.busy:
                return

    def _taken(self, pause: float) -> list[Ticket]:
        """What waits; with nothing to compute, wait a moment for something, and for what comes with it."""
        try:
            taken = [self._waiting.get_nowait() if self.active else self._waiting.get(timeout=pause)]
        except queue.Empty:
            return []
        if not self.active and pause:
            time.sleep(TOGETHER_SECONDS)
        while not self._waiting.empty():
            taken.append(self._waiting.get_nowait())
        return taken

    def _begin(self, tickets: list[Ticket]) -> None:
        """Take requests up; questions that come together are read as one batch."""
        calm = not self.active
        self.active += tickets
        asked: dict[Ticket, list[Asked]] = {}
        for ticket in (ticket for ticket in tickets if not ticket.stop.is_set()):
            with self._failing(ticket):
                self._load(ticket.request.get("adapters"), calm)
                asked[ticket] = self._asked(ticket)
        asked = {ticket: questions for ticket, questions in asked.items() if questions}
        try:
            self._read(asked)
        except Exception:  # whose fault it is shows by asking each alone
            for ticket, questions in asked.items():
                with self._failing(ticket):
                    self._read({ticket: questions})

    def _asked(self, ticket: Ticket) -> list[Asked]:
        """The questions of a chat; other requests are begun, or over."""
        from core.chat.answers import Asked

        match ticket.request:
            case {"op": "chat", "names": [_, *_] as names, "messages": list(messages)}:
                sampling = Sampling.parse(ticket.request.get("settings") or {})
                for name in names:
                    self.engine.task(name, sampling.task)
                return [Asked(name, messages, sampling) for name in names]
            case {"op": "trace", "name": str()}:
                ticket.steps = self._traced(ticket)
            case {"op": "load", "adapters": dict()}:
                self._done(ticket)
            case request:
                raise ConfigurationError(
                    f"The request {json.dumps(request)[:200]} is not understood.", "See core/chat/serve.py."
                )
        return []

    def _read(self, asked: dict[Ticket, list[Asked]]) -> None:
        if not asked:
            return
        begun = self.answers.begin([question for questions in asked.values() for question in questions])
        owners = {}
        answers = (answer for answer, _ in begun)
        for ticket, questions in asked.items():
            ticket.answers = [next(answers) for _ in questions]
            owners |= dict.fromkeys(ticket.answers, ticket)
        self._tell(owners, begun)

    def _grow(self) -> None:
        """One token more of every answer."""
        for ticket in [ticket for ticket in self.active if ticket.stop.is_set()]:
            self._stopped(ticket)
        if not self.answers.growing:
            return
        self.touched = time.monotonic()
        owners = {answer: ticket for ticket in self.active for answer in ticket.answers}
        try:
            grown = self.answers.step()
        except Exception as error:
            self.answers.drop()
            for ticket in set(owners.values()):
                self._failed(ticket, error)
        else:
            self._tell(owners, grown)

    def _advance(self, ticket: Ticket) -> None:
        """One step of a trace."""
        if ticket.steps is not None and not ticket.stop.is_set():
            self.touched = time.monotonic()
            with self._failing(ticket):
                next(ticket.steps, None)

    def _traced(self, ticket: Ticket) -> Iterator[None]:
        from core.chat.tracing import steps

        request = ticket.request
        chosen = ("messages", "raw", "answer", "generate", "task")
        wanted = {key: request[key] for key in chosen if request.get(key) is not None}
        running = steps(self.engine, request["name"], **wanted)
        while True:
            try:
                next(running)
            except StopIteration as over:
                ticket.send(op="trace", trace=over.value.packed())
                self._done(ticket)
                return
            self.computed += 1
            yield

    def _tell(self, owners: dict[Answer, Ticket], pieces: Sequence[tuple[Answer, Piece]]) -> None:
        """Send the pieces of a round; a request is over with the last of its answers."""
        for answer, piece in pieces:
            self.computed += answer.ended != "end"
            owners[answer].send(op="piece", **asdict(piece))
        for ticket in dict.fromkeys(owners[answer] for answer, _ in pieces):
            if all(answer.ended for answer in ticket.answers):
                self._done(ticket)

    def _stopped(self, ticket: Ticket) -> None:
        if ticket.steps is not None:
            ticket.steps.close()
        for answer in ticket.answers:
            if answer.ended is None:
                ticket.send(op="piece", **asdict(answer.stop()))
        for name in () if ticket.answers else ticket.request.get("names") or ():
            ticket.send(op="piece", **asdict(Piece(name, "", 0, 0, 0.0, "stopped")))
        self._done(ticket)

    def _done(self, ticket: Ticket) -> None:
        self.active.remove(ticket)
        ticket.send(op="done")

    @contextmanager
    def _failing(self, ticket: Ticket) -> Iterator[None]:
        """What goes wrong ends this request alone."""
        try:
            yield
        except Exception as error:
            self._failed(ticket, error)

    def _failed(self, ticket: Ticket, error: Exception) -> None:
        if not isinstance(error, StudioError):
            log.error("request %s failed", ticket.request.get("op"), exc_info=error)
            reason = (str(error).strip().splitlines() or [""])[0][:300]
            error = StudioError(f"{type(error).__name__}: {reason}", "The log of the inference process says more.")
        self.active.remove(ticket)
        ticket.send(**error_fields(error))

    def _load(self, adapters: dict[str, str] | None, calm: bool) -> None:
        """Put the adapters that a request names beside the others; one that has changed on disk is read again.

        ``calm``: nothing grows, so that what nobody asks for now may leave.
        """
        needed = {name for ticket in self.active for name in ticket.request.get("adapters") or ()}
        for name, folder in (adapters or {}).items():
            stamp = _stamp(folder)
            known = self._adapters.pop(name, None)
            if known is not None and known != (folder, stamp) and calm:
                self.engine.unload(name)
                known = None
            if known is None:
                if calm and self.engine.apart(folder):
                    self._send_away(set(self._adapters) - needed)
                self.engine.load(name, folder)
            self._adapters[name] = known or (folder, stamp)
        spare = [name for name in self._adapters if name not in needed] if calm else []
        self._send_away(spare[: max(0, len(self._adapters) - MOST_ADAPTERS)])

    def _send_away(self, names: Iterable[str]) -> None:
        for name in names:
            self.engine.unload(name)
            del self._adapters[name]


def _stamp(folder: str) -> int:
    try:
        return (Path(folder) / "adapter_config.json").stat().st_mtime_ns
    except OSError as error:
        raise ConfigurationError(f"There is no trained adapter in {folder}.", "Was its run deleted?") from error
