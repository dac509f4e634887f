"""The load part of the soak, short: real browsers' requests beside a real training worker."""

import pytest

from benchmarks import load, load_fixture


def soaked(tmp_path, seconds: float, browsers: int) -> dict:
    home = tmp_path / "home"
    load_fixture.build(home, load_fixture.SMALL)
    return load.soak(home, seconds, browsers=browsers)


@pytest.mark.long
def test_a_few_browsers_beside_a_training_worker(tmp_path):
    found = soaked(tmp_path, 5, 5)
    assert found["errors"] == 0, found["kinds_of_errors"]
    assert found["requests"] > 10 and found["steps"] > 1
    assert found["saying"] < 0.01 and found["storing"] < 0.1  # a hundredth on a machine that does nothing else
    assert "browsers" in found["text"]


@pytest.mark.long
def test_a_hundred_browsers_for_a_minute(tmp_path):
    found = soaked(tmp_path, 60, 100)
    assert not found["broken"], found["text"]
