"""The Routing page: what its handlers make of a run's routing, of addresses, and of what a browser sends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest

from app.pages import routing, routing_asked, routing_cell, routing_export, routing_tokens, routing_views
from app.pages import routing_token_views as token_views
from app.pages.routing_choice import Cell, Choice, settle, shown_projection
from core.chat.trace import Trace
from core.figures import DEFINITIONS
from core.routing.atlas import Atlas, Moment
from core.routing.snapshot import RoutingSnapshot, SiteInfo
from tests.support import seed


@pytest.fixture(scope="module")
def seeded(tmp_path_factory) -> seed.Seeded:
    return seed.few(tmp_path_factory.mktemp("routing") / "home")


@pytest.fixture
def studio(seeded):
    made = seed.QuietStudio(seeded.home)
    yield made
    made.close()


def test_an_empty_studio_says_what_to_do_next(tmp_path: Path):
    studio = seed.QuietStudio(tmp_path / "home")
    assert "/experiment" in routing.view(studio, Choice())["told"]
    studio.close()


def test_the_newest_run_with_routing_is_shown_where_none_is_named(studio, seeded):
    shown = routing.view(studio, Choice())
    assert shown["run"]["value"] == seeded.running
    assert shown["left"]["rows"] == list(seed.TASKS)
    assert shown["left"]["cols"] == list(seed.PROJECTIONS)
    assert "told" in shown and shown["body"]["visible"]


def test_an_address_leads_to_the_same_view_again(studio, seeded):
    cell = Cell("mood", "v_proj", 5, 2)
    asked = Choice(seeded.molora, "step-40", "top1_share", "prompt", "v_proj", "moment:end", cell)
    address = routing.view(studio, asked)["address"]
    assert Choice.from_query(dict(parse_qsl(address))) == asked


def test_what_an_address_names_wrongly_gives_way_to_what_is_there(studio, seeded):
    wrong = Choice(seeded.molora, "step-7", "<b>", "nobody", "w_proj", "task:nothing", Cell("no", "no", 99, 99))
    settled = settle(studio, wrong)
    assert (settled.moment, settled.figure, settled.role) == ("end", "mean_gate", "answer")
    assert (settled.projection, settled.beside) == ("all", "")
    shown = routing.view(studio, wrong)
    assert shown["left"]["picked"] is None and "No such cell" in shown["cell"]
    assert "problem" in routing.view(studio, Choice("run-999"))["told"]


def test_runs_without_routing_say_why(studio, seeded):
    assert "no gates" in routing.view(studio, Choice(seeded.lora))["told"]
    waits = seed.queued(studio, seeded.dataset, method="molora", seed=5)
    assert "appears here by itself" in routing.view(studio, Choice(waits))["told"]
    assert not routing.view(studio, Choice(seeded.lora))["body"]["visible"]


def test_the_scale_is_the_same_at_every_moment(studio, seeded):
    for figure in DEFINITIONS.figures:
        choices = [Choice(seeded.molora, moment, figure.name) for moment in ("step-40", "step-80", "end")]
        shown = [routing.view(studio, choice)["left"] for choice in choices]
        assert len({value["top"] for value in shown}) == 1
        assert shown[0]["values"] != shown[-1]["values"]


def test_figures_of_a_whole_layer_stand_projection_by_projection(studio, seeded):
    shown = routing.view(studio, Choice(seeded.molora, figure="load_cv", projection="v_proj"))["left"]
    assert shown["cols"] == [""] and shown["across"] == ["q", "v", "up"] and shown["acrossName"] == "projection"
    atlas = studio.routing_atlas(seeded.molora)
    assert shown["values"][1][0][3][1] == pytest.approx(float(atlas.moments[-1].snapshot.load_cv[1, 1, 10]), abs=1e-4)


def test_a_difference_is_this_moment_less_the_other(studio, seeded):
    now = routing.view(studio, Choice(seeded.molora))["left"]
    before = routing.view(studio, Choice(seeded.molora, "step-40"))["left"]
    shown = routing.view(studio, Choice(seeded.molora, beside="moment:step-40"))["left"]
    expected = np.array(now["values"]) - np.array(before["values"])
    assert np.array(shown["values"]) == pytest.approx(expected, abs=2e-4)
    assert shown["mid"] == 0
    less_task = np.array(routing.view(studio, Choice(seeded.molora, beside="task:mood"))["left"]["values"])
    assert not less_task[1].any() and less_task[0].any()


def test_two_runs_stand_side_by_side_on_one_scale(studio, seeded):
    shown = routing.view(studio, Choice(seeded.molora, beside=f"run:{seeded.mosld[0]}"))
    assert shown["right_column"]["visible"] and shown["left"]["top"] == shown["right"]["top"]
    assert routing.view(studio, Choice(seeded.molora, beside="run:run-999"))["right"] is None
    assert routing.view(studio, Choice(seeded.molora, beside=f"run:{seeded.lora}"))["right"] is None


def test_a_click_names_its_cell_and_nonsense_names_none(studio, seeded):
    choice = Choice(seeded.molora, projection="v_proj")
    found = routing.cell_clicked(studio, choice, {"row": 1, "col": 0, "layer": 5, "expert": 2, "value": 0.1})
    assert found == Cell("mood", "v_proj", 5, 2)
    shown = routing.view(studio, replace(choice, cell=found))
    assert shown["left"]["picked"] == "1,0,5,2" and shown["chosen"] == "mood|v_proj|5|2"
    assert "layer 5 · expert 2" in shown["cell"] and "task by task" in shown["cell"]
    for wrong in ({}, {"row": 9, "col": 0, "layer": 0, "expert": 0}, {"row": "x"}, {"row": -1, "col": 0, "layer": 0}):
        assert routing.cell_clicked(studio, choice, wrong) is None
    assert routing.place_clicked(studio, choice, {"expert": 1}) == "all"
    assert routing.place_clicked(studio, choice, {"expert": 99}) == "v_proj"


@pytest.mark.parametrize("expert", [2, 0, None])
def test_cells_name_tasks_that_hold_the_separator(expert):
    cell = Cell("a|b", "q_proj", -1, expert)
    assert Cell.parse(str(cell)) == cell
    assert Choice.from_query(dict(parse_qsl(Choice("run-1", cell=cell).query()))).cell == cell


@pytest.mark.parametrize("text", ["", "a|b|c", "a|b|x|2", "a|b|--1|2", "a|b|1|²", "a|b|1|-1", "a|b|1|one"])
def test_what_names_no_cell_is_none(text):
    assert Cell.parse(text) is None


def test_experts_are_numbered_from_0_and_the_first_is_not_nobody(studio, seeded):
    choice = Choice(seeded.molora, projection="v_proj")
    first = routing.cell_clicked(studio, choice, {"row": 0, "col": 0, "layer": 0, "expert": 0})
    shown = routing.view(studio, replace(choice, cell=first))
    assert "layer=0&expert=0" in shown["address"] and shown["left"]["picked"] == "0,0,0,0"
    assert "layer 0 · expert 0" in shown["cell"] and "Expert 0, task by task" in shown["cell"]
    whole = replace(choice, figure="entropy")
    place = routing.cell_clicked(studio, whole, {"row": 0, "col": 0, "layer": 0, "expert": 1})
    shown = routing.view(studio, replace(whole, cell=place))
    assert "expert=" not in shown["address"] and "task by task" not in shown["cell"]


def test_findings_are_computed_from_the_distances(studio, seeded):
    choice = settle(studio, Choice(seeded.molora))
    atlas = studio.routing_atlas(seeded.molora)
    found = atlas.distances("end", "answer")
    layer, projection = found.most_specific
    text = routing_cell.findings(atlas, choice)
    assert f"Most task-specific: layer {layer}, {projection}" in text
    assert f"{np.nanmax(found.by_site):.3f}" in text
    assert np.allclose(found.between, found.between.T) and not found.between.diagonal().any()


def test_names_from_data_are_escaped(studio, seeded):
    atlas = studio.routing_atlas(seeded.molora)
    evil = "<img src=x onerror=alert(1)>"
    for moment in atlas.moments:
        moment.snapshot.tasks[0], kept = evil, moment.snapshot.tasks[0]
    try:
        choice = Choice(seeded.molora, "end", cell=Cell(evil, "v_proj", 3, 1))
        texts = [routing_cell.findings(atlas, choice), routing_cell.cell_view(atlas, choice, DEFINITIONS.figures[0])]
        assert all("<img" not in text for text in texts) and "&lt;img" in texts[1]
    finally:
        for moment in atlas.moments:
            moment.snapshot.tasks[0] = kept


def test_a_new_moment_of_a_working_run_reaches_the_page(studio, seeded):
    stops = routing.view(studio, Choice(seeded.running))["moment"]
    assert routing.newer(studio, seeded.running, stops) == {}
    fewer = {"stops": [], "at": 0}
    assert routing.newer(studio, seeded.running, fewer)["moment"] == stops
    assert routing.newer(studio, "run-999", stops) == {}


@pytest.mark.parametrize("kind", routing_export.KINDS)
def test_files_hold_what_is_shown(studio, seeded, kind):
    choice = Choice(seeded.molora, figure="relative_gate", projection="v_proj")
    path, problem = routing_export.write(studio, choice, kind)
    head = {"PDF": b"%PDF", "PNG": b"\x89PNG", "Plotly page": b"<!DOCTYPE", "CSV": b"role,"}[kind]
    assert problem == "" and Path(path).read_bytes()[: len(head)].lower() == head.lower()
    assert "run-999" in routing_export.write(studio, replace(choice, run="run-999"), kind)[1]


@pytest.fixture
def trace() -> Trace:
    """Two layers, two projections, 2 experts below and 3 above; the answer is the last token."""
    sites = [
        SiteInfo(f"layers.{layer}.{name}", layer, name, experts, experts, "token", "token")
        for layer, experts in ((0, 2), (1, 3))
        for name in ("v_proj", "q_proj")
    ]
    weights = np.full((4, 3, 3), np.nan, np.float32)
    for index, site in enumerate(sites):
        line = np.linspace(1, site.experts + index, site.experts)
        weights[index, :, : site.experts] = line / line.sum()
    return Trace("run-1", ["<|user|>", " a\n", "b"], ["prompt", "prompt", "answer"], sites, weights, "t", ["t"])


def test_a_text_is_tinted_by_the_gates_of_one_layer(trace):
    shown = token_views.strip(trace, 1, "q_proj", 1)
    assert [len(token["g"]) for token in shown["tokens"]] == [3, 3, 3]
    assert shown["tokens"][0]["special"] and shown["tokens"][2]["role"] == "answer"
    assert sum(shown["tokens"][0]["g"]) == pytest.approx(1, abs=1e-3) and shown["picked"] == 1
    average = token_views.gates(trace, token_views.AVERAGE)[0, 0, :2]
    assert average == pytest.approx(trace.weights[:2, 0, :2].mean(0))


def test_the_route_of_a_token_leaves_out_experts_that_a_layer_lacks(trace):
    shown = token_views.route(trace, 2)
    assert shown["cols"] == ["q_proj", "v_proj"] and shown["values"][0][0][0][2] is None
    ribbon = token_views.ribbon(trace, 1, "v_proj", 2)
    assert ribbon["best"][0][0][0] == 1 and ribbon["best"][1][0][0] == 2 and ribbon["layer"] == 1
    assert ribbon["experts"] == 3 and ribbon["caption"].startswith("run-1, v_proj")


def test_the_inspector_reads_its_address_and_its_form(studio, seeded):
    asked = routing_asked.Asked("Is it?", answer="made", acts="mood", at="3", on="v_proj", token="2")
    assert routing_asked.Asked.from_query(dict(parse_qsl(asked.query()))) == asked
    assert routing_asked.Asked("x" * 5000).query() == ""
    row = routing_asked.from_row(studio, seeded.molora, "mood", 3)
    assert row.text.startswith("Name the mood.") and row.said in ("good", "bad") and row.answer == "true"
    form = (studio, seeded.molora, "mood", 3, row.text)
    assert routing_asked.asked_of(*form, "true", "").said == row.said
    assert routing_asked.asked_of(*form, "made", "").answer == "made"
    typed = routing_asked.asked_of(studio, seeded.molora, "mood", 3, "Something else", "true", "")
    assert typed.answer == "none" and typed.row == "" and typed.acts == "mood"
    missing = routing_asked.from_row(studio, seeded.molora, "mood", 10_000)
    assert "no test row" in str(missing)


def test_rows_are_paged_and_begin_again(studio, seeded):
    first = routing_tokens.rows(studio, seeded.molora, "mood", 0)
    assert len(first["choices"]) == routing_tokens.ROWS
    beyond = routing_tokens.rows(studio, seeded.molora, "mood", 100_000)
    assert beyond["choices"] == first["choices"]
    assert routing_tokens.rows(studio, "", "", 0)["choices"] == []


def test_an_inspector_that_cannot_look_says_so(studio, seeded):
    shown = routing_tokens.view(studio, seeded.queued[0], routing_asked.Asked("Hello"))
    assert "problem" in shown["told"] and not shown["found"]["visible"]
    assert routing_tokens.view(studio, seeded.molora, routing_asked.Asked())["told"] == routing_tokens.HINT
    assert "problem" in routing_tokens.start(studio, "run-999", routing_asked.Asked())["told"]
    assert "problem" in routing_tokens.start(studio, seeded.molora, routing_asked.Asked(turn="77"))["told"]


def atlas_of(ranks: bool = False, blocks: int = 2, **kind: bool) -> Atlas:
    """Two tasks, two layers, three experts; with ``ranks``, decisions for ``blocks`` in each of two projections."""
    parts = [f"rank {2 * n}-{2 * n + 1}" for n in range(blocks)] if ranks else [""]
    sites = [
        SiteInfo(f"{layer}.{name}", layer, name, 3, 3, "rank", "token", part, **kind)
        for layer in (0, 1)
        for name in ("q_proj", "k_proj")
        for part in parts
    ]
    chance = np.random.default_rng(0)
    sums = []
    for _ in sites:
        gates = chance.dirichlet(np.ones(3), size=(2, 2))
        weights = gates * (8 if kind else 1) - (3 if kind.get("signed") else 0)
        entropy, count = np.full((2, 2, 1), 0.5), np.ones((2, 2, 1))
        sums.append(100 * np.concatenate([weights, np.ones_like(gates), gates, entropy, count], -1))
    snapshot = RoutingSnapshot.from_sums(["a", "b"], sites, sums)
    return Atlas("run-1", [Moment("end", 10, "validation", snapshot)])


def test_blocks_of_ranks_can_be_looked_at_alone_and_together():
    atlas = atlas_of(ranks=True)
    names = ["q_proj rank 0-1", "q_proj rank 2-3", "k_proj rank 0-1", "k_proj rank 2-3"]
    listed = routing_views.listed(atlas)
    assert listed[1:3] == [("q_proj, all parts", "q_proj"), ("k_proj, all parts", "k_proj")]
    assert [value for _, value in listed[3:]] == names
    gate, entropy = DEFINITIONS.of("mean_gate"), DEFINITIONS.of("entropy")
    every = routing_views.heat(atlas, Choice("run-1", "end"), gate)
    assert every["cols"] == names and every["even"] == pytest.approx(1 / 3)
    whole = routing_views.heat(atlas, Choice("run-1", "end", projection="q_proj"), gate)
    assert whole["cols"] == names[:2]
    alone = routing_views.heat(atlas, Choice("run-1", "end", projection=names[1]), gate)
    assert alone["cols"] == names[1:2] and np.array(alone["values"])[:, 0].tolist() == [
        panels[1] for panels in every["values"]
    ]
    assert routing_views.heat(atlas, Choice("run-1", "end"), entropy)["across"] == ["q 0-1", "q 2-3", "k 0-1", "k 2-3"]
    cell = routing_views.cell_at(routing_views.grid_of(atlas, Choice("run-1", "end"), gate), gate,
                                 {"row": 1, "col": 1, "layer": 0, "expert": 2})  # fmt: skip
    assert cell == Cell("b", names[1], 0, 2) == Cell.parse(str(cell))
    assert names[1] in routing_cell.cell_view(atlas, Choice("run-1", "end", cell=cell), gate)
    places = routing_views.places(atlas, Choice("run-1", "end", projection=names[1]))
    assert places["across"][1] == "q 2-3" and places["picked"].endswith(",1")
    assert routing_views.similarity(atlas, Choice("run-1", "end", projection="q_proj"))["caption"].endswith("q_proj")


@pytest.mark.parametrize(("blocks", "shown"), [(2, "all"), (20, "q_proj"), (40, "q_proj rank 0-1")])
def test_more_columns_than_a_page_has_room_for_are_not_shown_at_once(blocks: int, shown: str):
    atlas = atlas_of(ranks=True, blocks=blocks)
    assert shown_projection(atlas, "all") == shown_projection(atlas, "w_proj") == shown
    assert shown_projection(atlas, "k_proj rank 2-3") == "k_proj rank 2-3"
    assert (routing_views.listed(atlas)[0][1] == "all") == (shown == "all")
    beside = routing_views.beside(atlas_of(), atlas, Choice("run-2", "end"), DEFINITIONS.of("mean_gate"))
    assert len(beside["cols"]) <= 28


def test_weights_that_are_no_shares_say_so():
    atlas, choice = atlas_of(sums_to_one=False), Choice("run-1", "end", cell=Cell("a", "q_proj", 1, 0))
    shown = routing_views.heat(atlas, choice, DEFINITIONS.of("mean_gate"))
    assert "even" not in shown and "do not sum to 1" in shown["caption"] and shown["mid"] is None
    relative = routing_views.heat(atlas, choice, DEFINITIONS.of("relative_gate"))
    assert np.array(relative["values"], float).sum(-1) == pytest.approx(3, abs=1e-3)
    top = routing_views.heat(atlas, choice, DEFINITIONS.of("top1_share"))
    assert top["even"] == pytest.approx(1 / 3) and "do not sum" not in top["caption"]
    text = routing_cell.cell_view(atlas, choice, DEFINITIONS.of("mean_gate"))
    assert "do not sum to 1" in text and "an even share" not in text
    assert "an even share" in routing_cell.cell_view(atlas, choice, DEFINITIONS.of("relative_gate"))


def test_negative_weights_stand_on_the_other_side_of_zero():
    atlas, choice = atlas_of(sums_to_one=False, signed=True), Choice("run-1", "end", cell=Cell("a", "q_proj", 1, 0))
    shown = routing_views.heat(atlas, choice, DEFINITIONS.of("mean_gate"))
    assert shown["mid"] == 0 and np.array(shown["values"]).min() < 0
    assert shown["top"] >= np.abs(shown["values"]).max()
    relative = routing_views.heat(atlas, choice, DEFINITIONS.of("relative_gate"))
    assert all(value is None for value in np.array(relative["values"]).flat)
    bars = routing_cell.cell_view(atlas, choice, DEFINITIONS.of("mean_gate"))
    assert "var(--diverge-3)" in bars and "width:-" not in bars
    assert routing_views.similarity(atlas, choice)["figure"].startswith("Distance of mean gates")
    assert "opposite" in routing_cell.over(atlas, choice) and "hardly speak" not in routing_cell.findings(atlas, choice)


def test_a_text_is_tinted_from_the_average_where_weights_are_no_shares(trace):
    even = token_views.strip(trace, 1, "q_proj", 1)
    assert even["even"] == pytest.approx(1 / 3) and "an even share" in even["note"]
    trace.sites[:] = [replace(site, sums_to_one=False, signed=True) for site in trace.sites]
    trace.weights[:] = 4 * trace.weights - 1
    shown = token_views.strip(trace, 1, "q_proj", 1)
    assert shown["even"] == pytest.approx(1 / 3) and "the average weight" in shown["note"]
    route = token_views.route(trace, 2)
    assert route["mid"] == 0 and "no share" in route["figure"]
    assert token_views.ribbon(trace, 1, "v_proj", 2)["best"][1][0][0] == 2


def test_scale_ends_read_well():
    assert routing_views._round_up(0.4312) == 0.44
    assert routing_views._round_up(0.96) == 0.96 and routing_views._round_up(0) == 0
