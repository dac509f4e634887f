"""What the Runs page shows and does, as plain functions over a real home."""

from __future__ import annotations

import re
import time
import zipfile
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import gradio as gr
import pytest

from app.pages import run_curves, run_look, run_views, runs
from app.pages.fusion_choice import Choice
from app.pages.run_list import Filters, listing
from core.errors import StudioError
from core.jobs.ingest import ingest_events
from core.jobs.sinks import FileSink
from core.models import download_progress
from storage.queries import jobs
from storage.queries import runs as stored
from tests.support import seed


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> seed.Seeded:
    """Tests that take this one only look."""
    return seed.few(tmp_path_factory.mktemp("kept") / "home")


@pytest.fixture(scope="module")
def studio(kept: seed.Seeded) -> Iterator[seed.QuietStudio]:
    made = seed.QuietStudio(kept.home)
    yield made
    made.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[seed.QuietStudio, seed.Seeded]]:
    """A home that a test may change."""
    seeded = seed.few(tmp_path / "home")
    made = seed.QuietStudio(seeded.home)
    yield made, seeded
    made.close()


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the page says in the corner."""
    told: list[str] = []
    for name in ("Info", "Warning"):
        monkeypatch.setattr(gr, name, lambda message, *_, **__: told.append(message))
    return told


def names(found: dict) -> list[str]:
    return [run["id"] for group in found["groups"] for run in group["runs"]]


def test_a_download_is_counted_in_mib(own):
    studio, seeded = own
    folder = studio.home.run(seeded.running)
    sink = FileSink(folder.events, run=seeded.running, job="train", attempt=2)
    download_progress(sink)(120 * 2**20, 2048 * 2**20)
    sink.close()
    ingest_events(studio.records.database, folder)
    head = run_views.head(studio.run(seeded.running))
    assert "downloading · 120 of 2,048 MiB" in head and "step" not in head
    entry = listing(studio, Filters(state="working"), "")["groups"][0]["runs"][0]
    assert entry["when"] == "downloading · cpu" and entry["share"] == pytest.approx(120 / 2048, abs=1e-4)


def test_the_list_is_newest_first_and_says_what_each_run_waits_for(studio, kept):
    found = listing(studio, Filters(), kept.running)
    assert names(found) == [f"run-{n}" for n in range(10, 0, -1)]
    entries = {run["id"]: run for group in found["groups"] for run in group["runs"]}
    assert entries[kept.running]["on"] and entries[kept.running]["share"] == 0.5
    assert entries[kept.running]["when"] == "1:06 min left · cpu"
    assert entries[kept.queued[0]]["when"] == "next in the queue"
    assert entries[kept.queued[1]]["when"] == "1 ahead in the queue"
    assert found["queue"] == f"cpu: {kept.running} · 2 waiting"


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ({"state": "working"}, 1),
        ({"state": "failed"}, 1),
        ({"method": "mosld"}, 4),
        ({"tag": "baseline"}, 1),
        ({"search": "too large"}, 1),
        ({"search": "nothing like it"}, 0),
        ({"dataset": "no such id"}, 0),
        ({"state": "nonsense", "page": "-3"}, 10),
    ],
)
def test_filters_narrow_the_list(studio, asked, count):
    assert len(names(listing(studio, Filters.of(asked), ""))) == count


def test_seeds_are_grouped_by_setting_with_a_link_that_compares_those_that_are_done(studio, kept):
    groups = listing(studio, Filters(seeds=True), "")["groups"]
    mosld = next(group for group in groups if kept.mosld[0] in [run["id"] for run in group["runs"]])
    assert [run["id"] for run in mosld["runs"]] == [*kept.mosld, kept.running]
    assert mosld["title"] == "mosld on topic, mood, words · 4 seeds"
    assert mosld["compare"] == f"/compare?runs={','.join(kept.mosld)}"


def test_a_page_opens_with_the_run_that_works(studio, kept):
    fresh, _ = run_look.look(studio, "", "loss", Filters(), {})
    assert fresh["chosen"] == kept.running and kept.running in fresh["head"]


def test_a_tick_that_comes_before_the_answer_to_opening_chooses_no_run(studio, kept):
    _, seen = run_look.look(studio, kept.lora, "loss", Filters(), {})
    assert runs.early("", {}) and runs.early("", seen)
    assert not runs.early(kept.lora, seen)


def test_a_tick_in_an_empty_studio_looks_for_the_first_run(tmp_path):
    _, seen = run_look.look(seed.QuietStudio(tmp_path / "home"), "", "loss", Filters(), {})
    assert not runs.early("", seen)


def test_after_a_deletion_the_page_shows_a_run_that_is_there(own):
    studio, seeded = own
    _, seen = run_look.look(studio, "", "loss", Filters(), {})
    _, seen = run_look.look(studio, seeded.lora, "loss", Filters(), seen)
    studio.delete(seeded.lora)
    fresh, _ = run_look.look(studio, "", "loss", Filters(), seen)
    assert fresh["chosen"] == seeded.running and seeded.running in fresh["head"]


def test_a_second_look_at_the_same_changes_nothing(studio, kept):
    fresh, seen = run_look.look(studio, kept.running, "loss", Filters(), {})
    assert {"list", "head", "curve", "facts", "said"} <= set(fresh)
    assert run_look.look(studio, kept.running, "loss", Filters(), seen) == ({}, seen)
    values = runs.shown(studio, kept.running, "loss", Filters(), seen)
    assert len(values) == len(run_look.PARTS) + 1 and all(value == gr.skip() for value in values)


def test_new_steps_redraw_the_curve_and_the_head_alone(own):
    studio, seeded = own
    _, seen = run_look.look(studio, seeded.running, "loss", Filters(), {})
    seed.more_steps(studio, seeded.running, 60, 70)
    fresh, _ = run_look.look(studio, seeded.running, "loss", Filters(), seen)
    assert fresh["curve"]["series"][0]["points"][-1][0] == 70
    assert "step 70 of 120" in fresh["head"] and "links" not in fresh and "failure" not in fresh


def test_a_running_run_says_that_the_tab_may_be_closed(studio, kept):
    head = run_views.head(studio.run(kept.running))
    assert "Safe to close this tab" in head and "1:06 min left" in head and "on cpu" in head
    assert "Safe to close" not in run_views.head(studio.run(kept.lora))


def test_the_failure_card_has_class_hint_and_last_lines_and_names_stay_text(studio, kept):
    run = studio.run(kept.failed)
    card = run_views.failure(run, [])
    assert "Out of memory" in card and "Halve the batch size" in card and "CUDA out of memory" in card
    assert "too large &lt;for&gt; this GPU" in run_views.head(run) and "<for>" not in run_views.head(run)
    assert run_views.failure(studio.run(kept.lora), []) == ""


def test_facts_name_parameters_lineage_and_other_seeds(studio, kept):
    facts = run_views.facts(studio.run(kept.molora))
    assert "1,245,184" in facts and "9.84% of the base" in facts
    assert f'href="/runs?run={kept.lora}"' in facts
    seeds = [studio.run(run) for run in kept.mosld]
    assert f'<a href="/runs?run={kept.mosld[1]}">1</a>' in run_views.facts(seeds[0], seeds)


def test_scores_stand_beside_the_base_with_paired_gains(studio, kept):
    shown = run_views.scores(studio, studio.run(kept.lora))
    assert shown.count("<tr>") == 4 and "+0.500" in shown and "0.250" in shown
    assert "scored when the training has ended" in run_views.scores(studio, studio.run(kept.queued[0]))
    assert "Resume it" in run_views.scores(studio, studio.run(kept.failed))


def test_alarms_stand_above_the_log(studio, kept):
    told = run_views.log(studio.watch.messages(kept.failed))
    assert told.index("The loss is 4.2 times") < told.index("<h3>Log</h3>") < told.index("loading the base")


def test_alarms_that_nobody_answered_ask_for_one(own):
    studio, seeded = own
    fresh, seen = run_look.look(studio, seeded.failed, "loss", Filters(), {})
    assert fresh["alarmed"]["visible"] and "The loss is 4.2 times" in fresh["alarms"]
    assert fresh["go_on"]["value"] == "I have seen it" and not fresh["stop_now"]["visible"]
    entries = [entry for group in fresh["list"]["groups"] for entry in group["runs"]]
    assert [entry["id"] for entry in entries if "an alarm" in entry["about"]] == [seeded.failed]
    state = studio.go_on(seeded.failed)
    assert (state["state"], state["alarms"]) == ("failed", 0), "only what an alarm stopped is resumed"
    fresh, _ = run_look.look(studio, seeded.failed, "loss", Filters(), seen)
    assert not fresh["alarmed"]["visible"] and fresh["alarms"] == ""


def test_a_run_that_waits_is_moved_to_the_front(own):
    studio, seeded = own
    studio.move_to_front(seeded.queued[1])
    entries = {run["id"]: run for group in listing(studio, Filters(), "")["groups"] for run in group["runs"]}
    assert entries[seeded.queued[1]]["when"] == "next in the queue"
    assert entries[seeded.queued[0]]["when"] == "1 ahead in the queue"
    with pytest.raises(StudioError, match="waits for nothing"):
        studio.move_to_front(seeded.lora)


def test_a_run_that_works_is_stopped_at_its_alarm_or_goes_on(own):
    studio, seeded = own
    for _ in range(2):
        with studio.records.write() as session:
            stored.alarmed(session, run_id=stored.row(session, run=seeded.running).id)
    fresh, _ = run_look.look(studio, seeded.running, "loss", Filters(), {})
    assert fresh["go_on"]["value"] == "Go on" and fresh["stop_now"]["visible"]
    assert studio.go_on(seeded.running)["state"] == "running" and studio.run(seeded.running)["alarms"] == 0
    assert studio.cancel(seeded.running)["state"] == "cancelling"


def test_a_run_that_an_alarm_stopped_is_resumed_past_it(own):
    studio, seeded = own
    with studio.records.write() as session:
        job = jobs.of_run(session, run=seeded.failed)[0]
        jobs.end(session, job=job.id, state="failed", failure="alarm", message="Stopped at step 4.", hint="Resume it.")
    fresh, _ = run_look.look(studio, seeded.failed, "loss", Filters(), {})
    assert "It stopped, as it was asked to" in fresh["alarms"] and fresh["go_on"]["value"] == "Go on"
    assert studio.go_on(seeded.failed)["state"] == "queued"


@pytest.mark.parametrize(
    ("family", "count"), [("loss", 2), ("tasks", 3), ("validation", 4), ("memory", 1), ("balance", 0)]
)
def test_families_of_curves(studio, kept, family, count):
    run = studio.run(kept.lora)
    found = run_curves.curves(studio, run, family, list(studio.watch.curve_names(run["id"])))
    assert run_curves.offered(run, []) == run_curves.CHOICES
    assert len(found["series"]) == count and found["y"]
    assert run_curves.family("no such") == "loss"


def test_what_can_be_done_follows_from_the_state(studio, kept):
    able = {run: run_look.abilities(studio.run(run)) for run in (kept.running, kept.failed, kept.lora, kept.queued[0])}
    assert able[kept.running]["cancel"] and not able[kept.running]["delete"]
    assert able[kept.failed]["resume"] and not able[kept.failed]["export"]
    ended = {"move_to_front": False, "cancel": False, "resume": False, "export": True, "bundle": True, "delete": True}
    assert able[kept.lora] == ended and not able[kept.running]["move_to_front"]
    assert able[kept.queued[0]]["cancel"] and able[kept.queued[0]]["move_to_front"]


def test_a_run_that_was_deleted_elsewhere_leaves_nothing_to_press(studio):
    fresh, _ = run_look.look(studio, "run-99", "loss", Filters(), {})
    assert "There is no run" in fresh["head"] and fresh["facts"] == ""
    assert all(fresh[name]["interactive"] is False for name in run_look.BUTTONS)


def test_cancel_asks_first_and_acts_on_the_run_that_was_asked_about(own, said):
    studio, seeded = own
    visible, asking, words, _ = runs.question(studio, "cancel", seeded.running)
    assert visible["visible"] and seeded.running in words and studio.run(seeded.running)["state"] == "running"
    assert runs.confirmed(studio, asking, seeded.lora) == seeded.lora
    assert studio.run(seeded.running)["state"] == "running" and "nothing was done" in said[-1]
    assert runs.confirmed(studio, asking, seeded.running) == seeded.running
    assert studio.run(seeded.running)["state"] == "cancelling"


def test_delete_says_what_goes_and_leaves_the_others(own, said):
    studio, seeded = own
    _, asking, words, _ = runs.question(studio, "delete", seeded.lora)
    assert "MB" in words and "adapter" in words
    assert runs.confirmed(studio, asking, seeded.lora) == ""
    with pytest.raises(StudioError):
        studio.run(seeded.lora)
    assert studio.run(seeded.molora)["parent"] is None
    assert not (seeded.home / "runs" / seeded.lora).exists()


def test_a_working_run_is_not_deleted_and_it_is_said_why(own, said):
    studio, seeded = own
    assert runs.confirmed(studio, f"delete {seeded.running}", seeded.running) == seeded.running
    assert "still at work" in said[-1]


def test_a_clone_changes_one_setting(own, said):
    studio, seeded = own
    new = runs.cloned(studio, seeded.lora, "train.learning_rate", "0.004")
    made = studio.run(new)
    assert made["spec"]["train"]["learning_rate"] == 0.004 and made["parent"] == seeded.lora
    assert runs.cloned(studio, seeded.lora, "train.no_such", "1") is None
    assert runs.cloned(studio, seeded.lora, "train.learning_rate", "much") is None and "learning_rate" in said[-1]


def test_a_clone_of_a_run_of_the_demo_is_not_taken_for_one(own, said):
    studio, seeded = own
    spec = seed.spec(seeded.dataset, "lora", tags=["demo", "demo-0a1b2c3d", "paper"])
    marked = studio.submit(spec)
    new = runs.cloned(studio, marked, "train.learning_rate", "0.004")
    assert studio.run(marked)["tags"] == ["demo", "demo-0a1b2c3d", "paper"]
    assert studio.run(new)["tags"] == ["demo", "paper"]


def test_the_bundle_holds_settings_events_and_log_but_no_weights(studio, kept):
    path = runs.packed(studio, "bundle", kept.failed)
    held = zipfile.ZipFile(path).namelist()
    assert sorted(held) == [f"{kept.failed}/{name}" for name in ("events.jsonl", "logs/train-1.log", "spec.json")]


@pytest.mark.parametrize("name", ["run-99", "../../etc/passwd", "", "run-6/../run-1"])
def test_only_ids_of_runs_are_packed(studio, name):
    with pytest.raises(gr.Error):
        runs.packed(studio, "bundle", name)


def test_an_empty_studio_leads_on(tmp_path):
    studio = seed.QuietStudio(tmp_path / "home")
    fresh, _ = run_look.look(studio, "", "loss", Filters(), {})
    assert fresh["empty"]["visible"] and not fresh["main"]["visible"]
    assert 'href="/"' in run_views.nothing() and 'href="/experiment"' in run_views.nothing()
    studio.close()


def test_three_hundred_runs_are_paged_and_quick(tmp_path):
    made = seed.many(tmp_path / "home", 300)
    studio = seed.QuietStudio(tmp_path / "home")
    _, seen = run_look.look(studio, made[0], "loss", Filters(), {})
    began = time.process_time()
    fresh, _ = run_look.look(studio, made[150], "loss", Filters(page=2), seen)
    took = time.process_time() - began
    assert fresh["list"]["pages"] == 25 and fresh["list"]["total"] == "300 runs"
    assert took < 1.0, f"{took:.3f} s"
    assert listing(studio, Filters(seeds=True), "")["pages"] == 1  # three settings with a hundred seeds each
    studio.close()


# Fused runs


def test_a_fused_run_names_sources_method_and_options_and_not_how_its_sources_were_trained(own):
    studio, seeded = own
    run = studio.run(seed.fused(studio, seeded.dataset, [seeded.lora, f"{seeded.molora}:mood"], steps=8))
    told = run_views.facts(run)
    assert "<b>AdaMerging</b>" in told and "interpretation" in told and "steps 8" in told
    assert f'<a href="/runs?run={seeded.lora}">{seeded.lora}</a>' in told
    assert f'<a href="/runs?run={seeded.molora}">{seeded.molora}:mood</a>' in told
    assert "learning rate" not in told and "Trainable" not in told
    assert "fused model stands" in run_views.scores(studio, run | {"state": "running"})


def test_a_fused_run_is_cloned_on_the_fusion_page_with_what_it_changed(own):
    studio, seeded = own
    run = seed.fused(studio, seeded.dataset, [seeded.lora, seeded.molora], steps=8)
    fresh, _ = run_look.look(studio, run, "loss", Filters(), {})
    links = [unescape(link) for link in re.findall(r'href="([^"]+)"', fresh["links"])]
    again = next(urlsplit(link) for link in links if link.startswith("/fusion?runs=") and "method" in link)
    choice = Choice.of(dict(parse_qsl(again.query)))
    assert choice.runs == (seeded.lora, seeded.molora) and choice.method == "adamerging"
    assert choice.changes == {"method.options.steps": 8, "device": "cpu"}
    assert f"/fusion?run={run}" in links and not any(link.startswith(("/experiment", "/routing")) for link in links)
    assert not fresh["cloning"]["visible"]
    assert run_look.look(studio, seeded.lora, "loss", Filters(), {})[0]["cloning"]["visible"]


def test_the_curve_menu_of_a_fused_run_offers_what_it_learnt(own):
    studio, seeded = own
    sources = [seeded.lora, seeded.molora]
    learnt, plain = seed.fused(studio, seeded.dataset, sources), seed.fused(studio, seeded.dataset, sources, "average")
    fresh, seen = run_look.look(studio, learnt, "coefficient", Filters(), {})
    offered = [name for _, name in fresh["menu"]["choices"]]
    assert offered == ["entropy", "loss", "coefficient", "bound"] and fresh["menu"]["value"] == "coefficient"
    assert [one["name"] for one in fresh["curve"]["series"]] == sources and fresh["curve"]["y"] == "mean coefficient"
    now, seen = run_look.look(studio, learnt, "entropy", Filters(), seen)
    assert "menu" not in now and now["curve"]["y"] == "entropy (nats)"  # what a person chose is not sent back
    now, _ = run_look.look(studio, seeded.lora, "entropy", Filters(), seen)
    assert (now["menu"]["choices"], now["menu"]["value"]) == (run_curves.CHOICES, "loss")
    empty = run_look.look(studio, plain, "loss", Filters(), {})[0]["curve"]
    assert not empty["series"] and "Nothing was learnt" in empty["empty"]
