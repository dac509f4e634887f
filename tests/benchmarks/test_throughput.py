"""The benchmark of training throughput in its tiny form."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import cases as grids
from benchmarks.bases import multiplied, random_base, sharing_weights
from benchmarks.cases import GRIDS, Case, build
from benchmarks.rivals import RIVALS
from benchmarks.tables import found, ratio, table
from benchmarks.throughput import Bench, main


@pytest.fixture(scope="module")
def bench():
    return Bench("tiny", "cpu", 1)


def test_one_call_writes_rows_and_ratios(tmp_path, capsys):
    assert main(["--shape", "tiny", "--device", "cpu", "--steps", "1", "--only", "frozen,peft-lora,mosld",
                 "--mode", "eager", "--out", str(tmp_path)]) == 0  # fmt: skip
    report = json.loads((tmp_path / "throughput-tiny-core.json").read_text())
    rows = report["rows"]
    assert {row["method"] for row in rows} == {"frozen", "peft-lora", "mosld"} and not any(
        "error" in row for row in rows
    )
    assert ratio(found(rows, "peft-lora", "eager"), found(rows, "peft-lora", "eager")) == 1
    assert {row["trainable"] for row in rows if row["method"] == "frozen"} == {0}
    assert "| mosld | eager | 2 x 16 |" in capsys.readouterr().out


@pytest.mark.parametrize("method", [*RIVALS, "mosld", "mor1e", "moa", "split", "dora", "poly", "full"])
def test_every_kind_of_model_takes_a_step_and_leaves_the_base_alone(bench, method):
    before = {name: value.clone() for name, value in bench.base.state_dict().items()}
    row = bench.measured(Case(method, rows=2, tokens=16, experts=3, rank=2))
    assert "error" not in row, row
    assert row["loss"] == row["loss"]
    after = bench.base.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def test_gradients_reach_the_input_of_the_frozen_base(bench):
    steps = bench.steps(Case("frozen", rows=1, tokens=4))
    batch = steps.batch()
    steps.step(batch)
    assert batch["inputs_embeds"].grad.abs().sum() > 0


def test_copies_hold_no_weights_of_their_own():
    base = random_base("tiny", "cpu")
    copied = sharing_weights(base)
    assert all(one is other for one, other in zip(copied.parameters(), base.parameters(), strict=True))
    assert copied.model.layers[0] is not base.model.layers[0]
    assert multiplied(base) == sum(
        p.numel() for name, p in base.named_parameters() if "norm" not in name and "embed" not in name
    )


def test_the_mixture_of_a_case_is_what_it_says(bench):
    model = build(Case("mosld", experts=3, rank=2), bench.base)
    site = next(layer for layer in model.modules() if hasattr(layer, "sites")).sites["default"]
    assert (site.experts, site.rank, site.down.dropout, site.gate.top_k) == (3, 2, 0.1, 2)
    plain = build(Case("mosld", extras=False), bench.base)
    site = next(layer for layer in plain.modules() if hasattr(layer, "sites")).sites["default"]
    assert (site.down.dropout, site.gate.balance) == (0, 0)


@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_has_an_anchor_beside_what_it_measures(grid):
    chosen = grids.cases(grid, 8, 1024)
    assert len(chosen) >= 3 and {case.method for case in chosen} & {"peft-lora", "frozen"}
    assert all(case.rows and case.tokens for case in chosen)


def test_an_error_is_a_row_and_the_table_shows_it(bench):
    row = bench.measured(Case("mosld", rows=2, tokens=16, rank=0))
    assert "rank" in row["error"]
    assert row["error"].split(":")[0] in table([row])
