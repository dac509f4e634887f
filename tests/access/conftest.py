"""A studio with an admin, two researchers and a viewer, and browsers in which each of them is signed in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from fastapi import FastAPI
from starlette.testclient import TestClient

from app import sign_in
from app.auth import Access
from core.access import Role
from core.users import Users
from tests.support.seed import QuietStudio

ADDRESS = "http://127.0.0.1:7860"
PEOPLE: dict[str, Role] = {"ada": "admin", "ben": "researcher", "cleo": "researcher", "vera": "viewer"}


def password(name: str) -> str:
    return f"{name} is no secret"


class QuickUsers(Users):
    """Hashing made cheap: these tests sign in often."""

    def __init__(self, studio: QuietStudio) -> None:
        super().__init__(studio.records, studio.store)
        self.passwords.hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def peopled(home: Path) -> QuietStudio:
    """A studio over ``home`` with everybody of ``PEOPLE``."""
    studio = QuietStudio(home)
    studio.__dict__["users"] = QuickUsers(studio)
    for name, role in PEOPLE.items():
        studio.users.add(name, role, password(name), inherit=True)
    return studio


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[QuietStudio]:
    made = peopled(tmp_path / "home")
    yield made
    made.close()


@pytest.fixture
def access(studio: QuietStudio) -> Access:
    return Access(studio.users)


def client_of(app: FastAPI, access: Access, name: str | None) -> TestClient:
    """A browser, not entered as a context: nothing here needs lifespan or dispatcher."""
    client = TestClient(app, base_url=ADDRESS, follow_redirects=False, raise_server_exceptions=False)
    if name is not None:
        token = access.sign_in(name, password(name), "test").token
        assert token is not None
        client.cookies.set(sign_in.COOKIE, token)
    return client
