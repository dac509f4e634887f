"""Requests to the inference worker. Imports no torch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.chat.lines import Connection, Request, raised
from core.chat.pieces import Piece
from core.chat.settings import Sampling
from core.chat.trace import Trace
from core.errors import StudioError

Connect = Callable[[], Connection]
Messages = Sequence[Mapping[str, str]]

STOP_SECONDS = 10.0  # in which a worker has to say that it stopped; then it is left alone
LOST = ("The inference process ended before it answered.", "Ask again: it starts anew. Its log says why it ended.")


@dataclass(frozen=True)
class Question:
    """What one model is asked: an adapter and its folder (None: the base alone), and the conversation so far.

    ``task`` is what it acts as, where experts are chosen by task.
    """

    name: str | None
    folder: Path | None
    messages: Messages
    task: str | None = None


class Answering:
    """Several models answering on one connection; iterate it for their pieces. Any thread may stop it.

    One model's failure is its last piece, with ``problem`` and ``hint``; the others go on.
    """

    def __init__(self, connect: Connect, questions: Sequence[Question], settings: Sampling) -> None:
        self._connect, self._questions, self._settings = connect, list(questions), settings
        self._open: dict[int, Piece] = {
            number: Piece(question.name, "", 0, 0, 0.0) for number, question in enumerate(self._questions)
        }
        self._stopped: set[int] = set()
        self._connection: Connection | None = None
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Piece]:
        try:
            yield from self._pieces()
        finally:
            self.close()

    def stop(self, name: str | None = None, *, every: bool = False) -> None:
        """Stop one model's answer, or every one; no further token is computed for it."""
        chosen = {n for n, question in enumerate(self._questions) if every or question.name == name}
        with self._lock, contextlib.suppress(OSError):
            self._stopped |= chosen
            for number in chosen if self._connection is not None else ():
                self._connection.send(op="stop", id=number)
        if every:
            patience = threading.Timer(STOP_SECONDS, self.close)
            patience.daemon = True
            patience.start()

    def close(self) -> None:
        """Leave: what is still being computed stops."""
        if self._connection is not None:
            self._connection.close()

    def _pieces(self) -> Iterator[Piece]:
        heard = False
        for attempt in (1, 2):  # a worker that was just ending hangs up without a word: ask the next one
            try:
                self._send()
                while self._open:
                    reply = self._connection.receive()
                    heard = True
                    yield from self._read(reply)
                return
            except OSError:
                if heard or attempt == 2:
                    yield from self._fail(StudioError(*LOST))
                    return
            except StudioError as error:
                yield from self._fail(error)
                return

    def _send(self) -> None:
        connection = self._connect()
        with self._lock:
            self._connection = connection
            for number, question in enumerate(self._questions):
                settings = self._settings.model_copy(update={"task": question.task})
                connection.send(**chat_request(number, [question], question.messages, settings))
            for number in self._stopped:
                connection.send(op="stop", id=number)

    def _read(self, reply: Request) -> Iterator[Piece]:
        number = reply.get("id")
        if number not in self._open:
            return
        if reply["op"] == "piece":
            fields = {name: reply[name] for name in Piece.__dataclass_fields__ if name in reply}
            self._open[number] = piece = Piece(**fields)
            yield piece
        if reply["op"] == "error":
            yield self._failed(number, raised(reply))
        if reply["op"] == "done" or reply["op"] == "error":
            self._open.pop(number)

    def _fail(self, error: StudioError) -> Iterator[Piece]:
        for number, last in list(self._open.items()):
            if last.ended is None:
                yield self._failed(number, error)
            self._open.pop(number)

    def _failed(self, number: int, error: StudioError) -> Piece:
        last = self._open[number]
        figures = (last.tokens, last.prompt_tokens, last.seconds)
        return Piece(last.name, "", *figures, ended="failed", problem=error.message, hint=error.hint)


def chat_request(number: int, asked: Sequence[Question], messages: Messages, settings: Sampling) -> Request:
    """Several models with the same conversation are computed as one batch."""
    return {
        "op": "chat",
        "id": number,
        "names": [question.name for question in asked],
        "adapters": {question.name: str(question.folder) for question in asked if question.name is not None},
        "messages": [dict(message) for message in messages],
        "settings": settings.model_dump(),
    }


def batched(connect: Connect, asked: Sequence[Question], settings: Sampling) -> Iterator[Piece]:
    """The answers of models with one conversation, computed as one batch; leaving the loop stops them."""
    for reply in replies(connect, chat_request(1, asked, asked[0].messages, settings)):
        yield Piece(**{name: reply[name] for name in Piece.__dataclass_fields__ if name in reply})


def trace(connect: Connect, name: str, folder: Path, **wanted: Any) -> Trace:
    """The routing of a text; ``wanted`` as ``core.chat.tracing.steps`` takes it."""
    request = {"op": "trace", "id": 1, "name": name, "adapters": {name: str(folder)}, **wanted}
    return Trace.unpacked(next(iter(replies(connect, request)))["trace"])


def replies(connect: Connect, request: Request) -> Iterator[Request]:
    """The replies to one request until it is done; its StudioError is raised."""
    heard = False
    for attempt in (1, 2):
        connection = connect()
        try:
            connection.send(**request)
            while (reply := connection.receive())["op"] != "done":
                heard = True
                if reply["op"] == "error":
                    raise raised(reply)
                yield reply
            return
        except OSError as error:
            if heard or attempt == 2:
                raise StudioError(*LOST) from error
        finally:
            connection.close()
