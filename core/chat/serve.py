"""The inference worker: one base in memory and many adapters, for chats and the token inspector.

``python -m core.chat.serve '{"folder": "...", "home": "...", "model": {"base": "tessera-base"}, "device": "cpu"}'``

Speaks JSON lines over ``<folder>/socket`` (see ``worker.json`` there for the path). Each connection may carry many
requests; replies carry the ``id`` of theirs and end with ``done`` or ``error`` (class, message, hint):

    {"op": "chat", "id", "names": [adapter, or null for the base], "adapters": {name: folder}, "messages", "settings"}
        -> piece (name, text, tokens, prompt_tokens, seconds, ended)
    {"op": "trace", "id", "name", "adapters", "messages" or "raw", "answer" or "generate", "task"} -> trace
    {"op": "load", "id", "adapters"}            {"op": "stop", "id": of a request on this connection}
    {"op": "status", "id"} -> status            {"op": "leave"}: end, if nobody else needs this worker

Answers grow together, a token each at a time, and traces take turns with them. A request whose connection closes is
dropped before its next token. SIGTERM:
finish what is being computed, take nothing new, end; the place is free for another worker at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.chat.lines import SHORT, Caller, Request, forget_socket, private_socket
from core.chat.work import Ticket, Work
from core.errors import StudioError
from core.home import Home, read_json, write_json
from core.jobs.processes import this_process
from core.jobs.service import Lock, web_lives
from core.room import EXIT_NO_ROOM, trouble
from core.schema import ModelSpec
from core.secrets import guard_output

log = logging.getLogger("tessera.inference")

IDLE_SECONDS = 600.0
ALONE_SECONDS = 60.0
CHECK_SECONDS = 2.0


class Server:
    """Hears requests from the moment the process starts, while torch and the base are still being loaded."""

    def __init__(self, folder: Path, facts: dict[str, Any], home: Home) -> None:
        self.work, self._facts, self._home = Work(), facts, home
        self._folder, self._lock = folder, Lock(folder / "lock")
        self._tickets: dict[Caller, dict[Any, Ticket]] = {}
        self._guard = threading.Lock()
        self._ending = threading.Event()
        self._checked = time.monotonic()
        self._idle = float(os.environ.get("TESSERA_INFERENCE_IDLE", IDLE_SECONDS))

    def open(self) -> bool:
        """Take the lock and listen; False where another worker has the lock."""
        if not self._lock.acquire(seconds=5.0):
            return False
        _sweep(self._folder)
        self._listener, self._path = private_socket(self._folder)
        write_json(self._folder / "worker.json", self._facts | asdict(this_process()) | {"socket": str(self._path)})
        threading.Thread(target=self._accept, daemon=True).start()
        return True

    def retire(self, *_: Any) -> None:
        self._ending.set()

    def over(self) -> bool:
        """Whether the process is to end when nothing is being computed; it stops listening then at the latest."""
        if not self._ending.is_set() and self._needless():
            self._ending.set()
        if self._ending.is_set():
            self._withdraw()
        return self._ending.is_set()

    def close(self) -> None:
        """Send what waits and hang up."""
        self._ending.set()
        self._withdraw()
        for caller in list(self._tickets):
            caller.close()
        time.sleep(0.2)  # the writers' last lines

    def _needless(self) -> bool:
        if time.monotonic() - self._checked < CHECK_SECONDS:
            return False
        self._checked = time.monotonic()
        if not self._lock.held():  # the home was removed
            return True
        idle = 0.0 if self.work.busy else time.monotonic() - self.work.touched
        return idle > self._idle or (idle > min(ALONE_SECONDS, self._idle) and not web_lives(self._home))

    def _withdraw(self) -> None:
        """Stop listening and free the place for another worker."""
        with contextlib.suppress(OSError):  # a disk that can only be read keeps what nobody answers at
            if self._lock.held():
                (self._folder / "worker.json").unlink(missing_ok=True)
            if self._lock.held() or self._path.parent != self._folder:
                forget_socket(self._path, self._folder)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._lock.release()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            caller = Caller(connection)
            with self._guard:
                self._tickets[caller] = {}
            caller.send(op="hello", **self._facts, pid=os.getpid())
            threading.Thread(target=caller.serve, args=(self._hear, self._leave), daemon=True).start()

    def _hear(self, caller: Caller, request: Request) -> None:
        mine, number = self._tickets[caller], request.get("id")
        match request.get("op"):
            case "stop":
                if number in mine:
                    mine[number].stop.set()
            case "status":
                caller.send(op="status", id=number, **self._facts, **self.work.report(), pid=os.getpid())
            case "leave":
                if not self.work.busy and len(self._tickets) == 1 and not web_lives(self._home):
                    self.retire()
            case _ if self._ending.is_set():
                caller.close()  # who hears nothing asks the next worker
            case _:
                mine[number] = Ticket(request, caller.send)
                self.work.submit(mine[number])

    def _leave(self, caller: Caller) -> None:
        with self._guard:
            tickets = self._tickets.pop(caller, {})
        for ticket in tickets.values():
            ticket.stop.set()


def main() -> int:
    guard_output()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    order = json.loads(sys.argv[1])
    model = ModelSpec.parse(order["model"])
    facts = {
        "base": model.base,
        "device": order["device"],
        "held": order.get("held", ""),
        "note": order.get("note", ""),
    }
    server = Server(Path(order["folder"]), facts, Home(Path(order["home"])))
    signal.signal(signal.SIGTERM, server.retire)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if not server.open():
            log.info("another inference worker of this base lives and does not answer")
            return 0
    except OSError as error:
        if trouble(error) is None:
            raise
        log.error("%s", error)
        return EXIT_NO_ROOM
    try:
        from core.chat.engine import ChatEngine

        engine = ChatEngine(model, order["device"])
        if engine.model.device.type == "cuda":
            engine.warm()
    except StudioError as error:
        log.error("%s", error)
        _refuse(server.work, error)
        server.close()
        return 1
    log.info("%s is loaded on %s", model.base, engine.model.device)
    server.work.run(engine, server.over)
    log.info("ending")
    server.close()
    return 0


def _sweep(folder: Path) -> None:
    """Remove what a worker that was killed left in its place; only the holder of its lock may."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        path = Path(read_json(folder / "worker.json")["socket"])
        if path.name == "socket" and (path.parent == folder or path.parent.name.startswith(SHORT)):
            forget_socket(path, folder)


def _refuse(work: Work, error: StudioError, seconds: float = 3.0) -> None:
    """Say why there is no model to whoever asked, or asks in the next moment."""
    deadline = time.monotonic() + seconds
    while not work.refuse_all(error) and time.monotonic() < deadline:
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
