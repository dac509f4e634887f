"""Run the GPU tests on a CUDA machine and write what passed: ``make gpu-check``.

Needs torch, transformers, peft and pytest, neither the database's nor the pages' packages. The record is
``docs/gpu-checks.json``; ``make test`` fails when a registered preset has no passed test in it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs" / "gpu-checks.json"
ROOMS = ("tests/adapters", "tests/routing", "tests/training", "tests/evaluation", "tests/chat", "tests/fusion")
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "safetensors",
    "numpy",
    "pydantic",
    "bitsandbytes",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record is written")
    parser.add_argument("--commit", help="the commit, where the files are not a git checkout")
    parser.add_argument(
        "--again", nargs="*", metavar="TEST", help="only these tests, or what failed last time, into the same record"
    )
    parser.add_argument("--timeout", type=int, default=1500, help="seconds for all tests together")
    arguments = parser.parse_args()

    import torch

    if not torch.cuda.is_available():
        print("There is no CUDA device: the GPU tests would all skip.", file=sys.stderr)
        return 1
    began = time.monotonic()
    before = {} if arguments.again is None else read_outcomes(RECORD)
    chosen = arguments.again or sorted(name for name, outcome in before.items() if outcome == "failed")
    outcomes, code = run_tests(arguments.timeout, chosen)
    record = make_record(before | outcomes, arguments.commit or head(), torch)
    record["seconds"] = round(time.monotonic() - began)
    if before:
        record["again"] = {"tests": sorted(outcomes), "rest": json.loads(RECORD.read_text("utf-8"))["commit"]}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{len(record['passed'])} passed, {len(record['failed'])} failed; wrote {arguments.out}")
    missing = [name for name, passed in record["presets"].items() if not passed]
    if missing:
        print(f"No passed GPU test names these presets: {', '.join(missing)}", file=sys.stderr)
    return 1 if code or record["failed"] or missing else 0


def read_outcomes(path: Path) -> dict[str, str]:
    """What a record says of each test."""
    record = json.loads(path.read_text("utf-8"))
    return dict.fromkeys(record["passed"], "passed") | dict.fromkeys(record["failed"], "failed")


def run_tests(timeout: int, chosen: list[str]) -> tuple[dict[str, str], int]:
    """Test id -> passed, failed or skipped, and pytest's exit code; ``chosen`` tests, or all of them."""
    rooms = chosen or [room for room in ROOMS if (ROOT / room).is_dir()]
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-rf", f"--junitxml={report}", *rooms]
        code = subprocess.run(command, cwd=ROOT, timeout=timeout, check=False).returncode
        if not report.is_file():
            return {}, code or 1
        return outcomes_of(ElementTree.parse(report)), code


def outcomes_of(report: ElementTree.ElementTree) -> dict[str, str]:
    """The outcome of every test in a JUnit report."""
    found = {}
    for case in report.iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        tags = {child.tag for child in case}
        found[name] = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
    return found


def make_record(outcomes: dict[str, str], commit: str, torch: Any) -> dict[str, Any]:
    """A preset counts as checked when a passed test names it as a parameter and none that names it failed."""
    sys.path.insert(0, str(ROOT))
    from core.adapters.methods import presets

    passed = sorted(name for name, outcome in outcomes.items() if outcome == "passed")
    failed = sorted(name for name, outcome in outcomes.items() if outcome == "failed")
    return {
        "commit": commit,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "gpu": torch.cuda.get_device_name(0),
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda, **versions()},
        "presets": {name: names(name, passed) and not names(name, failed) for name in presets()},
        "passed": passed,
        "failed": failed,
    }


def names(preset: str, tests: list[str]) -> bool:
    """Whether any of the tests has the preset among its parameters: ``test_compiles[mosld-bf16]``."""
    return any(preset in test.partition("[")[2].rstrip("]").split("-") for test in tests)


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def head() -> str:
    try:
        command = ["git", "rev-parse", "HEAD"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
