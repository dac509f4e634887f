"""The chat process: one base, many adapters, JSON lines on standard input and output.

``python -m core.chat.serve '{"base": "tessera-base"}' --device cpu``

Requests: ``{"op": "load", "name", "adapter": folder}``, ``{"op": "unload", "name"}``, ``{"op": "chat", "id", "names":
[name or null for the base], "messages", "settings"}``, ``{"op": "stop", "id"}``, ``{"op": "quit"}``. Replies carry the
``op`` and, for chats, the ``id``: ``ready``, ``loaded``, ``unloaded``, ``piece`` (name, text, tokens, prompt_tokens,
seconds, ended), ``done`` after a chat's last piece, or ``error`` (kind, message, hint). Chats run one after another;
stop is heard at once.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
from dataclasses import asdict
from typing import Any, TextIO

from core.chat.settings import Sampling
from core.errors import ConfigurationError, StudioError
from core.schema import ModelSpec


class Server:
    """Reads requests in a thread of its own, so that a stop overtakes the answer that it ends."""

    def __init__(self, engine: Any, requests: TextIO, replies: TextIO) -> None:
        self.engine, self._requests, self._replies = engine, requests, replies
        self._waiting: queue.Queue[dict[str, Any]] = queue.Queue()
        self._stops: dict[Any, threading.Event] = {}

    def run(self) -> None:
        """Until ``quit`` or the end of the requests."""
        threading.Thread(target=self._read, daemon=True).start()
        while (request := self._waiting.get()).get("op") != "quit":
            try:
                self._handle(request)
            except StudioError as error:
                self._refuse(request, error)
            finally:
                self._stops.pop(request.get("id"), None)

    def _read(self) -> None:
        for line in self._requests:
            try:
                request = json.loads(line)
                if not isinstance(request, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                self._refuse({}, ConfigurationError(f"A request is one JSON object a line: {error}."))
                continue
            if request.get("op") == "stop":
                if event := self._stops.get(request.get("id")):
                    event.set()
                continue
            if request.get("op") == "chat":
                self._stops[request.get("id")] = threading.Event()
            self._waiting.put(request)
        for event in list(self._stops.values()):
            event.set()  # nobody listens any more
        self._waiting.put({"op": "quit"})

    def _handle(self, request: dict[str, Any]) -> None:
        match request:
            case {"op": "load", "name": str(name), "adapter": str(folder)}:
                self.engine.load(name, folder)
                self._reply(op="loaded", name=name)
            case {"op": "unload", "name": str(name)}:
                self.engine.unload(name)
                self._reply(op="unloaded", name=name)
            case {"op": "chat", "names": list(names), "messages": list(messages)}:
                sampling = Sampling.parse(request.get("settings") or {})
                number = request.get("id")
                for piece in self.engine.side_by_side(names, messages, sampling, self._stops.get(number)):
                    self._reply(op="piece", id=number, **asdict(piece))
                self._reply(op="done", id=number)
            case _:
                raise ConfigurationError(
                    f"The request {json.dumps(request)[:200]} is not understood.",
                    "See core/chat/serve.py for the forms.",
                )

    def _refuse(self, request: dict[str, Any], error: StudioError) -> None:
        self._reply(op="error", id=request.get("id"), kind=error.kind, message=error.message, hint=error.hint)

    def _reply(self, **fields: Any) -> None:
        self._replies.write(json.dumps(fields, ensure_ascii=False) + "\n")
        self._replies.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Answer chats over standard input and output, as JSON lines.")
    parser.add_argument("model", help="The base: a ModelSpec as JSON.")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with the replies
    sys.stdin.reconfigure(encoding="utf-8")
    try:
        from core.chat.engine import ChatEngine

        engine = ChatEngine(ModelSpec.parse(json.loads(arguments.model)), arguments.device)
    except StudioError as error:
        failure = {"op": "error", "id": None, "kind": error.kind, "message": error.message, "hint": error.hint}
        print(json.dumps(failure, ensure_ascii=False), file=replies, flush=True)
        return 1
    print(json.dumps({"op": "ready", "device": str(engine.model.device)}), file=replies, flush=True)
    Server(engine, sys.stdin, replies).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
