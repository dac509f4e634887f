"""Figures of fusion: what they hold, and files that can be opened."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from core.errors import ConfigurationError, NotFoundError
from core.figures import fusion as figures
from core.figures import write_html

PATHS = [f"model.layers.{layer}.self_attn.{name}" for layer in range(3) for name in ("q_proj", "v_proj")]
SNR = (-5.0, 0.0, 10.0, 20.0)


def sweep() -> pd.DataFrame:
    rows = []
    for arm, height in (("none", 0.5), ("error_protected", 0.7)):
        for seed in range(3):
            for task, more in (("mood", 0.0), ("topic", 0.1)):
                rows.append((arm, "ideal", None, seed, task, 0.9, 0.0))
                rows += [
                    (arm, attack, snr, seed, task, height + more + snr / 100 + 0.02 * seed, 0.4 - snr / 100)
                    for attack in ("awgn", "worst_sum")
                    for snr in SNR
                ]
    return pd.DataFrame(rows, columns=["protection", "attack", "snr", "seed", "task", "score", "disentanglement_error"])


def conflicts(runs: int = 3) -> SimpleNamespace:
    noise = np.random.default_rng(0).uniform(-1, 1, (len(PATHS), runs, runs))
    names = [f"run-{n}" for n in range(runs)]
    overall = np.full((runs, runs), 0.5)
    if runs > 1:
        overall[0, 1] = overall[1, 0] = -0.5
    return SimpleNamespace(sources=names, paths=PATHS, cosine=noise, disagreement=abs(noise), overall_cosine=overall)


def test_a_line_is_the_mean_over_tasks_then_seeds_with_its_spread_over_seeds():
    lines = figures.sweep_lines(sweep(), "awgn")
    assert [line.protection for line in lines] == ["none", "error_protected"]
    first = lines[0]
    assert first.snr.tolist() == list(SNR) and first.seeds == 3 and first.ideal == pytest.approx(0.9)
    assert first.mean == pytest.approx([0.5 + 0.05 + snr / 100 + 0.02 for snr in SNR])
    assert first.spread == pytest.approx([0.02] * 4)  # std of 0, 0.02, 0.04


def test_one_seed_has_no_spread_and_a_sweep_without_an_ideal_channel_no_ideal():
    frame = sweep()[lambda f: (f["seed"] == 0) & f["snr"].notna()]
    line = figures.sweep_lines(frame, "worst_sum", "disentanglement_error")[0]
    assert np.isnan(line.spread).all() and line.ideal is None and line.seeds == 1


def test_an_attack_or_a_measure_that_is_not_there_is_refused():
    assert figures.attacks(sweep()) == ["awgn", "worst_sum"]
    with pytest.raises(NotFoundError, match="gradient"):
        figures.sweep_lines(sweep(), "gradient")
    with pytest.raises(ConfigurationError, match="speed"):
        figures.sweep_lines(sweep(), "awgn", "speed")


def test_the_sweep_is_drawn_with_its_label_and_bands(tmp_path: Path):
    drawing = figures.sweep_figure(sweep(), "worst_sum", title="SNR")
    assert sum(trace.fill == "toself" for trace in drawing.data) == 4  # two arms, two measures
    assert any(figures.INSPIRED in note.text for note in drawing.layout.annotations)
    page = write_html([drawing], tmp_path / "sweep.html")
    assert page.stat().st_size > 100_000


@pytest.mark.parametrize("end", ["png", "svg"])
def test_the_static_sweep_is_a_file_and_the_same_data_give_the_same_bytes(tmp_path: Path, end: str):
    files = [figures.sweep_static(sweep(), tmp_path / f"{n}.{end}", title="Over a noisy channel") for n in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes() and files[0].stat().st_size > 5_000


def test_conflicts_have_a_line_for_each_pair_the_worst_on_top_and_a_scale_about_0():
    drawing = figures.conflict_heatmap(conflicts(), title="Conflicts")
    tiles = drawing.data[0]
    assert tiles.y[0] == "run-0 × run-1" and len(tiles.y) == 3 and tiles.zmin == -tiles.zmax
    assert figures.conflict_heatmap(conflicts(), signs=True).data[0].zmin is None
    with pytest.raises(NotFoundError):
        figures.conflict_heatmap(conflicts(1))


def test_coefficients_have_a_line_for_each_run_and_a_scale_about_0_where_some_are_negative():
    frame = pd.DataFrame([["run-1", *[0.3] * 6], ["run-2", *[0.4] * 6]], columns=["run", *PATHS])
    assert figures.coefficient_heatmap(frame).data[0].zmin is None
    minus = figures.coefficient_heatmap(frame.assign(**{PATHS[0]: -0.4})).data[0]
    assert (minus.zmin, minus.zmax) == (-0.4, 0.4)


def test_curves_have_a_panel_for_entropies_and_one_for_coefficients():
    points = [
        (name, step, 0.5) for name in ("entropy/mood", "entropy/topic", "coefficient/run-1", "loss") for step in (0, 1)
    ]
    drawing = figures.fusion_curves(pd.DataFrame(points, columns=["name", "step", "value"]))
    assert [trace.name for trace in drawing.data] == ["mood", "topic", "run-1"]
    with pytest.raises(NotFoundError):
        figures.fusion_curves(pd.DataFrame(columns=["name", "step", "value"]))
