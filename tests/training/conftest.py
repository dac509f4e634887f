from __future__ import annotations

from pathlib import Path

import pytest

from core.data.store import DatasetStore
from tests.support.tiny import tiny_base
from tests.support.training import toy_store


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="session")
def base(home: Path) -> Path:
    return tiny_base(home / "base")


@pytest.fixture(scope="session")
def store(home: Path) -> DatasetStore:
    return toy_store(home / "datasets")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Sums in one order, and no fight over the machine's cores."""
    import torch

    torch.set_num_threads(1)
