"""A home with two trained adapters on the tiny base, and workers that end with the tests."""

import pytest

from core.home import Home
from core.studio import Studio
from tests.support.talkers import spec, talker
from tests.support.tiny import tiny_base


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def studio(base, tmp_path_factory):
    """run-1: token gates, run-2: task gates, run-3: another base, run-4: nothing trained yet, run-5: the bare base."""
    studio = Studio(tmp_path_factory.mktemp("home"))
    talker(studio, spec(base), on=base)
    talker(studio, spec(base, "task"), on=base, seed=1)
    talker(studio, spec(tmp_path_factory.mktemp("other")), on=base, seed=2)
    talker(studio, spec(base), seed=3)
    talker(studio, spec(base, method={"name": "base"}), seed=4)
    yield studio
    studio.chats.inference.stop()
    studio.close()


@pytest.fixture
def home(tmp_path) -> Home:
    return Home.open(tmp_path / "home")
