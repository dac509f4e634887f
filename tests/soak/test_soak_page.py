"""Figures of a soak as text: what is broken is seen, and the page's block is filled."""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.soak import broken
from benchmarks.soak_kills import KINDS, PAUSES, moments, order
from benchmarks.soak_page import table, write
from benchmarks.soak_watch import PAGES, spread


def report(*wrong: str) -> dict:
    times = spread([1.0, 2.0, 14.0])
    kills = {
        "seed": 7, "kills": 3, "processes": 4, "pauses": 1, "people": {"submissions": 2}, "runs": {"done": 2},
        "attempts": {"done": 2, "lost": 3}, "polls": 50, "untrue": dict.fromkeys(PAGES, 2.5), "took": 9,
        "settled": {"worker": times, "all": times}, "pages": {"Home": times}, "outages": times, "served": times,
        "without_dispatcher": spread([]), "checks": [{"promise": "no run is lost", "looked_at": 2, "wrong": [*wrong]}],
    }  # fmt: skip
    machine = {"cores": 2, "python": "3.11", "system": "Linux", "load": 0.1, "day": "2026-01-01"}
    return {"machine": machine, "minutes": 1, "kills": kills, "load": {"took": 8, "text": "Load: calm.", "broken": []}}


def test_what_is_broken_is_said() -> None:
    assert broken(report()) == [] and "| no run is lost | 2 | no |" in table(report())
    assert broken(report("run-3 | gone")) == ["no run is lost: run-3 | gone"]
    assert "**run-3 / gone**" in table(report("run-3 | gone"))
    slow = report() | {"load": {"took": 8, "text": "", "broken": ["ticks are slow"]}}
    assert broken(slow) == ["ticks are slow"]


def test_the_block_of_the_page_is_filled_and_the_rest_stays(tmp_path: Path) -> None:
    page, measured = tmp_path / "page.md", tmp_path / "soak.json"
    page.write_text("Before\n<!-- soak: written by python -m benchmarks.soak --page -->\nold\n<!-- end -->\nAfter\n")
    write(measured, page)
    assert "Not measured yet." in page.read_text()
    measured.write_text(json.dumps(report()))
    text = write(measured, page).read_text()
    assert text.startswith("Before\n") and text.endswith("<!-- end -->\nAfter\n") and "old" not in text
    assert "| worker | 3 | 2.0 | 14.0 | 14.0 |" in text and "Load: calm." in text


def test_figures_of_before_chats_were_killed_are_shown_and_those_since() -> None:
    before = table(report())
    assert "| worker | 3 | 2.0 | 14.0 | 14.0 | – | – | – |" in before and "question" not in before
    assert "| **all events** | 3 | 2.0 | 14.0 | 14.0 | 2.0 | 14.0 | 14.0 |" in before
    assert "with a web server every page was right again within 14.0 s (95 %), at most 14.0 s; 15 are" in before
    since, times = report(), spread([3.0])
    since["kills"] |= {"served": {"worker": times, "all": times}}
    since["kills"]["chat"] = {"asked": 5, "answered": 4, "kills": 1, "again": {"chat worker": times}, "answers": times}
    shown = table(since)
    assert "| worker | 3 | 2.0 | 14.0 | 14.0 | 3.0 | 3.0 | 3.0 |" in shown
    assert "| a question is answered again after: chat worker | 1 | 3.0 | 3.0 | 3.0 |" in shown
    assert "5 questions were put, 4 of them answered whole." in shown


def test_a_seed_gives_the_same_kills_of_every_kind() -> None:
    kinds = order(random.Random(3), 60)
    assert kinds == order(random.Random(3), 60) != order(random.Random(4), 60)
    assert set(kinds) == {*KINDS, *PAUSES} and sum(kind in KINDS for kind in kinds) >= 50
    times = moments(random.Random(3), 60, 100.0)
    assert times == sorted(times) and times[0] >= 6.0 and times[-1] <= 100.0
