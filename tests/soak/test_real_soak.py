"""A short soak with real training workers, a served home and seeded kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import soak as soak_command
from benchmarks import soak_phase

KILLS = 9


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_minute_of_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in soak_command.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    found = soak_phase.soak(tmp_path / "home", seconds=75, seed=5, kills=KILLS, steps=40)
    assert soak_command.broken({"kills": found}) == []
    assert found["kills"] >= KILLS and found["runs"]["done"] >= 3
    compared = next(one for one in found["checks"] if "bit for bit" in one["promise"])
    assert compared["looked_at"] >= 2
