from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import load_fixture


@pytest.fixture(scope="package")
def year(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home after much work: fifty runs of fifty thousand points. Read it; ``busy`` is for what writes."""
    home = tmp_path_factory.mktemp("year") / "home"
    load_fixture.build(home, load_fixture.SMALL)
    return home


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where servers that a test starts keep what is uploaded."""
    folder = tmp_path / "gradio"
    folder.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    yield folder
