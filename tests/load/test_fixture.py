import time

import pytest

from benchmarks.load_fixture import POINTS, SMALL, build
from core.records import Records
from core.studio import Studio
from storage.queries import series


def test_every_run_has_fifty_thousand_points_and_all_that_pages_read(year):
    studio = Studio(year)
    runs = studio.runs(limit=1000)
    assert POINTS == 50_000 and len(runs) == SMALL.runs and len(studio.datasets()) == SMALL.datasets
    with Records(studio.home).read() as session:
        for run in runs[:5]:
            assert sum(curve.count for curve in series.names(session, run=run["id"])) == POINTS
    done = [run["id"] for run in runs if run["state"] == "done"]
    assert all(len(studio.scores(run)) == 6 for run in done)  # three tasks, adapter and base
    routed = studio.routed(done)
    assert routed and all(len(studio.routing_atlas(run).moments) == 3 for run in routed)
    conversations = studio.chats.page(limit=1000)
    told = sum(1 + len(answers) for one in conversations.rows for _, answers in studio.chats.turns(one.id))
    assert told == SMALL.messages
    found = studio.compare(done[:2], baseline="base")
    assert found.rows and any(cell.difference for row in found.rows for cell in row.cells if cell)
    studio.close()


@pytest.mark.long
def test_five_hundred_runs_are_built_in_a_minute(tmp_path):
    began = time.monotonic()
    made = build(tmp_path / "home")
    assert len(made) == 500 and time.monotonic() - began < 60
