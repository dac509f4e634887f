"""Figures show what the arrays hold: nothing invented, nothing lost, and files that open without a network."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from core.errors import ConfigurationError, NotFoundError
from core.figures import (
    FIGURES,
    routing_heatmap,
    routing_heatmap_static,
    scores_static,
    similarity,
    write_html,
)
from core.figures.panels import caption, over_roles, routing_panels, scale_ticks
from core.figures.scores import BASE, score_rows
from core.figures.style import LOOKS, ramp
from core.routing.snapshot import SiteInfo


def site_of(layer: int, projection: str, experts: int, **more) -> SiteInfo:
    return SiteInfo(f"{layer}.{projection}", layer, projection, experts, 2, "token", **{"unit": "token", **more})


def snapshot(tasks=("a", "b"), layers=4, experts=lambda layer: 4, projections=("v_proj", "q_proj"), seed=0):
    """A hand-made snapshot with top-2 routing figures; the shape that ``RoutingSnapshot`` has."""
    rng = np.random.default_rng(seed)
    sites = [site_of(layer, name, experts(layer)) for layer in range(layers) for name in projections]
    widest = max(site.experts for site in sites)
    gates = np.full((2, len(tasks), len(sites), widest), np.nan)
    for index, site in enumerate(sites):
        gates[:, :, index, : site.experts] = rng.dirichlet(np.ones(site.experts), size=(2, len(tasks)))
    count = np.array([100.0, 300.0])[:, None, None] * np.ones((2, len(tasks), len(sites)))
    flat = rng.uniform(0.2, 1.0, size=count.shape)
    return SimpleNamespace(
        tasks=list(tasks),
        sites=sites,
        roles=["prompt", "answer"],
        mean_gate=gates,
        selection_share=2 * gates,
        top1_share=gates,
        entropy=flat,
        load_cv=flat,
        count=count,
    )


def test_a_panel_holds_the_values_of_its_site_with_layers_from_bottom_to_top():
    shot = snapshot()
    grid = routing_panels(shot)
    assert grid.column_names == ["q_proj", "v_proj"]  # in the order of a block, not of the file
    panel = next(p for p in grid.panels if grid.names(p) == ("b", "q_proj"))
    index = shot.sites.index(site_of(3, "q_proj", 4))
    assert panel.values[3] == pytest.approx(shot.mean_gate[1, 1, index])
    assert grid.layers == [0, 1, 2, 3]


def test_absent_experts_are_absent_and_not_zero():
    grid = routing_panels(snapshot(experts=lambda layer: 2 * (layer + 1)))
    panel = grid.panels[0]
    assert panel.present.sum(axis=1).tolist() == [2, 4, 6, 8]
    assert np.isnan(panel.values[~panel.present]).all()
    assert "no such expert" in caption(grid)
    assert grid.uniform is None  # layers of different width have no common even share
    dots = [t for t in routing_heatmap(snapshot(experts=lambda layer: 2 * (layer + 1))).data if t.type == "scatter"]
    assert len(dots[0].x) == 32 - 20


def test_cells_without_tokens_are_marked():
    shot = snapshot()
    shot.mean_gate[1, 0] = np.nan
    shot.count[1, 0] = 0
    grid = routing_panels(shot)
    assert grid.under("a") == "0 tokens"
    assert "nothing was counted" in caption(grid)


def test_all_roles_are_weighted_by_their_tokens():
    shot = snapshot()
    expected = (100 * shot.mean_gate[0, 0, 1] + 300 * shot.mean_gate[1, 0, 1]) / 400
    grid = routing_panels(shot, role="all", task="a", projections=["q_proj"])
    assert grid.panels[0].values[0] == pytest.approx(expected)
    assert grid.under("a") == "400 tokens"


def test_decisions_on_whole_samples_are_counted_once():
    shot = snapshot()
    shot.sites = [replace(one, unit="sample") for one in shot.sites]
    shot.count[:] = 40
    grid = routing_panels(shot, role="all")
    assert grid.under("a") == "40 samples" and "Counted: samples" in caption(grid)


def test_one_projection_puts_the_tasks_side_by_side():
    grid = routing_panels(snapshot(), projections=["q_proj"])
    assert grid.row_names == ["q_proj"] and grid.column_names == ["a", "b"]
    assert {grid.names(panel) for panel in grid.panels} == {("a", "q_proj"), ("b", "q_proj")}


def by_ranks(blocks=12):
    """One layer of two tasks whose q_proj decides for blocks of two ranks each."""
    shot = snapshot(layers=blocks, projections=("q_proj",))
    shot.sites = [site_of(0, "q_proj", 4, part=f"rank {2 * n}-{2 * n + 1}") for n in range(blocks)]
    return shot


def test_blocks_of_ranks_have_panels_of_their_own():
    grid = routing_panels(by_ranks(), projections=["q_proj"])
    assert grid.column_names[:2] == ["q_proj rank 0-1", "q_proj rank 2-3"]
    assert grid.column_names[-1] == "q_proj rank 22-23" and grid.layers == [0]  # by number, not by letter
    assert grid.heads(30) == grid.column_names and grid.heads(9)[:2] == ["q 0-1", "q 2-3"]
    one = routing_panels(by_ranks(), projections=["q_proj rank 2-3"], task="b")
    assert one.panels[0].values[0] == pytest.approx(by_ranks().mean_gate[1, 1, 1])
    with pytest.raises(NotFoundError, match="q_proj rank 0-1"):
        routing_panels(by_ranks(), projections=["q_proj rank 9"])


def test_weights_that_are_no_shares_have_no_even_share_and_say_so():
    shot = snapshot()
    shot.sites = [replace(one, sums_to_one=False) for one in shot.sites]
    shot.mean_gate *= 0.5
    grid = routing_panels(shot)
    assert grid.uniform is None and "do not sum to 1" in caption(grid)
    assert "do not sum to 1" not in caption(routing_panels(shot, figure="top1_share"))
    relative = routing_panels(shot, figure="relative_gate").panels[0].values
    assert relative.sum(-1) == pytest.approx(4)  # against the average of the layer, whatever the weights add up to


@pytest.mark.parametrize("figure", ["mean_gate", "relative_gate"])
def test_negative_weights_have_a_scale_with_two_ends(tmp_path, figure):
    shot = snapshot()
    shot.sites = [replace(one, sums_to_one=False, signed=True) for one in shot.sites]
    shot.mean_gate[:, 0, 0, 0] = -3.0
    grid = routing_panels(shot, figure=figure)
    if figure == "relative_gate":
        assert not any(np.isfinite(panel.values).any() for panel in grid.panels)
    else:
        assert (grid.low, grid.top) == (-3.0, 3.0) and scale_ticks(grid)[1][0] == "-3.00"
        drawn = routing_heatmap(shot, figure=figure).layout.coloraxis
        assert (drawn.cmin, drawn.cmax) == (-3.0, 3.0) and drawn.colorscale[16][1] != drawn.colorscale[0][1]
    assert routing_heatmap_static(shot, tmp_path / "a.png", figure=figure).stat().st_size > 1000
    opposite = snapshot(layers=1, projections=("q_proj",))
    opposite.sites = [replace(opposite.sites[0], sums_to_one=False, signed=True)]
    opposite.mean_gate[1, 1] = -opposite.mean_gate[1, 0]
    assert similarity(opposite)[1] == pytest.approx(np.eye(2))


def test_the_even_share_is_marked_on_the_scale():
    ticks, labels = scale_ticks(routing_panels(snapshot()))
    assert ticks[0] == 0 and "even 0.25" in labels
    assert routing_panels(snapshot(), figure="selection_share").uniform == pytest.approx(0.5)


def test_entropy_has_projections_across_and_a_scale_to_one():
    grid = routing_panels(snapshot(), figure="entropy")
    assert grid.across == ["q", "v"] and grid.top == 1.0
    assert grid.panels[0].values.shape == (4, 2)


@pytest.mark.parametrize(
    ("choice", "says"),
    [({"figure": "loss"}, "mean_gate"), ({"task": "c"}, "a, b"), ({"projections": ["up_proj"]}, "q_proj, v_proj")],
)
def test_a_wrong_choice_names_the_right_ones(choice, says):
    with pytest.raises((ConfigurationError, NotFoundError)) as caught:
        routing_panels(snapshot(), **choice)
    assert says in caught.value.hint


def test_a_run_with_one_expert_has_no_routing_to_show():
    with pytest.raises(NotFoundError, match="routes nothing"):
        routing_panels(snapshot(experts=lambda layer: 1))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("figure", FIGURES)
def test_plotly_heatmaps_carry_every_value(figure, theme):
    shot = snapshot()
    drawing = routing_heatmap(shot, figure=figure, theme=theme, title="Who speaks")
    shown = np.concatenate([np.ravel(t.z) for t in drawing.data if t.type == "heatmap"])
    values = over_roles(shot, figure, "answer")[0]
    assert np.nansum(shown) == pytest.approx(np.nansum(values), abs=1e-3)
    assert drawing.layout.paper_bgcolor == LOOKS[theme].paper


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_static_heatmaps_are_written_without_a_browser(tmp_path, suffix):
    head = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    first = routing_heatmap_static(snapshot(), tmp_path / f"a{suffix}", title="Who speaks")
    again = routing_heatmap_static(snapshot(), tmp_path / f"b{suffix}", title="Who speaks")
    assert first.read_bytes().startswith(head)
    assert first.read_bytes() == again.read_bytes()


def test_a_wrong_suffix_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="gif"):
        routing_heatmap_static(snapshot(), tmp_path / "a.gif")


def test_colours_step_evenly_in_lightness_and_stay_in_gamut():
    for theme in ("light", "dark"):
        colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in ramp(theme, 32)])
        assert len(set(map(tuple, colours))) == 32
        luminance = colours @ [0.2126, 0.7152, 0.0722]
        steps = np.diff(luminance)
        assert (steps < 0).all() if theme == "light" else (steps > 0).all()
        assert colours.min() > 0 and colours.max() < 255  # a clipped channel shows as an edge


def test_tasks_routed_alike_are_similar():
    shot = snapshot(tasks=("a", "b", "c"))
    shot.mean_gate[1, 1] = shot.mean_gate[1, 0]
    tasks, values = similarity(shot)
    assert tasks == ["a", "b", "c"]
    assert values[0, 1] == pytest.approx(1.0) and values[0, 2] < 0.95
    apart = snapshot(experts=lambda layer: 2)
    apart.mean_gate[1, 0], apart.mean_gate[1, 1] = [1.0, 0.0], [0.0, 1.0]
    assert similarity(apart)[1][0, 1] == pytest.approx(0.0)


def scores():
    rows = []
    for run, cost in (("mosld", 1000), ("lora", 500)):
        for task in ("a", "b"):
            row = {"run": run, "task": task, "metric": "accuracy", "stderr": 0.02, "chance": 0.5, "primary": True}
            rows.append({**row, "model": "adapter", "value": 0.8, "trainable": cost})
            rows.append({**row, "model": "base", "value": 0.4, "trainable": cost})
            rows.append({**row, "model": "adapter", "metric": "macro_f1", "value": 0.1, "primary": False})
    return rows


def test_scores_show_each_run_and_the_base_once(tmp_path):
    frame = score_rows(scores())
    assert list(frame["run"].value_counts().sort_index()) == [2, 2, 2]
    assert set(frame["metric"]) == {"accuracy"}
    assert set(frame["run"]) == {"mosld", "lora", BASE} and set(frame["stderr"]) == {0.02}
    assert scores_static(scores(), tmp_path / "s.png", title="Two tasks").stat().st_size > 1000


def test_no_scores_are_said():
    with pytest.raises(NotFoundError):
        score_rows([])


def test_a_page_holds_plotly_once_and_opens_offline(tmp_path):
    path = write_html([routing_heatmap(snapshot())] * 2, tmp_path / "f.html", title="<a & b>")
    page = path.read_text("utf-8")
    assert "<title>&lt;a &amp; b&gt;</title>" in page
    assert page.count("Plotly.newPlot(") >= 2 and len(page) < 7_000_000
    assert '<script src="http' not in page and "<script charset" not in page.split("</head>")[0]


def test_names_of_tasks_cannot_inject_markup():
    drawing = routing_heatmap(snapshot(tasks=("<img src=x>", "b")))
    assert not any("<img" in (note.text or "") for note in drawing.layout.annotations)


def test_importing_the_figures_loads_no_drawing_library():
    code = "import core.figures, sys; print([m for m in ('torch', 'plotly', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
