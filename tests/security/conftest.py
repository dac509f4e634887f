"""A tiny base, a studio over an empty home, and pickles that say so when they are opened."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.studio import Studio
from tests.support.tiny import tiny_base


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    made = Studio(tmp_path / "home")
    yield made
    made.close()


class Bomb:
    """Unpickled, it makes a folder: the proof that code ran."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[Callable[[], bytes]]:
    """A pickle that runs code; the test fails if one was ever opened."""
    mark = tmp_path / "the code ran"
    yield lambda: pickle.dumps(Bomb(mark))
    assert not mark.exists(), "a pickle was opened"


@pytest.fixture
def opened(tmp_path: Path) -> Path:
    """What ``bomb`` makes when it goes off, for the test that shows that it does."""
    return tmp_path / "the code ran"
