"""The benchmark of scoring: its rows, its differences, and what both sides answer to the same token ids."""

import json

import pytest

from benchmarks.scorers import Harness, Studio, differences
from benchmarks.scoring import LIMIT, Bench, folded, made_up, read_samples, table
from core.data.templates import TextEncoder
from core.home import BUNDLED_BASE_FOLDER


@pytest.fixture(scope="module")
def bench():
    encoder = TextEncoder(BUNDLED_BASE_FOLDER)
    samples = {task: [folded(s, 128) for s in rows] for task, rows in read_samples(None, [], 6, encoder).items()}
    return Bench("tiny", "cpu", samples, repeats=1)


def test_rows_of_a_folder_are_asked_as_a_run_asks_them(tmp_path):
    (tmp_path / "colours").mkdir()
    row = {"input": "Which colour has grass?", "output": "green", "choices": ["green", "very red"]}
    (tmp_path / "colours" / "test.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    (tmp_path / "tasks.json").write_text(json.dumps([{"name": "colours", "instruction": "Say a colour."}]))
    encoder = TextEncoder(BUNDLED_BASE_FOLDER)
    first, second = read_samples(tmp_path, ["colours"], 2, encoder)["colours"]
    text = encoder.decode(first.prompt, keep_special=True)
    assert first == second and "Say a colour." in text and row["input"] in text
    assert [encoder.decode(option) for option in first.options] == row["choices"]
    assert all(option[-1] == encoder.eos_id for option in first.options)


def test_made_up_rows_repeat_and_differ():
    rows = made_up(5)
    assert rows == made_up(5) and len({row["input"] for row in rows}) == 5
    assert all(2 <= len(row["choices"]) <= 5 for row in rows)


def test_differences_are_those_of_options_and_of_the_choice():
    found = differences([[-1.0, -2.0], [-3.0, -1.0]], [[-1.5, -2.0], [-1.0, -3.0]])
    assert found == {"largest": 2.0, "mean": 4.5 / 4, "same": 0.5}


def test_the_studio_s_side_is_measured_for_every_model(bench):
    rows = bench.measured("mosld")
    assert rows[0]["who"] == "studio" and rows[0]["samples_per_s"] > 0
    rival = {**rows[0], "model": "lora", "who": "lm-eval, at most 64", "seconds": 3 * rows[0]["seconds"]}
    assert "3.00x" in table([rival, *rows, {"model": "lora", "error": "none left"}], [])


@pytest.mark.parametrize("model", ["base", "lora"])
def test_both_sides_give_equal_scores(bench, model):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    theirs, ours = bench.pair(model)
    harness = Harness(theirs, bench.samples, 4)
    assert harness.batch == "4"
    found = differences(harness.scores(), Studio(ours, bench.encoder, bench.samples, LIMIT).scores())
    assert found["largest"] < 1e-4
