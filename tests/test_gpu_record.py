"""The record of the GPU tests: every registered preset was checked on a CUDA machine."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.gpu_check import names, outcomes_of
from core.adapters.methods import presets

RECORD = Path(__file__).resolve().parent.parent / "docs" / "gpu-checks.json"


def test_every_preset_passed_on_a_gpu():
    assert RECORD.is_file(), "run `make gpu-check` on a CUDA machine and commit docs/gpu-checks.json"
    checked = json.loads(RECORD.read_text("utf-8"))["presets"]
    missing = [name for name in presets() if not checked.get(name)]
    assert missing == [], f"run `make gpu-check` on a CUDA machine: {missing} have no passed test in {RECORD.name}"


def test_nothing_failed_and_the_record_says_what_ran():
    record = json.loads(RECORD.read_text("utf-8"))
    assert record["failed"] == []
    assert len(record["passed"]) >= len(record["presets"])
    assert record["versions"]["torch"] and record["versions"]["cuda"] and record["gpu"]
    assert len(record["commit"]) == 40


def test_the_record_is_made_from_what_pytest_reports():
    report = ElementTree.ElementTree(
        ElementTree.fromstring(
            '<testsuites><testsuite><testcase classname="tests.a.test_b" name="test_x[mosld-bf16]"/>'
            '<testcase classname="tests.a.test_b" name="test_x[lora-bf16]"><failure/></testcase>'
            '<testcase classname="tests.a.test_b" name="test_y"><skipped/></testcase></testsuite></testsuites>'
        )
    )
    assert outcomes_of(report) == {
        "tests/a/test_b.py::test_x[mosld-bf16]": "passed",
        "tests/a/test_b.py::test_x[lora-bf16]": "failed",
        "tests/a/test_b.py::test_y": "skipped",
    }


def test_a_preset_is_named_by_a_whole_parameter():
    assert names("lora", ["tests/a.py::test_x[lora-8]"])
    assert not names("lora", ["tests/a.py::test_x[molora-8]", "tests/a.py::test_lora"])
