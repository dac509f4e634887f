"""What the Home page says and does, without a browser; the machine and the disk behind it."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import gradio as gr
import pytest

from app.pages import home
from app.pages import home_views as views
from core.disk import SETTLED_SECONDS, size
from core.errors import ConfigurationError
from core.machine import Background, gpus, meters
from storage.queries import jobs
from tests.support import seed
from tests.support.seed import QuietStudio


@pytest.fixture
def studio(tmp_path: Path):
    made = QuietStudio(tmp_path / "home")
    yield made
    made.close()


@pytest.fixture(scope="module")
def _few(tmp_path_factory: pytest.TempPathFactory) -> seed.Seeded:
    return seed.few(tmp_path_factory.mktemp("few") / "home")


@pytest.fixture
def few(_few: seed.Seeded, tmp_path: Path):
    shutil.copytree(_few.home, tmp_path / "few")
    made = QuietStudio(tmp_path / "few")
    yield made
    made.close()


def test_what_went_wrong_with_the_demo_is_told(studio: QuietStudio, monkeypatch: pytest.MonkeyPatch):
    def broken(**_: object) -> None:
        raise ConfigurationError("The <base> is missing.", "Restore it.")

    monkeypatch.setattr(studio, "demo", broken)
    starting = home.Starting(studio)
    starting.press()
    starting.join()
    shown = home.view(studio, None, starting)
    assert "&lt;base&gt; is missing" in shown["told"] and shown["start"]


def test_an_empty_studio_shows_the_way_to_the_demo_and_to_own_data(studio: QuietStudio):
    shown = home.view(studio, None)
    assert shown["start"] and not shown["runs"] and not shown["counts"] and shown["told"] == ""
    assert "/data" in views.other_ways() and "demo" in views.welcome()


def test_one_press_queues_one_demo_however_often_it_is_pressed(studio: QuietStudio):
    starts = [home.Starting(studio), home.Starting(studio)]  # two servers, or a server and the command line
    for start in [*starts, *starts]:
        start.press()
    assert starts[0].working and "Preparing" in home.view(studio, None, starts[0])["demo"]
    for start in starts:
        start.join()
    assert [start.problem for start in starts] == ["", ""]
    runs = studio.runs()
    assert sorted(run["method"] for run in runs) == ["lora", "molora", "mosld"]
    shown = home.view(studio, None)
    assert not shown["start"] and "at work" in shown["demo"]
    assert all(f"/runs?run={run['id']}" in shown["demo"] for run in runs)


def demo_runs(state: str) -> list[dict]:
    ids = {"lora": "run-1", "molora": "run-2", "mosld": "run-3"}
    job = {"state": state, "step": 30, "total": 120, "phase": "training", "seconds_left": 9}
    return [
        {"id": run, "name": f"{method} <x>", "method": method, "state": state, "job": job, "progress": "training"}
        for method, run in ids.items()
    ]


def test_the_demo_card_says_what_comes_next():
    working = views.demo(demo_runs("running"))
    assert "at work" in working and "width:25%" in working and "&lt;x&gt;" in working and "<x>" not in working
    done = views.demo(demo_runs("done"))
    assert "/compare?runs=run-1,run-2,run-3" in done and "/routing?run=run-3" in done and "/chat?" in done
    assert "did not finish" in views.demo(demo_runs("failed"))
    assert views.demo([]) == ""


def test_runs_and_their_states_are_links_and_text(few: QuietStudio):
    shown = home.view(few, None)
    assert "too large &lt;for&gt; this GPU" in shown["runs"] and "<for>" not in shown["runs"]
    assert "/runs?run=run-10" in shown["runs"] and shown["counts"].count("<a ") == 4
    assert not shown["start"]


def test_the_routing_of_the_newest_finished_mixture_is_drawn_once(few: QuietStudio):
    shown = home.view(few, None)
    assert shown["teaser"] == "run-5" and shown["value"]["rows"] == list(seed.TASKS)
    assert "/routing?run=run-5" in shown["teaser_text"]
    assert "value" not in home.view(few, "run-5")


def test_only_what_changed_is_sent_again(few: QuietStudio):
    few.machine.disk()
    first = home.changed(home.view(few, None), {})
    seen = first[-1]
    again = dict(zip(home.PARTS, home.changed(home.view(few, seen["teaser"]), seen), strict=False))
    skipped = [name for name, value in again.items() if value == gr.skip()]
    assert {"body", "told", "demo", "counts", "runs", "teaser", "teaser_column", "disk"} <= set(skipped)
    assert "value" not in seen


def test_a_database_that_does_not_answer_is_told(studio: QuietStudio, monkeypatch: pytest.MonkeyPatch):
    def broken(**_: object) -> None:
        raise ConfigurationError("The database is <locked>.", "Wait.")

    monkeypatch.setattr(studio, "overview", broken)
    assert "&lt;locked&gt;" in home.view(studio, None)["told"]


def test_who_holds_a_device_and_what_waits_is_said(few: QuietStudio):
    few.machine.state()  # has the meters read in the background
    deadline = time.monotonic() + 20
    while few.machine.state()["meters"] is None and time.monotonic() < deadline:
        time.sleep(0.05)
    shown = home.view(few, None)["machine"]
    assert "held by" in shown and "run-8" in shown and "(train" in shown
    assert "Waiting, in this order" in shown and shown.index("run-9") < shown.index("run-10")
    assert "does not start" in shown  # no dispatcher is alive


def test_meters_show_gpus_and_who_chats_on_them():
    gpu = {"device": "cuda:0", "title": "H<200>", "percent": 40.0, "used": 2**33, "total": 2**37}
    memory = {"used": 9 * 2**30, "total": 10 * 2**30}
    found = {
        "meters": {"cpu": {"percent": 3.0, "cores": 2}, "memory": memory, "gpus": [gpu]},
        "holders": {"cuda:0": [{"run": None, "title": "chat <with> run-1", "share": 1.0}]},
        "waiting": [],
        "dispatcher": {"alive": True, "pid": 7, "log": ""},
    }
    shown = views.machine(found)
    assert "8.0 GiB of 128.0 GiB, 40 % busy" in shown and "chat &lt;with&gt; run-1" in shown and "H&lt;200&gt;" in shown
    assert 'class="full" style="width:90%"' in shown and "process 7" in shown
    part = {"run": "run-2", "title": "train", "share": 0.25}
    assert "(train, 25%)" in views.machine(found | {"holders": {"cuda:0": [part]}})


def test_the_meters_of_this_machine_are_read():
    found = meters()
    assert 0 <= found["cpu"]["percent"] <= 100 and 0 < found["memory"]["used"] < found["memory"]["total"]


def test_what_nvidia_smi_says_is_read_and_its_failure_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho '0, NVIDIA H200, with, commas, 7, 1024, 143771'\necho '1, Other, [N/A], 1, 2'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    first, second = gpus()
    assert first["title"] == "NVIDIA H200, with, commas" and first["percent"] == 7 and first["used"] == 2**30
    assert second["device"] == "cuda:1" and second["percent"] is None
    program.write_text("#!/bin/sh\nexit 9\n")
    assert gpus() == []


def test_a_slow_look_is_never_waited_for():
    release, calls = threading.Event(), []

    def slow() -> int:
        calls.append(1)
        release.wait(10)
        return len(calls)

    value = Background(slow, seconds=1000)
    began = time.monotonic()
    assert value.newest() is None and value.newest() is None and time.monotonic() - began < 1
    release.set()
    while value.newest() is None and time.monotonic() - began < 10:
        time.sleep(0.01)
    assert value.newest() == 1 and len(calls) == 1


def files(studio: QuietStudio, run: str) -> Path:
    """A checkpoint of 1,000 bytes."""
    folder = studio.home.run(run).checkpoints / "step-10"
    folder.mkdir(parents=True)
    (folder / "state.safetensors").write_bytes(b"x" * 1000)
    return folder


def test_clean_up_takes_checkpoints_of_finished_runs_alone(few: QuietStudio):
    done, cancelled = files(few, "run-1"), files(few, "run-7")
    found = few.machine.disk()
    assert found["kinds"]["checkpoints"] == 2000 and found["removable"]["checkpoints"] == 1000
    assert few.machine.clean(["checkpoints"]) == {"checkpoints": 1000}
    assert not done.exists() and cancelled.exists() and few.home.run("run-1").checkpoints.is_dir()
    assert few.machine.disk()["kinds"]["checkpoints"] == 1000
    assert list(few.home.runs.glob(".gone*")) == []


def test_folders_of_no_run_go_when_they_are_settled(few: QuietStudio, tmp_path: Path):
    precious = tmp_path / "elsewhere"
    precious.mkdir()
    (precious / "a").write_text("mine")
    old, new, other, link = (few.home.runs / name for name in ("run-99", "run-98", "notes", "run-97"))
    for folder in (old, new, other):
        folder.mkdir()
        (folder / "a").write_text("abc")
    link.symlink_to(precious)
    long_ago = time.time() - 2 * SETTLED_SECONDS
    for folder in (old, other):
        os.utime(folder, (long_ago, long_ago))
    assert few.machine.clean(["orphans"]) == {"orphans": 3}
    assert not old.exists() and new.exists() and other.exists() and (precious / "a").exists()


def test_caches_stay_while_a_job_works(few: QuietStudio):
    (few.home.cache / "shapes").write_text("abc")
    with pytest.raises(ConfigurationError, match="use the caches"):
        few.machine.clean(["caches"])
    few.cancel("run-8")
    with few.records.write() as session:
        for job in jobs.queue(session):
            jobs.end(session, job=job.id, state="cancelled")
    assert few.machine.clean(["caches", "caches"]) == {"caches": 3} and few.home.cache.is_dir()


@pytest.mark.parametrize("kinds", [[], None, ["datasets"], ["checkpoints", "../../x"], [{"a": 1}]])
def test_only_what_can_be_cleaned_up_is(studio: QuietStudio, kinds: list | None):
    assert "problem" in home.clean(studio, kinds)[0]


def test_links_count_nothing_and_what_is_not_there_neither(tmp_path: Path):
    (tmp_path / "big").write_bytes(b"x" * 50)
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link").symlink_to(tmp_path / "big")
    assert size(inner) == 0 and size(tmp_path) == 50 and size(tmp_path / "nothing") == 0
    assert [views.size(count) for count in (None, 0, 2048, 3 * 2**30)] == ["–", "0 B", "2.0 KiB", "3.0 GiB"]
