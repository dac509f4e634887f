"""JSON lines over a private Unix socket: the listening end and the calling end. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import ConfigurationError, DataError, NotFoundError, OutOfMemoryError, StudioError

PATH_BYTES = 100  # the system's limit for a socket's path is 108 with its ending zero
LINE_BYTES = 64 << 20
SHORT = "tessera-chat-"  # what folders of sockets are called whose own path would be too long
_ERRORS = {error.__name__: error for error in (ConfigurationError, DataError, NotFoundError, OutOfMemoryError)}

Request = dict[str, Any]


def private_socket(folder: Path) -> tuple[socket.socket, Path]:
    """A listening socket that only this user reaches: in ``folder``, or in a fresh one where that path is too long."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    path = folder / "socket"
    if len(os.fsencode(path)) > PATH_BYTES:
        path = Path(tempfile.mkdtemp(prefix=SHORT)) / "socket"  # made with mode 0700
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(64)
    return listener, path


def forget_socket(path: Path, folder: Path) -> None:
    """Remove a socket, and the folder that ``private_socket`` made where ``folder`` was too long for it."""
    path.unlink(missing_ok=True)
    if path.parent != folder:
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def error_fields(error: StudioError) -> Request:
    return {"op": "error", "class": type(error).__name__, "message": error.message, "hint": error.hint}


def raised(fields: Request) -> StudioError:
    """The error that ``error_fields`` described."""
    return _ERRORS.get(fields.get("class", ""), StudioError)(fields["message"], fields["hint"])


class Caller:
    """One connection as the listening end sees it. ``send`` never waits: a slow reader holds up nobody else."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._outgoing: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self.gone = False

    def send(self, **reply: Any) -> None:
        if not self.gone:
            self._outgoing.put(reply)

    def serve(self, heard: Callable[[Caller, Request], None], left: Callable[[Caller], None]) -> None:
        """Read requests until the other end leaves; meant for a thread of its own."""
        writer = threading.Thread(target=self._write, daemon=True)
        writer.start()
        try:
            with self._connection.makefile("rb") as lines:
                while line := lines.readline(LINE_BYTES):
                    self._hear(line, heard)
        except OSError:
            pass  # the other end broke off
        finally:
            self.gone = True
            left(self)
            self._outgoing.put(None)
            writer.join(timeout=2)
            self._connection.close()

    def close(self) -> None:
        """Send what waits, then hang up."""
        self.gone = True
        self._outgoing.put(None)

    def _hear(self, line: bytes, heard: Callable[[Caller, Request], None]) -> None:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("it is not an object")
        except ValueError as error:
            self.send(**error_fields(ConfigurationError(f"A request is one JSON object a line: {error}.")), id=None)
            return
        heard(self, request)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (reply := self._outgoing.get()) is not None:
                self._connection.sendall(json.dumps(reply, ensure_ascii=False).encode() + b"\n")
            self._connection.shutdown(socket.SHUT_RDWR)


class Connection:
    """The calling end. Receive in one thread; any thread may send."""

    def __init__(self, path: str | Path, seconds: float = 10.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._lock = threading.Lock()
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(str(path))
            self._lines = self._socket.makefile("rb")
            self.hello: Request = self.receive()
        except BaseException:
            self._socket.close()
            raise
        self._socket.settimeout(None)

    def send(self, **request: Any) -> None:
        with self._lock:
            self._socket.sendall(json.dumps(request, ensure_ascii=False).encode() + b"\n")

    def receive(self) -> Request:
        """The next reply; ConnectionError when the other end has left."""
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the other end has left")
        return json.loads(line)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
