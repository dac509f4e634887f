"""Studios behind a real server in this process, and callers of every kind."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from argon2 import PasswordHasher
from fastapi import FastAPI
from starlette.testclient import TestClient

from app import api
from core.studio import Studio
from tests.support import seed
from tests.support.seed import QuietStudio, Seeded

OWN = {"X-Tessera": "1"}
PASSWORD = "correct horse battery"


def bare(studio: Studio) -> FastAPI:
    """The API alone: the pages take seconds to build."""
    app = FastAPI()
    api.add_routes(app, studio)
    return app


class Served:
    """A studio behind uvicorn on a port of its own; it can be stopped and started again there."""

    def __init__(self, studio: Studio, app: Any = None) -> None:
        self.studio, self._app = studio, app or bare(studio)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        config = uvicorn.Config(self._app, port=self.port, log_level="error", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)


class House:
    """A home with three users, and the headers of each."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.app = bare(studio)
        self.keys: dict[str, str] = {}
        studio.users.passwords.hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)  # quick
        for name, role in (("ann", "admin"), ("rob", "researcher"), ("ria", "researcher"), ("vic", "viewer")):
            studio.users.add(name, role, PASSWORD)
            self.keys[name] = studio.users.add_token(name, "test")[0]

    def client(self, name: str | None = None) -> TestClient:
        headers = {} if name is None else {"Authorization": f"Bearer {self.keys[name]}"}
        return client(self.app, headers)


def client(app: FastAPI, headers: dict[str, str] | None = None, address: str = "127.0.0.1") -> TestClient:
    return TestClient(app, "http://127.0.0.1:7860", headers=headers, client=(address, 5000))


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Seeded:
    """Runs of every state; for tests that only read."""
    return seed.few(tmp_path_factory.mktemp("seeded") / "home")


@pytest.fixture(scope="module")
def reading(seeded: Seeded) -> Iterator[QuietStudio]:
    studio = QuietStudio(seeded.home)
    yield studio
    studio.close()


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[QuietStudio]:
    made = QuietStudio(tmp_path / "home")
    yield made
    made.close()


@pytest.fixture
def house(studio: QuietStudio) -> House:
    return House(studio)


@pytest.fixture
def served(studio: QuietStudio) -> Iterator[Served]:
    made = Served(studio)
    yield made
    made.stop()


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("paints") / "colours.csv"
    names = ("red", "green", "blue")
    rows = "".join(f"thing {i} is {names[i % 3]} today,{names[i % 3]}\n" for i in range(90))
    path.write_text("text,label\n" + rows, "utf-8")
    return path
