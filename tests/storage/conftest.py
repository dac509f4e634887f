from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(f"sqlite:///{tmp_path / 'tessera.db'}") as opened:
        yield opened
