"""A home with two trained adapters on the tiny base, and workers that end with the tests."""

from types import SimpleNamespace

import pytest

from core.home import Home
from core.studio import Studio
from tests.support.adapted import adapter_folder, method
from tests.support.tiny import tiny_base


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def spec(base, gate="token", **more):
    cells = [{"experts": 2, "rank": 4, "down": "shared", "gate": gate}]
    tasks = [{"dataset": "d", "task": task} for task in ("colours", "echo")]
    return {"model": {"base": str(base)}, "tasks": tasks, "method": {"name": "split", "cells": cells}} | more


@pytest.fixture(scope="session")
def studio(base, tmp_path_factory):
    """run-1: token gates, run-2: task gates, run-3: another base, run-4: nothing trained yet, run-5: the bare base."""
    from storage.queries import runs

    studio = Studio(tmp_path_factory.mktemp("home"))
    specs = [spec(base), spec(base, "task"), spec(tmp_path_factory.mktemp("other")), spec(base)]
    specs.append(spec(base, method={"name": "base"}))
    for number, one in enumerate(specs):
        with studio.records.write() as session:
            run, _ = runs.add(session, spec=one, name=f"r{number}")
            runs.row(session, run=run.id).state = "done"
        if number < 3:
            gate = one["method"]["cells"][0]["gate"]
            adapter_folder(base, studio.home.run(run.id).create().adapter, method(gate), seed=number)
    yield studio
    studio.chats.inference.stop()
    studio.close()


@pytest.fixture
def home(tmp_path) -> Home:
    return Home.open(tmp_path / "home")


@pytest.fixture
def row(base):
    def make(number, base=base, **more):
        return SimpleNamespace(id=f"run-{number}", spec=spec(base) | more)

    return make
