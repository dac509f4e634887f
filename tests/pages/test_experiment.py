"""The Experiment page without a browser: forms and settings, grid and cells, drafts, YAML, start."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import gradio as gr
import pytest
import yaml

from app.pages import experiment_budget as budget
from app.pages import experiment_form as form
from app.pages import experiment_grid as grids
from app.pages import experiment_state as state
from app.pages import experiment_views as views
from app.pages.experiment_words import option_keys
from app.ui.diagram import Mixture, describe, diagram
from core.adapters.methods import presets
from core.errors import ConfigurationError
from core.home import ASSETS
from core.schema import MethodSpec, ModelSpec, RunSpec, TrainSpec
from core.studio import Studio
from tests.support import seed
from tests.support.seed import QuietStudio

PRESETS = ("lora", "mosld", "molora", "hydralora")
NO_QUERY: dict[str, str] = {}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    made = QuietStudio(tmp_path_factory.mktemp("experiment") / "home")
    made.upload(ASSETS / "demo", name="demo")
    yield made
    made.close()


@pytest.fixture
def desk(studio: Studio) -> state.Desk:
    return state.Desk(studio)


def size(studio: Studio, method: MethodSpec, tasks: int = 4) -> Any:
    return studio.drafts.size(method, ModelSpec(), TrainSpec(), tasks=tasks)


def values(desk: state.Desk, outputs: list[Any]) -> state.Values:
    """What the browser would hold after a handler filled the whole page."""
    plain = [o["value"] if isinstance(o, dict) and "__type__" in o else o for o in outputs]
    return state.Values(*json.loads(json.dumps(plain[: len(state.PARTS)])), plain[-1])


def opened(desk: state.Desk, **query: str) -> state.Values:
    return values(desk, desk.open(None, query))


def after(given: state.Values, outputs: list[Any]) -> state.Values:
    """The page after a handler answered with some of its parts."""
    changed = {}
    for name, out in zip(state.PARTS, outputs, strict=False):
        if isinstance(out, dict) and out.get("__type__") == "update":
            changed |= {name: out["value"]} if "value" in out else {}
        else:
            changed[name] = out
    return given._replace(**changed)


def edit(given: state.Values, part: str, **changes: Any) -> state.Values:
    before = getattr(given, part)
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return given._replace(**{part: {**before, "values": {**before["values"], **named}}})


def paint(given: state.Values, words: dict[str, str] | None, *cells: str) -> state.Values:
    return given._replace(grid={**given.grid, "cells": {**given.grid["cells"], **dict.fromkeys(cells, words)}})


# grid and cells


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(
    "options", [{}, {"modules": "all-linear", "rank": 4}, {"layers": ["2-5"], "modules": ["down_proj"]}]
)
def test_every_preset_survives_the_grid(studio: Studio, name: str, options: dict[str, Any]):
    words, first = studio.drafts.words(), size(studio, MethodSpec(name=name, options=options))
    blocks = grids.blocks_needed(first)
    grid = grids.grid_of(first, words, blocks)
    cells = grids.cells_of(grids.checked(grid, first, words), grids.controls_of(first, words), first, words, blocks)
    second = size(studio, MethodSpec(name="split", cells=cells))
    assert len(cells) == 1 and grids.same(first, second) and first.trainable == second.trainable


def test_an_embedding_is_counted_and_drawn_nowhere_and_a_split_says_so(desk: state.Desk):
    page = opened(desk, method="full", options=json.dumps({"embeddings": True}))
    data, _ = desk.collect(page)
    found, without = desk.sized(data), desk.sized({**data, "method": {"name": "full"}})
    assert found.outside == found.trainable - without.trainable == 8192 * 256 and without.outside == 0
    assert found.places == without.places and found.lora == without.lora
    figure, said, text, *_ = desk.view(data, [0], {}, 1)
    assert f"{found.trainable:,}" in figure["html"] and "token-embedding" in figure["html"]
    assert "embeddings: true" in text and "problem" not in said
    page = after(page._replace(method="split"), desk.method_changed(*page._replace(method="split")))
    assert "outside the layers" in page.card
    assert desk.sized(desk.collect(page)[0]).trainable == without.trainable


@pytest.mark.parametrize("name", [name for name in presets() if name != "split"])
def test_every_method_becomes_a_split_of_the_same_size(desk: state.Desk, name: str):
    page = opened(desk)._replace(method=name)
    page = after(page, desk.method_changed(*page))
    before = desk.sized(desk.collect(page)[0]).trainable
    page = page._replace(method="split")
    page = after(page, desk.method_changed(*page))
    assert "begins with the cells of" in page.card
    after_it = desk.sized(desk.collect(page)[0]).trainable
    assert after_it == before or (after_it < before and "stays behind" in page.card)


def test_painted_cells_come_back_from_the_cells_that_they_become(studio: Studio):
    words, bare = studio.drafts.words(), size(studio, MethodSpec(name="base"))
    some = [("shared", "token", "unique"), ("unique", "none", "unique"), ("unique", "task", "shared"), None]
    painted = {
        (row, col): grids.painted(kind)
        for i, row in enumerate(bare.projections)
        for col in range(4)
        if (kind := some[(i * 3 + col * 5 + i * col) % 4])
    }
    cells = grids.cells_of(painted, {"experts": [2, 4, 6, 8], "rank": 4}, bare, words, 4)
    found = size(studio, MethodSpec(name="split", cells=cells))
    assert grids.checked(grids.grid_of(found, words, 4), found, words) == painted
    assert {p.experts for p in found.places if p.words and p.layer in (6, 7)} == {8}


def test_one_exception_needs_two_patterns(studio: Studio):
    words, bare = studio.drafts.words(), size(studio, MethodSpec(name="base"))
    painted = {(row, col): grids.painted(("shared", "token", "unique")) for row in bare.projections for col in range(4)}
    painted["v_proj", 2] = grids.painted(("unique", "none", "unique"))
    cells = grids.cells_of(painted, {"experts": 2}, bare, words, 4)
    assert [cell["modules"] for cell in cells] == [["v_proj"], "all-linear"] and cells[0]["layers"] == ["4-5"]


def test_a_grid_of_another_base_is_refused(studio: Studio):
    words, bare = studio.drafts.words(), size(studio, MethodSpec(name="base"))
    grid = grids.grid_of(bare, words, 2)
    assert grids.checked({**grid, "rows": ["c_attn"]}, bare, words) is None
    assert (
        grids.checked({**grid, "cells": {"q_proj|0": {"down": "<b>", "gate": "none", "up": "unique"}}}, bare, words)
        is None
    )
    assert grids.checked("nonsense", bare, words) is None
    moved = grids.moved({"cells": {"c_attn|0": {"down": "shared", "gate": "token", "up": "unique"}}}, bare, words, 2)
    assert set(map(str, moved["cells"].values())) == {"{'down': 'shared', 'gate': 'token', 'up': 'unique'}"}


@pytest.mark.parametrize(
    ("values", "short"), [([8, 8, 8], 8), ([2, 2, 4, 4], [2, 4]), ([2, 4, 4], [2, 4, 4]), ([1, 1, 2], [1, 2])]
)
def test_experts_are_said_as_shortly_as_they_can_be(values: list[int], short: Any):
    assert grids.shortest(values) == short


def test_layers_are_said_as_ranges():
    assert grids.ranges([0, 1, 2, 5, 7, 8]) == ["0-2", 5, "7-8"]


UNIQUE = {"down": "unique", "gate": "sequence", "up": "unique"}


def test_frozen_cells_hold_projections_back_from_wider_ones(desk: state.Desk):
    page = edit(opened(desk), "options", option__modules="all-linear")
    page = after(page, desk.options_changed(*page))
    page = page._replace(blocks=4)
    page = after(page, desk.blocks_changed(*page))
    page = paint(page, {"frozen": True}, "o_proj|3", "k_proj|3")
    page = after(page, desk.painted(*page))
    first, rest = desk.collect(page)[0]["method"]["cells"]
    assert first == {"modules": ["k_proj", "o_proj"], "layers": ["6-7"], "frozen": True}
    assert rest["modules"] == "all-linear" and rest["experts"] == [2, 4, 6, 8]
    assert "frozen</span> in 4 of 56 places" in desk.show(*page)[0]["html"]
    data = {"tasks": [{"dataset": "demo"}], "method": {"name": "split", "cells": [first, rest]}}
    again = values(desk, desk.fill(data, [0], NO_QUERY))
    assert again.grid["cells"]["o_proj|3"] == {"frozen": True} and again.grid["cells"]["o_proj|2"]["down"] == "shared"


def test_one_cell_has_settings_of_its_own(desk: state.Desk):
    page = opened(desk)
    page = page._replace(grid={**page.grid, "picked": "q_proj|3"})
    page = after(page, desk.picked(*page))
    assert page.method == "split" and page.options["cell"] == "q_proj|3"
    assert page.options["groups"][0]["title"] == "Only q_proj, layers 6–7"
    assert page.options["values"]["split.experts"] == 8, "what the whole split says at these layers"
    page = edit(page, "options", split__rank="16", split__gate__top_k="1", split__experts="8")
    page = after(page, desk.options_changed(*page))
    assert page.grid["cells"]["q_proj|3"]["own"] == {"rank": 16, "gate.top_k": 1}
    own = next(cell for cell in desk.collect(page)[0]["method"]["cells"] if cell["rank"] == 16)
    assert own["modules"] == ["q_proj"] and own["layers"] == ["6-7"] and own["gate"]["top_k"] == 1
    page = page._replace(grid={**page.grid, "picked": None})
    page = after(page, desk.picked(*page))
    assert "cell" not in page.options and page.options["values"]["split.rank"] == 8
    assert page.grid["cells"]["q_proj|3"]["own"]["rank"] == 16, "it stays when the form turns back"
    page = paint(page, {**UNIQUE, "own": {"rank": 16}}, "q_proj|3")
    page = after(page, desk.painted(*page))
    assert sorted({cell["rank"] for cell in desk.collect(page)[0]["method"]["cells"]}) == [8, 16]


def test_cells_with_settings_of_their_own_come_back_into_the_grid(studio: Studio):
    words = studio.drafts.words()
    cells = [
        {"modules": ["q_proj"], "layers": ["0-3"], "rank": 4, "experts": 3, "gate": {"word": "token", "top_k": 1}},
        {"modules": ["v_proj"], "rank": 16, "experts": 2, "alpha": 4.0, "gate": "task"},
        {"modules": ["o_proj"], "frozen": True},
        {"modules": "all-linear", "experts": 4, "down": "subspace", "gate": {"word": "token", "top_k": 2}},
    ]
    first = size(studio, MethodSpec(name="split", cells=cells))
    blocks = grids.blocks_needed(first)
    found = grids.checked(grids.grid_of(first, words, blocks), first, words)
    again = grids.cells_of(found, grids.controls_of(first, words), first, words, blocks)
    assert grids.same(first, size(studio, MethodSpec(name="split", cells=again)))


def test_every_word_with_its_options_is_offered(desk: state.Desk, studio: Studio):
    offered = {field["name"] for group in form.split_groups(desk.settings, desk.words) for field in group["fields"]}
    for part, known in studio.drafts.words().items():
        assert opened(desk).grid["words"][part] == [word["name"] for word in known]
        for word in known:
            keys = option_keys(desk.words, part, word["name"])
            assert set(keys) == {option["name"] for option in word["options"]}
            assert {f"split.{key}" for key in keys.values()} <= offered


def test_a_painted_word_brings_its_options_into_the_form(desk: state.Desk):
    page = paint(opened(desk), {"down": "subspace", "gate": "token", "up": "unique"}, "v_proj|0")
    page = after(page, desk.painted(*page))
    names = {field["name"] for group in page.options["groups"] for field in group["fields"]}
    assert "split.down.share" in names and "split.gate.top_k" in names
    assert not any(name.endswith("expert_rank") for name in names), "of words that are not in use"
    page = edit(page, "options", split__down__share="0.25")
    page = after(page, desk.options_changed(*page))
    cell = next(cell for cell in desk.collect(page)[0]["method"]["cells"] if cell["modules"] == ["v_proj"])
    assert cell["down"]["share"] == 0.25


def test_what_is_wrong_is_marked_at_its_cells(desk: state.Desk):
    page = paint(opened(desk), {"down": "pool", "gate": "token", "up": "unique"}, "v_proj|0", "v_proj|2")
    outputs = desk.painted(*page)
    marks = outputs[len(state.PARTS) + 3]
    assert set(marks["cells"]) == {"v_proj|0", "v_proj|2"} and len(marks["said"]) == 1
    assert "pool" in marks["cells"]["v_proj|0"] and marks["said"][0]["message"].startswith("Cell 1")
    page = after(page, outputs)
    assert 'class="problem"' in desk.start(*page, "token") and desk.studio.runs() == []
    page = paint(page, UNIQUE, "v_proj|0", "v_proj|2")
    page = after(page, desk.painted(*page))
    assert desk.show(*page)[3] == {} and "Start queues" in desk.show(*page)[1]


def test_a_draft_with_a_wrong_cell_comes_back_as_it_was(desk: state.Desk):
    page = paint(opened(desk), {"down": "pool", "gate": "token", "up": "unique"}, "v_proj|2")
    page = after(page, desk.painted(*page))
    figure, said, _, marks, draft = desk.show(*page)
    assert "without the marked cells" in figure["html"] and 'class="mixture"' in figure["html"]
    again = values(desk, desk.open(json.loads(json.dumps(draft)), NO_QUERY))
    assert again.grid["cells"]["v_proj|2"]["down"] == "pool" and again.grid["cells"]["v_proj|1"]["down"] == "shared"
    assert desk.show(*again)[1] == said and desk.show(*again)[3] == marks
    mended = paint(again, UNIQUE, "v_proj|2")
    mended = after(mended, desk.painted(*mended))
    assert desk.show(*mended)[3] == {} and "Start queues" in desk.show(*mended)[1]


def test_hostile_settings_of_a_cell_change_nothing(desk: state.Desk):
    wild = {**UNIQUE, "own": {"rank": "<b>", "gate.__class__": 1, "modules": "x"}}
    page = opened(desk)._replace(method="split")
    page = after(page, desk.method_changed(*page))
    assert 'class="problem"' in desk.start(*paint(page, wild, "q_proj|0"), "token")
    for broken in ({"own": 3, **UNIQUE}, {"down": "unique"}, 7, {"frozen": "yes"}):
        desk.painted(*paint(page, broken, "q_proj|0"))


# forms and settings


def test_a_fresh_page_is_the_default_run(desk: state.Desk):
    data, seeds = desk.collect(opened(desk))
    assert RunSpec.parse({**data, "seed": seeds[0]}) == RunSpec.parse({"tasks": [{"dataset": "demo"}]})


def test_a_full_run_survives_the_forms(desk: state.Desk):
    spec = RunSpec.parse(
        {
            "name": "mine",
            "model": {"dtype": "float32"},
            "tasks": [
                {"dataset": "demo", "task": "opinion", "train_rows": 10, "template": {"user": "{input}?"}},
                {"dataset": "demo", "task": "subject", "train_rows": 20, "template": {"user": "{input}?"}},
            ],
            "method": {
                "name": "hydralora",
                "options": {"experts": [2, 4], "modules": "all-linear", "layers": ["0-3", 5]},
            },
            "train": {
                **{"steps": 12, "learning_rate": 3e-4, "activation_checkpointing": True, "early_stopping": 2},
                **{"compile": "off", "packing": False, "group_by_length": True},
            },
            "evaluation": {"split": "validation", "base": False},
            "device": "cpu",
            "tags": ["a", "b"],
            "notes": "two\nlines",
        }
    )
    data, seeds = desk.collect(values(desk, desk.fill(form.plain_data(spec), [3, 4], NO_QUERY)))
    assert seeds == [3, 4] and RunSpec.parse(data) == spec


def test_what_all_tasks_share_stands_once(studio: Studio):
    rows = [
        {"dataset": "demo", "task": t, "max_new_tokens": 8, "test_rows": n} for t, n in (("opinion", 1), ("subject", 2))
    ]
    chosen, found = form.task_values(rows, studio.datasets())
    assert chosen == ["demo\topinion", "demo\tsubject"]
    assert found == {"*\tmax_new_tokens": 8, "demo\topinion\ttest_rows": 1, "demo\tsubject\ttest_rows": 2}


def test_choosing_a_whole_set_chooses_each_task(studio: Studio):
    assert len(form.expanded(["demo\t*", "demo\topinion", "gone\tx"], studio.datasets())) == 4


def version(studio: Studio, answer: str) -> str:
    """Store rows under the one name ``twice``; returns their id."""
    files = [studio.home.root.parent / f"{task}.jsonl" for task in ("one", "two")]
    for file in files:
        rows = [{"input": f"{file.stem} {i}", "output": f"{answer} {i}"} for i in range(30)]
        file.write_text("\n".join(map(json.dumps, rows)))
    return studio.upload(files, name="twice")["id"]


def test_a_name_means_the_version_that_was_given_it_last(tmp_path: Path):
    studio = QuietStudio(tmp_path / "home")
    desk = state.Desk(studio)
    first, second = version(studio, "a"), version(studio, "b")
    for newest, earlier in ((second, first), (first, second)):
        version(studio, "a" if newest == first else "b")  # the same rows again: the name means them from now on
        page = opened(desk, dataset="twice")
        assert page.tasks == ["twice\tone", "twice\ttwo"] and desk.collect(page)[0]["tasks"] == [{"dataset": "twice"}]
        assert studio.dataset("twice")["id"] == newest
        page = values(desk, desk.fill({"tasks": [{"dataset": earlier, "task": "two"}]}, [0], NO_QUERY))
        assert desk.collect(page)[0]["tasks"] == [{"dataset": earlier, "task": "two"}], "a clone keeps its rows"
        labels = {label.partition(" (")[0]: value for label, value in form.task_choices(studio.datasets())}
        assert labels["twice: one"] == "twice\tone"
        assert labels[f"twice, earlier version {earlier[:6]}: one"] == f"{earlier}\tone"
    studio.close()


def test_hand_written_cells_that_the_grid_cannot_show_stay(desk: state.Desk):
    cells = [
        {"modules": ["q_proj"], "rank": 4, "experts": 3, "gate": "token"},
        {"modules": ["v_proj"], "rank": 16, "experts": 2, "gate": {"word": "token", "top_k": 1}},
    ]
    data = {"tasks": [{"dataset": "demo"}], "method": {"name": "split", "cells": cells}}
    page = values(desk, desk.fill(data, [0], NO_QUERY))
    assert desk.collect(page)[0]["method"]["cells"] == cells
    painted = after(page, desk.painted(*paint(page, None, "q_proj|0")))
    assert "given" not in painted.grid and desk.collect(painted)[0]["method"]["cells"] != cells


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("training", {"train__steps": "many"}, "steps: 'many' is not a whole number"),
        ("training", {"train__warmup": "2"}, "train.warmup"),
        ("training", {"run__seeds": "0, -1"}, "Seeds are"),
        ("training", {"train__steps": "5", "train__evaluate_every": "9"}, "after the last step"),
        ("options", {"option__rank": "0"}, "rank"),
        ("options", {"option__modules": "qq_proj"}, "matches no projection"),
        ("base", {"model__base": "/no/such/folder"}, "folder /no/such/folder does not exist"),
    ],
)
def test_what_is_wrong_is_a_sentence_and_start_refuses_with_it(
    desk: state.Desk, part: str, change: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    page = edit(opened(desk), part, **change)
    said = desk.show(*page)[1]
    assert words in unescape(said)
    assert 'class="problem"' in desk.start(*page, "token") and desk.studio.runs() == []


# what handlers answer


def test_painting_a_preset_makes_a_split_with_its_options(desk: state.Desk):
    page = opened(desk)
    page = paint(page, {"down": "unique", "gate": "none", "up": "unique"}, "o_proj|3")
    page = after(page, desk.painted(*page))
    assert page.method == "split" and page.options["values"]["split.experts"] == [2, 4, 6, 8]
    cells = desk.collect(page)[0]["method"]["cells"]
    assert cells[0]["modules"] == ["o_proj"] and cells[0]["experts"] == 8
    assert cells[1]["down"] == {"word": "shared", "dropout": 0.1, "init": "gaussian"}


def test_another_method_keeps_the_options_that_it_has_too(desk: state.Desk):
    page = edit(opened(desk), "options", option__rank="4", option__dropout_on="up")
    page = page._replace(method="molora")
    page = after(page, desk.method_changed(*page))
    assert desk.collect(page)[0]["method"] == {"name": "molora", "options": {"rank": 4}}
    page = page._replace(method="split")
    page = after(page, desk.method_changed(*page))
    assert desk.collect(page)[0]["method"]["cells"][0]["rank"] == 4


def test_an_answer_does_not_overwrite_what_was_painted_or_chosen_meanwhile(desk: state.Desk):
    page = opened(desk)
    for method in ("mosld", "split"):
        words = {"down": "unique", "gate": "none", "up": "unique"}
        painted = desk.painted(*paint(page._replace(method=method), words, "o_proj|3"))
        assert painted[state.PARTS.index("grid")] == gr.skip()
    chosen = desk.tasks_changed(*page._replace(tasks=["demo\tsubject"]))
    assert chosen[state.PARTS.index("tasks")] == gr.skip()
    whole = desk.tasks_changed(*page._replace(tasks=["demo\t*"]))
    assert len(whole[state.PARTS.index("tasks")]["value"]) == 4


def test_options_repaint_the_grid(desk: state.Desk):
    page = edit(opened(desk), "options", option__modules="all-linear", option__experts="4")
    page = after(page, desk.options_changed(*page))
    assert all(page.grid["cells"].values()) and page.blocks == 1
    assert "trainable parameters" in desk.show(*page)[0]["html"]


def test_fewer_blocks_and_more_blocks(desk: state.Desk):
    page = opened(desk)._replace(blocks=2)
    page = after(page, desk.blocks_changed(*page))
    assert page.grid["cols"] == ["0–3", "4–7"] and page.blocks == 2


def test_without_tasks_the_page_says_so(desk: state.Desk):
    page = opened(desk)._replace(tasks=[])
    assert "Choose at least one task" in desk.tasks_changed(*page)[len(state.PARTS) + 1]
    assert "name at least one data set" in desk.start(*page, "token")


def test_a_split_that_adapts_nothing_counts_nothing(desk: state.Desk):
    page = opened(desk)._replace(method="split")
    page = after(page, desk.method_changed(*page))
    page = paint(page, None, *page.grid["cells"])
    *_, figure, said, _, _, _ = desk.painted(*page)
    assert "No projection is adapted" in said and '<b class="num">0</b>' in figure["html"]


def test_yaml_goes_both_ways(desk: state.Desk):
    page = edit(opened(desk), "training", train__steps="7", run__seeds="1, 2")
    text = desk.show(*page)[2]
    assert text.startswith("# one run for each seed: 1, 2\n") and yaml.safe_load(text)["train"] == {"steps": 7}
    again = values(desk, desk.apply(text, {}))
    assert desk.collect(again) == desk.collect(page)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks: [{dataset: demo}]\ntrain: {stepz: 3}", "Did you mean steps"),
        ("tasks: [", "does not parse at line"),
        ("tasks: [{dataset: nowhere}]", "There is no data set"),
        ("[1]", "mapping"),
        ("sources: [run-1, run-2]\nmethod: {name: ties}", "a fusion of run-1, run-2: this form is for training"),
        ("", "name at least one data set"),
    ],
)
def test_wrong_yaml_changes_nothing_and_is_named(desk: state.Desk, text: str, words: str):
    *rest, said, _, _, _, _ = desk.apply(text, {})
    assert words in said and all(isinstance(part, dict) and part["__type__"] == "update" for part in rest)


def test_one_wish_is_one_run_for_each_seed(desk: state.Desk):
    page = edit(opened(desk), "training", run__seeds="0, 1", train__steps="3")
    first, again = desk.start(*page, "token"), desk.start(*page, "token")
    assert first == again and first.count("/runs?run=") == 2
    assert len(desk.studio.runs()) == 2 and {run["seed"] for run in desk.studio.runs()} == {0, 1}
    assert desk.start(*page, "another token") != first


def test_a_clone_shows_what_differs(desk: state.Desk):
    run = desk.studio.submit(RunSpec.parse({"tasks": [{"dataset": "demo"}], "train": {"steps": 9}, "seed": 5}))
    page = opened(desk, clone=run)
    assert desk.collect(page)[1] == [5] and "The same settings" in desk.show(*page)[1]
    page = edit(page, "training", train__steps="11")
    assert "<code>train.steps</code> 9 → <b>11</b>" in desk.show(*page)[1]
    assert page.training["base"]["train.steps"] == 9
    desk.start(*page, "t")
    assert desk.studio.runs()[0]["parent"] == run
    desk.studio.cancel(run)


def test_a_fused_run_is_not_opened_in_the_form_and_it_is_said_where_it_is(tmp_path: Path):
    seeded = seed.few(tmp_path / "home")
    studio = QuietStudio(seeded.home)
    run = seed.fused(studio, seeded.dataset, [seeded.lora, seeded.molora])
    shown = state.Desk(studio).open(None, {"clone": run})
    said = shown[len(state.PARTS) + 1]
    assert f"{run} is a fusion of {seeded.lora}, {seeded.molora}" in said and "Fuse again" in said
    studio.close()


def test_a_draft_of_a_deleted_data_set_keeps_the_rest(desk: state.Desk):
    draft = {"data": {"tasks": [{"dataset": "gone"}], "train": {"steps": 7}}, "seeds": [3], "address": {}}
    outputs = desk.open(draft, {})
    page = values(desk, outputs)
    assert page.tasks == [] and page.training["values"]["train.steps"] == 7
    assert page.training["values"]["run.seeds"] == [3]
    assert "There is no data set" in outputs[len(state.PARTS) + 1]


def test_a_draft_comes_back_on_its_own_address(desk: state.Desk):
    page = edit(opened(desk, dataset="demo"), "training", train__steps="7")
    draft = json.loads(json.dumps(desk.show(*page)[4]))
    for query in ({"dataset": "demo"}, {}):
        assert desk.collect(values(desk, desk.open(draft, query)))[0]["train"]["steps"] == 7
    fresh = values(desk, desk.open(draft, {"method": "lora"}))
    assert fresh.method == "lora" and "steps" not in desk.collect(fresh)[0]["train"]


@pytest.mark.parametrize(
    "draft", [None, 3, {"data": 1}, {"data": {"tasks": [{"dataset": "gone"}]}}, {"data": {"method": {"name": "x"}}}]
)
def test_a_broken_draft_breaks_nothing(desk: state.Desk, draft: Any):
    page = values(desk, desk.open(draft, {}))
    assert page.method in desk.methods


def test_an_unknown_clone_is_a_sentence(desk: state.Desk):
    assert "problem" in desk.open(None, {"clone": "run-999"})[len(state.PARTS) + 1]


def test_an_empty_studio_leads_to_data_and_the_demo(tmp_path: Path):
    studio = QuietStudio(tmp_path / "home")
    desk = state.Desk(studio)
    outputs = desk.open(None, {})
    assert "No tasks are stored yet" in outputs[len(state.PARTS) + 1]
    page = values(desk, desk.with_demo(*values(desk, outputs)))
    assert len(page.tasks) == 4 and "Start queues one run on 4 tasks" in desk.show(*page)[1]
    studio.close()


def test_an_answer_is_quick(desk: state.Desk):
    import time

    page = opened(desk)
    desk.show(*page)
    began = time.perf_counter()
    desk.show(*page)
    assert time.perf_counter() - began < 0.3


# the figure


def test_the_figure_has_a_box_for_each_matrix(studio: Studio):
    found = views.mixture(size(studio, MethodSpec(name="mosld")), ("shared", "token", "unique"))
    assert (found.experts, found.selected) == (8, 2)
    assert found.depth == [("0–1", 2), ("2–3", 4), ("4–5", 6), ("6–7", 8)]
    picture = diagram(found)
    assert picture.count("<polygon") == 1 + 8 and "Experts in each block of layers" in picture
    assert describe(found) == "8 experts of rank 8: down shared, up unique, weighted by each token, 2 used at a time"


def test_the_figure_of_a_lora_has_no_gate():
    picture = diagram(Mixture("unique", "none", "unique"))
    assert picture.count("<polygon") == 2 and "gates from" not in picture and "Σ" not in picture


@pytest.mark.parametrize("name", [name for name in presets() if name != "split"])
def test_every_method_has_a_figure(studio: Studio, name: str):
    made = size(studio, MethodSpec(name=name))
    html = views.summary(made)["html"]
    assert html.count('class="mixture"') >= 1 and "NaN" not in html and f"{made.trainable:,}" in html


def test_an_unknown_word_is_drawn_by_what_it_says_of_itself():
    unknown = Mixture("novel", "odd", "strange", experts=3, selected=3, unit="sample", counts={"gate": 7})
    picture = diagram(unknown)
    assert picture.count("<polygon") == 6 and "gates from odd, for each sample" in picture
    assert 'style="--w:hsl(' in picture and "7 parameters" in picture


def test_a_pool_is_drawn_once_for_each_factor():
    pools = Mixture("pool", "intuition", "pool", experts=12, selected=12, rank=1, inputs=64, outputs=32,
                    counts={"down": 3 * 64, "up": 4 * 32, "gate": 9})  # fmt: skip
    picture = diagram(pools)
    assert picture.count('class="name">v') == 3 and picture.count('class="name">u') == 4
    assert picture.count("word-intuition") >= 12


def test_frozen_projections_are_drawn_as_the_base_alone(studio: Studio):
    cells = [{"modules": ["q_proj"], "frozen": True}, {"modules": "all-linear"}]
    html = views.summary(size(studio, MethodSpec(name="split", cells=cells)))["html"]
    assert html.count('class="mixture"') == 2 and "q_proj 256 → 256, frozen: y = W" in html


def test_many_experts_are_abridged():
    assert diagram(Mixture("unique", "token", "unique", 64, 2)).count("<polygon") == 2 * 7


def test_sizes_are_put_beside_the_base_and_a_lora(studio: Studio):
    html = views.counts(size(studio, MethodSpec(name="lora")))
    assert "1.00 × a LoRA of rank 8" in html and "of the base" in html


def test_seeds_are_checked():
    assert form.seeds_of([1, 1, 2]) == [1, 2]
    with pytest.raises(ConfigurationError):
        form.seeds_of(list(range(21)))


# equal budgets


def solved(desk: state.Desk, page: state.Values, methods: list[str], target: str = "", over: str = "rank") -> str:
    return budget.Panel(desk).solve(*page, methods, target, over)


def test_methods_get_the_size_of_the_run_above_and_its_projections(desk: state.Desk):
    page = edit(opened(desk), "options", option__modules="all-linear", option__experts="4")
    html = solved(desk, page, ["mosld", "lora", "moa"])
    mine = desk.sized(desk.collect(page)[0]).trainable
    assert f"The budget: {mine:,} trainable parameters" in html and html.count("<tr>") == 4
    assert "rank 8 → <b>8</b>" in html and "+0 " in html, "the run's own method is at its budget"
    assert 'class="badge">interpretation' in html
    link = re.search(r'href="(/experiment\?method=lora&amp;options=[^"]+)"', html)[1]
    query = {name: values[0] for name, values in parse_qs(urlsplit(unescape(link)).query).items()}
    again = opened(desk, **query)
    assert again.method == "lora" and again.options["values"]["option.modules"] == "all-linear"
    assert abs(desk.sized(desk.collect(again)[0]).trainable - mine) < 0.02 * mine


@pytest.mark.parametrize(
    ("methods", "target", "over", "words"),
    [
        ([], "", "rank", "No method is chosen"),
        (["lora"], "2 million", "rank", "no number of parameters"),
        (["lora"], "20", "rank", "cannot have 20 trainable parameters"),
        (["lora"], "1M", "experts", "no option experts"),
        (["nothing"], "1M", "rank", "There is no method"),
    ],
)
def test_a_budget_that_cannot_be_is_a_sentence(
    desk: state.Desk, methods: list[str], target: str, over: str, words: str
):
    assert words in unescape(solved(desk, opened(desk), methods, target, over))


def test_typed_numbers_are_read_as_people_write_them():
    assert [budget.number(text) for text in ("2M", "600,000", "1.5k", "7_000")] == [2_000_000, 600_000, 1500, 7000]


def test_one_button_queues_a_run_for_each_method_and_seed(desk: state.Desk):
    page = edit(opened(desk), "training", run__seeds="0, 1", train__steps="3")
    panel, before = budget.Panel(desk), len(desk.studio.runs())
    first, again = (panel.queue(*page, ["lora", "hydralora"], "300k", "rank", "token") for _ in range(2))
    assert first.count("/runs?run=") == 4 and first == again
    assert len(desk.studio.runs()) == before + 4
    assert {run["method"] for run in desk.studio.runs()[:4]} == {"lora", "hydralora"}


def test_an_address_with_broken_options_is_a_sentence(desk: state.Desk):
    assert "options that cannot be read" in desk.open(None, {"method": "lora", "options": "[1"})[len(state.PARTS) + 1]


def test_a_split_can_be_begun_from_nothing(desk: state.Desk):
    page = opened(desk, method="split")
    assert page.method == "split" and not any(page.grid["cells"].values())
    page = paint(page, UNIQUE, "q_proj|0")
    page = after(page, desk.painted(*page))
    (cell,) = desk.collect(page)[0]["method"]["cells"]
    assert cell["modules"] == ["q_proj"] and cell["gate"] == "sequence" and "Start queues" in desk.show(*page)[1]
