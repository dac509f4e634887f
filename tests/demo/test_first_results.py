"""The recipe of the first results plans, packs and reports runs; numbers on the page are those of the folders."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from core.evaluation.predictions import Answer, write_predictions
from core.home import Home, write_json
from core.jobs.sinks import FileSink
from recipes import first_results
from recipes.first_results import METHODS, SETTINGS, UNSEEN, finished, pack, plan
from recipes.first_results_page import Alone, alone, results, write_page

ROWS = 40


def test_one_seed_of_each_method_comes_first_and_nothing_is_planned_twice():
    names = [one.name for one in plan(SETTINGS["full"])]
    assert names[:3] == [f"{method}-seed0" for method in METHODS]
    assert len(set(names)) == len(names) == 3 * 3 + len(UNSEEN) + 2


def test_methods_are_compared_with_equal_settings():
    together = [one.spec for one in plan(SETTINGS["full"]) if "together" in one.spec.tags]
    plain = [spec.model_dump(mode="json") | {"name": "", "seed": 0} for spec in together]
    for spec in plain:
        name = spec["method"].pop("name")
        experts = spec["method"]["options"].pop("experts", None)
        assert experts == ([2, 4, 6, 8] if name == "molora" else None)  # as many as mosld has by default
    assert all(spec == plain[0] for spec in plain)


def run_folder(home: Home, one: first_results.Planned, right: int, base_right: int, trivial: float = 0.5) -> None:
    """A finished run as a worker leaves it, with ``right`` of ``ROWS`` answers right."""
    folder = home.run(one.name).create()
    write_json(folder.spec, one.spec.model_dump(mode="json"))
    sink = FileSink(folder.events, run=one.name, job="train", attempt=1)
    sink.emit("started", step=0, device="cpu", versions={"torch": "2"}, trainable=100, total=1100)
    for task in [spec.task for spec in one.spec.tasks]:
        for model, count in (("adapter", right), ("base", base_right)):
            values = [float(i < count) for i in range(ROWS)]
            rows = [{"task": task, "input": str(i), "output": "a"} for i in range(ROWS)]
            file = f"{task}-{model}.jsonl"
            answers = [Answer("a" if value else "b", ("a",)) for value in values]
            write_predictions(folder.predictions / file, task, rows, answers, {"accuracy": values})
            score = {
                "value": count / ROWS,
                "stderr": 0.05,
                "rows": ROWS,
                "chance": 0.25,
                "trivial": trivial,
                "copy": None,
            }
            place = {"task": task, "dataset": "d", "split": "test", "model": model, "metric": "accuracy"}
            sink.emit("score", **place, **score, primary=True, predictions=file, key=task)
    (folder.adapter).mkdir()
    (folder.adapter / "weights").write_bytes(b"w" * 1000)
    (folder.checkpoints / "step-1").write_bytes(b"c" * 1000)
    sink.emit("finished", step=4)
    sink.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.open(tmp_path / "home")
    chosen = {one.name: one for one in plan(SETTINGS["full"])}
    for name, right in (("mosld-seed0", 36), ("lora-seed0", 30), ("mnli-lora", 36), ("boolq-lora", 21)):
        run_folder(home, chosen[name], right, base_right=10)
    return home


def test_packs_hold_runs_without_checkpoints_and_leave_adapters_out_when_room_is_short(home, tmp_path, monkeypatch):
    (path,) = pack(home, tmp_path / "packs")
    with tarfile.open(path) as outer:
        assert len(outer.getnames()) == 4
        with tarfile.open(fileobj=outer.extractfile("mnli-lora.tar.xz")) as inner:
            names = inner.getnames()
    assert "mnli-lora/adapter/weights" in names and "mnli-lora/events.jsonl" in names
    assert not any("checkpoints" in name for name in names)
    monkeypatch.setattr(first_results, "ARCHIVE", 4000)
    paths = pack(home, tmp_path / "small")
    assert all(path.stat().st_size > 0 for path in paths) and len(paths) > 1


def test_a_task_is_above_only_beyond_two_standard_errors_of_the_best_floor(home):
    verdicts = {one.task: one for one in (alone(r) for r in results(home) if "alone" in r.spec.tags)}
    assert verdicts["mnli"].best == "trivial" and verdicts["mnli"].above
    assert not verdicts["boolq"].above  # 0.525 against 0.5 with an error of 0.05
    floors = {"chance": 0.1, "trivial": None, "copy": 0.3, "base": 0.2}
    assert Alone("t", {"value": 0.4}, floors, 0.049).best == "copy"
    assert Alone("t", {"value": 0.4}, floors, 0.049).above and not Alone("t", {"value": 0.4}, floors, 0.051).above


def test_the_page_tells_what_the_folders_hold(home, tmp_path):
    page = write_page(home, tmp_path / "docs").read_text("utf-8")
    assert "1 of 2 tasks are more than two standard errors above" in page
    assert "Beyond this base, as trained here: boolq." in page
    assert "| rt_polarity (accuracy) | 0.900 ± 0.050 | 0.750 ± 0.050 | 0.250 ± 0.050 |" in page
    assert "| rt_polarity | ● +0.150" in page
    assert "1,000 parameters" in page
    for picture in ("first-results-scores.png",):
        assert (tmp_path / "docs" / "figures" / picture).stat().st_size > 1000


def test_half_a_line_in_the_events_is_no_finish(home):
    folder = home.run("mnli-lora")
    lines = folder.events.read_text().splitlines()
    folder.events.write_text("\n".join([*lines[:-1], lines[-1][:20]]))
    assert not finished(folder)
    assert json.loads(lines[-1])["kind"] == "finished"
