"""The page of measurements: what it says follows from the rows, and other text stays."""

from __future__ import annotations

import json

import pytest

from benchmarks.cases import GRIDS, cases
from benchmarks.other_targets import OTHERS
from benchmarks.speed_page import BLOCK, blocks, charts, write
from benchmarks.targets import targets
from core.home import PROJECT

HEAD = {"command": "c", "device": "d", "python": "3", "torch": "2", "transformers": "5", "peft": "0", "steps": 8}
RATES = {"frozen": 200, "peft-lora": 100, "mosld": 120}
VARIANTS = {"trl lora": 100, "trl lora, packing": 200, "tessera mosld": 240}
ANSWERS = {"one answer: mosld": 1.0, "4 answers: mosld, lora, hydralora, mola": 1.4, "one answer: base": 0.8,
           "generate: base": 1.0, "one answer: lora": 0.9, "generate: PEFT LoRA": 1.5}  # fmt: skip
OTHER_REPORTS = {
    "end_to_end": json.dumps({"lines": [HEAD, *(
        {"rows": 16, "variant": name, "tokens_per_second": rate, "overall": rate, "ms_per_step": 1.0, "ready_s": 1.0}
        for name, rate in VARIANTS.items())]}),
    "scoring-1b": json.dumps({"machine": HEAD, "rows": [
        {"model": model, "who": who, "batch": 8, "seconds": 1.0, "samples_per_s": rate, "options_per_s": rate,
         "peak_gib": 1.0}
        for model in ("base", "lora") for who, rate in (("lm-eval, at most 64", 10), ("studio", 35))
    ], "equal": []}),
    "study": json.dumps({"lines": [
        {"at_once": n, "runs": 8, "seconds": 60 / n, "phases": dict.fromkeys(("starting", "training", "scoring"), 1.0),
         "told": [{"scores": {}, "losses": [], "peak": None}]} for n in (4, 1)]}),
} | {
    f"chat-{shape}": json.dumps(HEAD | {"cases": {name: {
        "first_ms": 20.0, "seconds": seconds, "tokens_per_s": 128 / seconds, "later": 100.0}
        for name, seconds in ANSWERS.items()}}) for shape in ("1b", "base")
}  # fmt: skip


def row(case):
    speed = (
        RATES.get(case.method, 90)
        * (1 if case.mode in ("eager", "captured") else 1.5)
        * (0.9 if case.experts == 64 else 1)
    )
    return case.facts() | {
        "ms": 1e5 / speed, "ms_least": 1.0, "ms_most": 2.0, "ms_issued": 1.0, "tokens_per_s": speed, "trainable": 10,
        "first_step_s": 12.0, "tflops": speed, "share": speed / 400, "loss": 1.0, "peak_gib": 10.0, "waits": 0,
    }  # fmt: skip


@pytest.fixture
def reports():
    others = {name: json.loads(text) for name, text in OTHER_REPORTS.items()}
    return others | {
        f"throughput-{shape}-{grid}": HEAD
        | {"shape": shape, "grid": grid, "matrix_tflops": 700.0, "rows": [row(case) for case in cases(grid, 8, 1024)]}
        for shape in ("1b", "7b", "base")
        for grid in GRIDS
    }


def test_targets_are_read_off_the_rows(reports):
    values = {target.figure: target.value(reports) for target in targets()}
    assert values["MoSLD in CUDA graphs / PEFT LoRA r=8 eager, 7B"] == pytest.approx(1.2)
    assert values["MoSLD compiled, in CUDA graphs / frozen base compiled, 7B"] == pytest.approx(0.6)
    assert values["64 experts / 8 experts, MoSLD compiled, 1B"] == pytest.approx(0.9)
    assert values["slowest method / MoSLD, compiled, 1B"] == pytest.approx(0.75)
    assert values["first compiled step, 7B"] == 12
    text = blocks(reports)["targets"]
    assert "| MoSLD compiled, in CUDA graphs / frozen base compiled, 7B | at least 0.90x | 0.60x | **no** |" in text
    assert "| MoSLD in CUDA graphs / PEFT LoRA r=8 eager, 1B | at least 1.15x | 1.20x | yes |" in text
    assert "frozen base 75%" in text


def test_targets_of_the_other_benchmarks(reports):
    values = {target.figure: target.value(reports) for target in OTHERS}
    assert values["run on short rows, MoSLD / TRL with PEFT LoRA, unpacked"] == pytest.approx(2.4)
    assert values["the same / TRL with packing"] == pytest.approx(1.2)
    assert values["scoring / lm-evaluation-harness, LoRA"] == pytest.approx(3.5)
    assert values["4 answers of 4 methods / one, time"] == pytest.approx(1.4)
    assert values["one answer / transformers' generate, LoRA, time"] == pytest.approx(0.6)
    assert values["study of 8 short runs, one after another / several at once"] == pytest.approx(4)


def test_what_was_not_measured_is_said_to_be_so():
    assert all(target.value({}) is None for target in [*targets(), *OTHERS])
    assert "| yes |" not in blocks({})["targets"]


def test_a_failed_case_is_no_measurement(reports):
    rows = reports["throughput-1b-methods"]["rows"]
    rows[:] = [one for one in rows if one["method"] != "dora"]
    rows.append(cases("core", 8, 1024)[0].facts() | {"method": "dora", "label": "dora", "error": "OutOfMemoryError: x"})
    assert "| dora | OutOfMemoryError: x |" in blocks(reports)["1b-methods"]


def test_charts_have_the_curves(reports):
    drawn = charts(reports, "1b")
    experts = drawn["curves"][0]
    line = next(line for line in experts.lines if line.name == "MoSLD, compiled")
    assert list(line.x) == [2, 4, 8, 16, 32, 64] and line.y[-1] == pytest.approx(0.9 * 1.2)
    assert drawn["methods"][0].names[0] == "frozen"


def test_every_block_of_the_page_has_something_to_fill_it(reports, tmp_path):
    page = (PROJECT / "docs" / "benchmarks.md").read_text("utf-8")
    names = [match[2] for match in BLOCK.finditer(page)]
    (tmp_path / "docs" / "measurements").mkdir(parents=True)
    (tmp_path / "docs" / "benchmarks.md").write_text(page, "utf-8")
    for name, report in reports.items():
        lines = report.get("lines")
        text = json.dumps(report) if lines is None else "\n".join(map(json.dumps, lines))
        suffix = ".json" if lines is None else ".jsonl"
        (tmp_path / "docs" / "measurements" / f"{name}{suffix}").write_text(text, "utf-8")
    write(tmp_path / "docs" / "measurements", tmp_path / "docs", tmp_path)
    filled = (tmp_path / "docs" / "benchmarks.md").read_text("utf-8")
    assert len(names) > 8 and "Not measured yet." not in filled
    assert BLOCK.sub("", filled) == BLOCK.sub("", page)
    assert (tmp_path / "docs" / "figures" / "speed-1b-methods.png").stat().st_size > 10_000
    assert (tmp_path / "throughput.html").is_file()
