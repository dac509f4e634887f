"""A studio over an empty home, a tiny base and a small data set."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.studio import Studio
from tests.support.tiny import tiny_base

COLOURS = ("red", "green", "blue")


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    """Its dispatcher, if a test started one, is stopped afterwards."""
    made = Studio(tmp_path / "home")
    yield made
    if (made.home.dispatcher / "pid").is_file():
        made.dispatcher("stop")
    made.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classification task that a file of two columns describes."""
    path = tmp_path_factory.mktemp("data") / "colours.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([f"thing {i} is {COLOURS[i % 3]} today", COLOURS[i % 3]] for i in range(90))
    return path


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny: Path, colours: Path) -> Path:
    """A run of four steps."""
    path = tmp_path_factory.mktemp("recipe") / "run.yaml"
    path.write_text(
        f"""
name: four steps
model: {{base: {tiny}}}
tasks: [{{dataset: {colours}, test_rows: 8}}]
method: {{name: molora, options: {{rank: 2, experts: 3}}}}
train: {{steps: 4, batch_size: 2, max_length: 64, validation_rows: 4, log_every: 1, routing_moments: 1}}
device: cpu
""",
        encoding="utf-8",
    )
    return path
