"""Computes every request in one thread, a step of each in turn, so that each answer grows by itself."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.chat.lines import Request, error_fields
from core.chat.settings import Sampling
from core.errors import ConfigurationError, StudioError

if TYPE_CHECKING:
    from core.chat.engine import ChatEngine

log = logging.getLogger("tessera.inference")

MOST_ADAPTERS = 24


@dataclass(eq=False)
class Ticket:
    """A request and where its replies go; ``stop`` may be set by any thread."""

    request: Request
    reply: Callable[..., None]
    stop: threading.Event = field(default_factory=threading.Event)
    steps: Iterator[Request | None] | None = None
    last: dict[Any, Request] = field(default_factory=dict)  # the newest piece of each answer

    def send(self, **fields: Any) -> None:
        self.reply(id=self.request.get("id"), **fields)


class Work:
    """``submit`` and ``report`` from any thread, ``run`` in one. ``computed`` counts tokens of answers."""

    def __init__(self) -> None:
        self.engine: ChatEngine | None = None
        self.computed = 0
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
        self.engine = engine
        while True:
            self._take(pause)
            for ticket in list(self.active):
                self._advance(ticket)
            if over() and not self.busy:
                return

    def _take(self, pause: float) -> None:
        """Begin what waits; with nothing to compute, wait a moment for something."""
        try:
            ticket = self._waiting.get_nowait() if self.active else self._waiting.get(timeout=pause)
            while True:
                ticket.steps = self._steps(ticket.request)
                self.active.append(ticket)
                ticket = self._waiting.get_nowait()
        except queue.Empty:
            return

    def _advance(self, ticket: Ticket) -> None:
        """Compute one step of a request and tell it."""
        self.touched = time.monotonic()
        try:
            if ticket.stop.is_set():
                ticket.steps.close()
                self._stopped(ticket)
            else:
                self._tell(ticket, next(ticket.steps))
            return
        except StopIteration:
            ticket.send(op="done")
        except StudioError as error:
            ticket.send(**error_fields(error))
        except Exception as error:  # one request must not end the others
            log.exception("request %s failed", ticket.request.get("op"))
            reason = (str(error).strip().splitlines() or [""])[0][:300]
            wrong = StudioError(f"{type(error).__name__}: {reason}", "The log of the inference process says more.")
            ticket.send(**error_fields(wrong))
        self.active.remove(ticket)

    def _stopped(self, ticket: Ticket) -> None:
        for name in ticket.request.get("names") or ():
            last = ticket.last.get(name, {"name": name, "tokens": 0, "prompt_tokens": 0, "seconds": 0.0})
            if not last.get("ended"):
                ticket.send(**last | {"op": "piece", "text": "", "ended": "stopped"})
        ticket.send(op="done")
        self.active.remove(ticket)

    def _tell(self, ticket: Ticket, reply: Request | None) -> None:
        if reply is None:
            self.computed += 1
            return
        if reply["op"] == "piece":
            self.computed += reply["tokens"] - ticket.last.get(reply["name"], {"tokens": 0})["tokens"]
            ticket.last[reply["name"]] = reply
        ticket.send(**reply)

    def _steps(self, request: Request) -> Iterator[Request | None]:
        match request:
            case {"op": "chat", "names": list(names), "messages": list(messages)}:
                self._load(request.get("adapters"))
                sampling = Sampling.parse(request.get("settings") or {})
                for piece in self.engine.side_by_side(names, messages, sampling):
                    yield {"op": "piece", **asdict(piece)}
            case {"op": "trace", "name": str(name)}:
                from core.chat.tracing import steps

                self._load(request.get("adapters"))
                chosen = ("messages", "raw", "answer", "generate", "task")
                wanted = {key: request[key] for key in chosen if request.get(key) is not None}
                found = yield from steps(self.engine, name, **wanted)
                yield {"op": "trace", "trace": found.packed()}
            case {"op": "load", "adapters": dict(adapters)}:
                self._load(adapters)
            case _:
                raise ConfigurationError(
                    f"The request {json.dumps(request)[:200]} is not understood.", "See core/chat/serve.py."
                )

    def _load(self, adapters: dict[str, str] | None) -> None:
        """Put the adapters that a request names beside the others; one that has changed on disk is read again."""
        for name, folder in (adapters or {}).items():
            stamp = _stamp(folder)
            known = self._adapters.pop(name, None)
            if known is not None and known != (folder, stamp) and len(self.active) <= 1:
                self.engine.unload(name)
                known = None
            if known is None:
                if self.engine.apart(folder):
                    self._send_away(set(self._adapters) - set(adapters))
                self.engine.load(name, folder)
            self._adapters[name] = known or (folder, stamp)
        # Decisions in the caches of growing answers are numbered by what is loaded: drop nothing under them.
        while len(self._adapters) > max(MOST_ADAPTERS, len(adapters or ())) and len(self.active) <= 1:
            oldest = next(iter(self._adapters))
            self.engine.unload(oldest)
            del self._adapters[oldest]

    def _send_away(self, names: set[str]) -> None:
        """Unload what earlier requests have left, where an adapter needs the base for itself."""
        for name in names if len(self.active) <= 1 else ():
            self.engine.unload(name)
            del self._adapters[name]


def _stamp(folder: str) -> int:
    try:
        return (Path(folder) / "adapter_config.json").stat().st_mtime_ns
    except OSError as error:
        raise ConfigurationError(f"There is no trained adapter in {folder}.", "Was its run deleted?") from error
