"""What all tests share: a home of their own, and reasons to skip where a device is missing."""

from __future__ import annotations

import gc
import os

import pytest


def pytest_collection_finish() -> None:
    """What the modules of tests brought along stays: collecting garbage need not look through it every time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs CUDA; `make gpu-check` runs it on such a machine"))


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the home of the person who runs it."""
    monkeypatch.setenv("TESSERA_HOME", str(tmp_path_factory.getbasetemp() / f"home-{os.getpid()}"))
    monkeypatch.delenv("TESSERA_DATABASE_URL", raising=False)
