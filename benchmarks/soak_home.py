"""A home with a web server, a dispatcher and workers as real processes, looked at and killed from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from core.home import PROJECT, Home
from core.jobs.processes import TOKEN_VARIABLE
from core.studio import Studio

WEB, DISPATCHER, WORKER, CHAT, OTHER = "web", "dispatcher", "worker", "chat", "other"


@dataclass(frozen=True)
class Seen:
    """A living process that names the home or carries an attempt's token. ``run``, ``job`` and ``attempt`` of workers
    come from the job file that they were given."""

    pid: int
    role: str
    token: str
    run: str = ""
    job: str = ""
    attempt: int = 0


def processes(root: Path, tokens: frozenset[str] = frozenset()) -> list[Seen]:
    """All of them, oldest pid first; ``tokens`` finds children that name no path."""
    own, told = os.getpid(), os.fsencode(root)
    found = []
    for entry in sorted((int(name) for name in os.listdir("/proc") if name.isdecimal()), key=int):
        if entry == own:
            continue
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
            if not command:
                continue  # a thread of the kernel, or dead and not reaped
            environment = Path(f"/proc/{entry}/environ").read_bytes() if tokens or told in command else b""
            token = _variable(environment, TOKEN_VARIABLE)
            if told in command or token in tokens:
                found.append(_seen(entry, command.split(b"\0"), token))
    return found


def _variable(environment: bytes, name: str) -> str:
    for part in environment.split(b"\0"):
        if part.startswith(name.encode() + b"="):
            return part.partition(b"=")[2].decode()
    return ""


def _seen(pid: int, words: list[bytes], token: str) -> Seen:
    if b"core.jobs.dispatcher" in words or any(word.endswith(b"stand_in_dispatcher.py") for word in words):
        return Seen(pid, DISPATCHER, token)
    if b"core.chat.serve" in words:
        return Seen(pid, CHAT, token)
    if b"serve" in words:
        return Seen(pid, WEB, token)
    file = next((Path(os.fsdecode(word)) for word in words if word.endswith(b".json")), None)
    if not token or file is None:
        return Seen(pid, OTHER, token)
    job, _, attempt = file.stem.rpartition("-")
    return Seen(pid, WORKER, token, file.parent.parent.name, job, int(attempt))


class House:
    """One home that is served; whatever of it is killed, only the web server is started again from here."""

    def __init__(self, root: Path, log: Path) -> None:
        self.home = Home.open(root)
        self.studio = Studio(root)
        self.log = log
        self.port = _free_port()
        self.web: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self) -> None:
        """Start the web server; returns at once."""
        command = [sys.executable, "app.py", "serve", "--port", str(self.port), "--home", str(self.home.root)]
        with self.log.open("ab") as out:
            self.web = subprocess.Popen(command, cwd=PROJECT, stdout=out, stderr=out, start_new_session=True)

    def answers(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.address}/health", timeout=5).status_code == 200
        return False

    def seen(self, *roles: str) -> list[Seen]:
        return [one for one in processes(self.home.root) if not roles or one.role in roles]

    def workers(self) -> list[Seen]:
        return self.seen(WORKER)

    def kill(self, *pids: int) -> list[int]:
        """SIGKILL at once; returns the pids that still lived. A web server of ours is reaped."""
        hit = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                hit.append(pid)
        if self.web is not None and self.web.pid in hit:
            self.web.wait()
        return hit

    def close(self) -> None:
        """End web server, dispatcher and what still works."""
        deadline = time.monotonic() + 20
        while (alive := self.seen()) and time.monotonic() < deadline:
            self.kill(*(one.pid for one in alive))
            time.sleep(0.1)
        self.studio.records.close()


def until(check: Callable[[], Any], seconds: float, pause: float = 0.05) -> Any:
    """What ``check`` returns as soon as it is true, else its last answer after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (found := check()) and time.monotonic() < deadline:
        time.sleep(pause)
    return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
