"""What the Fusion page shows, as plain functions: address, sentences, grids, forms, tables, the sweep."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from app import forms
from app.pages import (
    fusion_conflicts,
    fusion_look,
    fusion_making,
    fusion_method,
    fusion_result,
    fusion_runs,
    fusion_sweep,
    fusion_watch,
    run_curves,
)
from app.pages.fusion_choice import ALL, MOST, Choice, toggled
from app.pages.fusion_grid import Grid
from core.errors import ConfigurationError
from core.fusion_results import COLUMNS, Conflicts, Fusion
from tests.support import seed

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PATHS = [
    f"model.layers.{n}.{'self_attn' if p in PROJECTIONS[:4] else 'mlp'}.{p}" for n in range(12) for p in PROJECTIONS
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> seed.Seeded:
    return seed.few(tmp_path_factory.mktemp("kept") / "home")


@pytest.fixture(scope="module")
def studio(home: seed.Seeded) -> Iterator[seed.QuietStudio]:
    made = seed.QuietStudio(home.home)
    yield made
    made.close()


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[seed.QuietStudio]:
    made = seed.QuietStudio(tmp_path / "home")
    yield made
    made.close()


def vectors(runs: int, paths: list[str] = PATHS, seed_: int = 0) -> Conflicts:
    """Conflicts of random vectors; the second run is the first turned around, and twice as long."""
    noise = np.random.default_rng(seed_)
    found = noise.standard_normal((len(paths), runs, 64))
    if runs > 1:
        found[:, 1] = -2 * found[:, 0] + 0.3 * found[:, 1]
    every = found.transpose(1, 0, 2).reshape(1, runs, -1)
    return Conflicts([f"run-{n + 1}" for n in range(runs)], paths, *_told(found), *(part[0] for part in _told(every)))


def _told(found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    norms = np.linalg.norm(found, axis=-1)
    cosine = found @ found.transpose(0, 2, 1) / (norms[:, :, None] * norms[:, None, :])
    signs = (np.sign(found)[:, :, None] != np.sign(found)[:, None]).mean(-1)
    return cosine, signs, norms


def text(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


# The address


def test_an_address_is_read_written_and_nonsense_falls_back():
    query = {"runs": "run-3, run-5,run-3,", "method": "ties", "figure": "waves", "changes": '{"seed": 4}'}
    choice = Choice.of(query)
    assert choice == Choice(runs=("run-3", "run-5"), method="ties", changes={"seed": 4})
    assert choice.query() == "runs=run-3,run-5&method=ties&changes=%7B%22seed%22%3A+4%7D"
    assert Choice.of({"changes": "[1"}) == Choice.of({"changes": "[1]"}) == Choice()
    assert Choice.of({"run": "run-9", "runs": "run-1", "curve": "loss"}).query() == "run=run-9&curve=loss"
    assert len(Choice.of({"runs": [f"run-{n}" for n in range(99)]}).runs) == MOST


def test_an_address_names_no_folders_and_nothing_that_the_form_has_not():
    query = {"runs": "/etc/adapter,run-3:mood,../run-1", "changes": '{"sources": ["/etc/adapter"], "model.base": "/x"}'}
    assert Choice.of(query) == Choice(runs=("run-3:mood",))
    assert toggled(("run-1",), "/etc/adapter") == ("run-1",)


def test_a_click_adds_a_run_at_the_end_and_a_second_one_takes_it_out():
    assert toggled(("run-1",), "run-2") == ("run-1", "run-2")
    assert toggled(("run-1", "run-2"), "run-1") == ("run-2",)


# Runs to choose from


def test_an_empty_studio_leads_to_the_demo(nobody):
    empty, making, watching, past = fusion_making.frames(nobody, Choice())
    assert "Start the demo" in empty["value"] and empty["visible"]
    assert not making["visible"] and not watching["visible"] and not past["visible"]


def test_runs_that_cannot_be_fused_say_why_and_stay_in_the_list(studio, home):
    found = fusion_runs.offered(studio, ())
    assert {run["id"] for run in found["runs"]} == set(home.done)
    assert all(run["reason"] for run in found["runs"])  # these have no weights
    assert not found["more"] and found["chosen"] == []


def test_the_list_is_searched_and_paged(studio, home, monkeypatch):
    assert [run["id"] for run in fusion_runs.offered(studio, (), "molora")["runs"]] == [home.molora]
    assert fusion_runs.offered(studio, (), "nothing like it")["empty"] == "No run matches."
    monkeypatch.setattr(fusion_runs, "PAGE", 2)
    pages = [fusion_runs.offered(studio, (), page=page) for page in (1, 2, 3)]
    assert [len(page["runs"]) for page in pages] == [2, 2, 1]
    assert [page["more"] for page in pages] == [True, True, False]


def test_a_chosen_run_that_is_gone_is_named_and_the_page_goes_on(studio, home):
    shown = fusion_making.view(studio, Choice(runs=("run-99", home.lora)))
    assert [one["name"] for one in shown["offered"]["chosen"]][0] == "no such run"
    told, kept = fusion_making.conflicts(studio, Choice(runs=("run-99", home.lora)))
    assert "run-99" in told["told"] and 'role="alert"' in told["told"] and kept is None


def test_one_run_alone_asks_for_another(studio, home):
    told, kept = fusion_making.conflicts(studio, Choice(runs=(home.lora,)))
    assert "one alone conflicts with nothing" in told["told"] and kept is None
    shown = fusion_making.view(studio, Choice(runs=(home.lora,)))
    assert not shown["fuse"]["interactive"] and "Choose another run" in shown["wish"]


# Conflicts


def test_the_pair_that_conflicts_most_is_said_with_place_and_lengths():
    said = text(fusion_conflicts.findings(vectors(3)))
    assert "run-1 and run-2 : cosine -0.9" in said and "Of 3 pairs, they conflict most" in said
    assert "Most against each other: model.layers." in said and "of run-1 and run-2" in said
    assert re.search(r"run-2 is 2\.[01] times as long as run-", said)


def test_two_runs_that_share_are_not_called_a_conflict():
    found = vectors(2)
    found.cosine[:] = np.abs(found.cosine)
    found.overall_cosine[:] = np.abs(found.overall_cosine)
    said = text(fusion_conflicts.findings(found))
    assert "point the same way" in said and "In no projection does a pair point against each other" in said


def test_a_vector_of_zeros_is_said():
    found = vectors(2)
    found.overall_norms[1], found.norms[:, 1] = 0.0, 0.0
    found.cosine[:, 0, 1] = found.cosine[:, 1, 0] = np.nan
    found.overall_cosine[0, 1] = found.overall_cosine[1, 0] = np.nan
    said = text(fusion_conflicts.findings(found))
    assert "run-2 is zero" in said.replace("The task vector of ", "") and "nan" not in said
    assert fusion_conflicts.heat(found, Choice())["values"][0][0][0][0] is None


@pytest.mark.parametrize("runs", [2, 9, 12])
def test_84_projections_of_many_runs_are_panels_of_pairs_most_conflicting_first(runs):
    found = vectors(runs)
    shown = fusion_conflicts.heat(found, Choice())
    pairs = min(runs * (runs - 1) // 2, fusion_conflicts.MOST_PAIRS)
    assert len(shown["rows"]) == pairs and shown["rows"][0] == "run-1×run-2"
    assert len(shown["layers"]) == 12 and shown["across"][:3] == ["q", "k", "v"] and shown["mid"] == 0
    place = PATHS.index("model.layers.3.mlp.up_proj")
    assert shown["values"][0][0][3][5] == pytest.approx(found.cosine[place, 0, 1], abs=1e-5)


def test_norms_are_panels_of_runs_and_signs_have_one_half_marked():
    found = vectors(3)
    norms = fusion_conflicts.heat(found, Choice(figure="norms"))
    assert norms["rows"] == ["run-1", "run-2", "run-3"] and norms["low"] == 0
    signs = fusion_conflicts.heat(found, Choice(figure="signs"))
    assert signs["low"] <= 0.5 <= signs["top"] and signs["even"] == 0.5


def test_the_square_shows_all_projections_or_one_and_nothing_on_its_diagonal():
    found = vectors(3)
    whole = fusion_conflicts.square(found, Choice())
    assert whole["values"][1][1] is None and whole["values"][0][1] == pytest.approx(
        found.overall_cosine[0, 1], abs=1e-4
    )
    one = fusion_conflicts.square(found, Choice(at=PATHS[5]))
    assert one["values"][0][2] == pytest.approx(found.cosine[5, 0, 2], abs=1e-4) and one["caption"] == PATHS[5]
    assert fusion_conflicts.square(found, Choice(at="no.such.path"))["caption"] == "all projections together"


def test_a_click_names_its_projection_and_anything_else_none():
    grid = Grid.of(PATHS)
    assert grid.path_at({"layer": 3, "expert": 5}) == "model.layers.3.mlp.up_proj"
    assert grid.picked("model.layers.3.mlp.up_proj") == "0,0,3,5"
    for wrong in ({}, {"layer": 99, "expert": 0}, {"layer": "x", "expert": 1}, {"layer": None, "expert": 0}):
        assert grid.path_at(wrong) is None


def test_projections_of_one_name_stay_apart_and_what_is_outside_the_layers_is_below_them():
    paths = ["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.1.attn.c_proj", "h.1.mlp.c_proj", "wte"]
    grid = Grid.of(paths)
    assert grid.names == ("attn.c_proj", "mlp.c_proj", "wte") and grid.layers == (-1, 0, 1)
    shown = grid.panels(["run-1"], np.arange(5.0)[None])
    assert shown["layers"] == ["–", 0, 1]
    assert shown["values"][0][0] == [[None, None, 4.0], [0.0, 1.0, None], [2.0, 3.0, None]]


# Methods and their form


def test_every_method_has_a_form_whose_defaults_change_nothing(studio):
    settings = studio.drafts.settings()
    for method in studio.fusion_methods():
        shown = fusion_method.form(method, settings, {})
        assert fusion_method.changes(method, settings, shown) == {}, method["name"]
        assert method["title"] in fusion_method.card(method) and method["summary"][:20] in text(
            fusion_method.card(method)
        )
        assert bool(method["badge"]) == ('class="badge"' in fusion_method.card(method))
        assert bool(method["note"]) == ('class="note"' in fusion_method.card(method))


def test_what_a_form_says_otherwise_becomes_changes_and_comes_back(studio):
    settings = studio.drafts.settings()
    method = fusion_method.method_of(studio.fusion_methods(), "task_arithmetic")
    shown = fusion_method.form(method, settings, {})
    shown["values"] |= {"method.options.coefficient": "0.25", "method.options.weights": "0.5, 1", "seed": "7"}
    changes = fusion_method.changes(method, settings, shown)
    assert changes == {"method.options.coefficient": 0.25, "method.options.weights": [0.5, 1.0], "seed": 7}
    again = fusion_method.form(method, settings, Choice.of({"changes": changes}).changes)
    assert again["values"]["method.options.weights"] == [0.5, 1.0]
    shown["values"]["method.options.coefficient"] = "much"
    with pytest.raises(ConfigurationError, match="not a number"):
        fusion_method.changes(method, settings, shown)
    said = fusion_making.settled(studio, "run-1,run-2", "task_arithmetic", "cosine", ALL, shown)
    assert "not a number" in said["wish"] and not said["fuse"]["interactive"]


def test_lists_of_numbers_are_read_from_text():
    field = forms.field({"name": "weights", "type": "numbers"})
    assert forms.value_of(field, "0.5, 1, 2e-1") == [0.5, 1.0, 0.2] and forms.value_of(field, "") == []
    with pytest.raises(ConfigurationError):
        forms.value_of(field, "0.5, half")


def test_another_method_takes_over_what_it_knows(studio):
    choice = Choice(runs=("run-1", "run-2"), changes={"method.options.coefficient": 0.2, "seed": 3})
    found = fusion_making.other_method(studio, choice, "average")
    assert found["form"]["values"]["seed"] == 3 and "coefficient" not in found["address"]
    assert "method.options.coefficient" not in found["form"]["values"]
    assert "no fusion method" in fusion_making.other_method(studio, choice, "alchemy")["card"]


def test_an_unknown_method_in_the_address_is_named_beside_the_list(studio):
    shown = fusion_making.view(studio, Choice(method="alchemy"))
    assert "alchemy" in shown["card"] and shown["method"] == studio.fusion_methods()[0]["name"]


def test_what_cannot_be_fused_is_refused_where_the_button_is(studio, home):
    form = fusion_making.view(studio, Choice(runs=(home.lora, home.molora)))["form"]
    told, run = fusion_making.fused(studio, [f"{home.lora},run-99", "task_arithmetic", "cosine", ALL, form], "token")
    assert 'role="alert"' in told and run == ""


def test_the_same_wish_from_the_same_page_is_one_request():
    one, other = Choice(runs=("run-1", "run-2")), Choice(runs=("run-1", "run-3"))
    assert fusion_method.request("t", one) == fusion_method.request("t", one) != fusion_method.request("t", other)
    assert fusion_method.request("t", one) != fusion_method.request("u", one)


# A fused run


def fusion(rows: list[tuple[Any, ...]], **more: Any) -> Fusion:
    run = {"id": "run-7", "name": "Fused", "method": "task_arithmetic", "state": "done"} | more
    sources = [{"name": "run-1", "run": {"id": "run-1", "name": "<b>" + "long " * 30}}, {"name": "run-2", "run": None}]
    method = {
        "name": "task_arithmetic",
        "title": "Task arithmetic",
        "badge": None,
        "note": "",
        "options": {"coefficient": 0.3},
    }
    return Fusion(run, sources, method, pd.DataFrame(rows, columns=list(COLUMNS)))


LOST = [
    ("mood", "accuracy", 0.4, 0.9, "run-1", 0.7, 0.02, 0.85, "run-4", -0.2, 0.03),
    ("topic", "accuracy", 0.3, 0.8, "run-2", 0.81, 0.02, 0.85, "run-4", 0.01, 0.03),
    ("mean", "", 0.35, 0.85, "", 0.755, 0.014, 0.85, "run-4", -0.095, 0.021),
]


def test_the_table_colours_what_was_lost_beyond_two_standard_errors():
    html = fusion_result.table(fusion(LOST))
    assert 'class="lost down">-0.200<' in html and 'class="lost ">+0.010<' in html
    assert "joint training" in html and '<a href="/runs?run=run-4">' in html and 'class="mean"' in html
    said = text(fusion_result.said(fusion(LOST)))
    assert said.startswith("The fused model scores 0.755 over 2 tasks, 0.095 ± 0.021 less than one expert a task")


def test_without_joint_training_that_is_said_and_the_column_is_gone():
    rows = [(*row[:7], None, "", *row[9:]) for row in LOST]
    html = fusion_result.table(fusion(rows))
    assert "joint training is not shown" in html and html.count("<th class") == 4


@pytest.mark.parametrize(("state", "told"), [("running", "when the fused model stands"), ("cancelled", "ended before")])
def test_a_run_without_scores_says_why(state, told):
    assert told in fusion_result.table(fusion([], state=state)) and fusion_result.said(fusion([])) == ""


def test_the_table_as_csv_has_unrounded_numbers_and_empty_cells():
    rows = [(*LOST[0][:7], None, "", -0.123456789, None)]
    found = list(csv.DictReader(fusion_result.plain(fusion(rows).table).splitlines()))
    assert found[0]["lost"] == "-0.123456789" and found[0]["joint"] == "" and found[0]["lost_stderr"] == ""


def test_sources_are_links_deleted_ones_are_named_and_long_names_are_short_and_harmless():
    about = fusion_result.about(fusion(LOST))
    assert "run-2 (deleted)" in about and "<b>long" not in about and "…" in about
    method = {"name": "ties", "options": {"density": 0.3}}
    spec = {"sources": ["run-1", "run-2"], "method": method, "seed": 0, "device": "cpu"}
    links = fusion_result.links({"id": "run-7", "state": "done", "method": "ties", "spec": spec}, fusion(LOST).sources)
    assert "/compare?runs=run-7,run-1&amp;baseline=run-7" in links and "/chat?runs=run-7,run-1" in links
    assert "/fusion?runs=run-1&amp;method=ties" in links and "/routing" not in links


def test_coefficients_of_projections_are_a_heatmap_and_few_ones_are_bars():
    frame = pd.DataFrame([["run-1", *[0.3] * 84], ["run-2", *[0.31] * 84]], columns=["run", *PATHS])
    assert fusion_watch.layered(frame)
    shown = fusion_watch.coefficients("run-7", 20, frame)
    assert shown["rows"] == ["run-1", "run-2"] and shown["low"] <= 0.3 and shown["top"] >= 0.31
    assert shown["top"] - shown["low"] < 0.1, "coefficients that lie close together can be told apart"
    minus = fusion_watch.coefficients("run-7", 20, frame.assign(**{PATHS[0]: -0.2}))
    assert minus["mid"] == 0 and minus["top"] >= 0.31
    few = pd.DataFrame({"run": ["run-1", "<i>"], "all": [0.5, 0.25]})
    assert not fusion_watch.layered(few)
    assert "width:50.0%" in fusion_watch.few_coefficients(few) and "<i>run" not in fusion_watch.few_coefficients(few)


def test_mask_density_has_two_panels_from_0_to_1():
    frame = pd.DataFrame({"path": PATHS, "mean": 0.4, "above_half": 0.3})
    shown = fusion_watch.mask("run-7", 10, frame)
    assert len(shown["rows"]) == 2 and (shown["low"], shown["top"]) == (0.0, 1.0)
    assert shown["values"][1][0][0][0] == 0.3


def test_what_saving_lost_is_said_with_the_worst_projection():
    exact = pd.DataFrame({"path": PATHS[:2], "rank": [8, 8], "relative_error": [0.0, 1e-8]})
    assert "Saved exactly, as rank 8" in fusion_watch.saved(exact) and fusion_watch.form_error("run-7", exact) is None
    lossy = exact.assign(relative_error=[0.01, 0.25])
    assert "at most 25.00%" in fusion_watch.saved(lossy) and PATHS[1] in fusion_watch.saved(lossy)
    assert fusion_watch.form_error("run-7", lossy)["top"] == 0.25
    assert "whole matrices" in fusion_watch.saved(exact.assign(rank=None))


def test_a_trained_run_is_no_fused_run_and_the_way_on_is_shown(studio, home):
    fresh, seen = fusion_look.look(studio, Choice(run=home.lora), "", {})
    assert "was trained, not fused" in fresh["head"] and "/fusion" in fresh["links"]
    missing, _ = fusion_look.look(studio, Choice(run="run-99"), "", seen)
    assert "run-99" in missing["head"]


# The sweep


def sweep() -> pd.DataFrame:
    rows = []
    for arm, height in (("none", 0.5), ("error_protected", 0.7)):
        for draw in range(3):
            for task in ("mood", "topic"):
                rows.append((arm, "ideal", None, draw, task, height + 0.2, 1.0, 0.0, 0.0, 1.0))
                for attack in ("awgn", "worst_sum"):
                    for snr in (-5.0, 0.0, 20.0):
                        score = height + snr / 100 + 0.01 * draw - (0.1 if attack == "worst_sum" else 0)
                        rows.append((arm, attack, snr, draw, task, score, 0.9, 0.3, 0.1, 0.5))
    names = "protection attack snr seed task score normalised disentanglement_error relative_mse resilience"
    return pd.DataFrame(rows, columns=names.split())


def test_the_sweep_draws_a_line_and_a_band_for_each_arm_under_the_chosen_attack():
    score, error = fusion_sweep.pictures("run-7", sweep(), "worst_sum")
    assert score["html"].count('class="arm"') == 2 and score["html"].count('class="band"') == 2
    assert "error_protected, 20 dB: 0.810 ± 0.010" in score["html"] and "ideal channel: 0.900" in score["html"]
    assert "one standard deviation over 3 seeds" in score["html"] and error["name"].endswith("worst_sum")
    assert fusion_sweep.chosen(sweep(), "no such") == "awgn"
    assert [name for _, name in fusion_sweep.choices(sweep())] == ["awgn", "worst_sum"]


def test_a_sweep_of_one_seed_has_no_band_and_one_without_errors_says_so():
    frame = sweep()[lambda f: f["seed"] == 0].assign(disentanglement_error=np.nan)
    score, error = fusion_sweep.pictures("run-7", frame, "")
    assert 'class="band"' not in score["html"] and "one seed: no band" in score["html"]
    assert "No weight disentanglement error was measured" in error["html"]


def test_curves_of_a_fused_run_are_offered_where_it_has_them():
    known = ["loss", "entropy/mood", "coefficient/run-1", "mask_density"]
    assert [name for _, name in fusion_watch.choices(run_curves.LEARNT, known)] == ["entropy", "loss"]
    assert [name for _, name in fusion_watch.choices(run_curves.COMBINED, known)] == ["coefficient", "mask"]
    assert fusion_watch.choices(run_curves.LEARNT, []) == [("Entropy by task", "entropy")]
    run = {"id": "run-7", "state": "done", "jobs": [{"kind": "fuse", "total": 5, "state": "done"}]}
    watch = SimpleNamespace(run_curves=lambda run, names, points: {name: [[0, 1.0]] for name in names})
    shown = fusion_watch.curves(SimpleNamespace(watch=watch), run, run_curves.LEARNT, "entropy", known)
    assert shown["series"] == [{"name": "mood", "points": [[0, 1.0]]}] and shown["xmax"] == 0
