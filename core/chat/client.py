"""The other end of ``core.chat.serve``: starts the chat process and speaks to it. Imports no torch."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from core.chat.settings import Sampling
from core.errors import ConfigurationError, DataError, OutOfMemoryError, StudioError
from core.home import PROJECT
from core.schema import ModelSpec

_ERRORS = {error.kind: error for error in (ConfigurationError, DataError, OutOfMemoryError)}


class ChatProcess:
    """One base and its adapters in a child process; ends with ``close`` or as a context manager."""

    def __init__(self, model: ModelSpec, device: str = "auto") -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed by close
        self._numbers = itertools.count(1)
        self._child = subprocess.Popen(
            [sys.executable, "-m", "core.chat.serve", model.model_dump_json(), "--device", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])},
            start_new_session=True,  # an interrupt in the terminal stops the answer, not the process
        )
        try:
            self.device: str = self._receive()["device"]
        except BaseException:
            self.close()
            raise

    def load(self, name: str, adapter: str | Path) -> None:
        self._send(op="load", name=name, adapter=str(adapter))
        self._receive()

    def unload(self, name: str) -> None:
        self._send(op="unload", name=name)
        self._receive()

    def chat(
        self, names: Sequence[str | None], messages: Sequence[Mapping[str, str]], settings: Sampling
    ) -> Iterator[dict[str, Any]]:
        """The pieces of the answers as ``core.chat.engine.Piece`` has them; leaving the loop stops the answers."""
        number = next(self._numbers)
        self._send(op="chat", id=number, names=list(names), messages=list(messages), settings=settings.model_dump())
        over = False
        try:
            while not over:
                reply = self._receive()
                over = reply["op"] == "done"
                if not over:
                    yield reply
        except StudioError:
            over = True
            raise
        finally:
            if not over and self._child.poll() is None:
                self._send(op="stop", id=number)
                while self._receive()["op"] != "done":
                    pass

    def close(self) -> None:
        """End the process; one that does not end by itself is killed."""
        if self._child.poll() is None:
            try:
                self._send(op="quit")
                self._child.wait(timeout=5)
            except (StudioError, subprocess.TimeoutExpired):
                self._child.kill()
                self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout, self._log):
            with contextlib.suppress(OSError):  # what it still held went to a process that is gone
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, **request: Any) -> None:
        try:
            self._child.stdin.write(json.dumps(request, ensure_ascii=False) + "\n")
            self._child.stdin.flush()
        except OSError as error:
            raise self._died() from error

    def _receive(self) -> dict[str, Any]:
        line = self._child.stdout.readline()
        if not line:
            raise self._died()
        reply = json.loads(line)
        if reply["op"] == "error":
            raise _ERRORS.get(reply["kind"], StudioError)(reply["message"], reply["hint"])
        return reply

    def _died(self) -> StudioError:
        code = self._child.wait()
        self._log.seek(0)
        last = self._log.read().strip().splitlines()[-1:] or [f"exit code {code}"]
        return StudioError(f"The chat process ended: {last[0]}.", "Start it again; `python app.py doctor` may help.")
