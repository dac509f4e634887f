"""``docs/adding-a-method.md`` alone is enough to add a word and a preset: its files are written and tested."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
import yaml

from core.adapters.methods import resolve
from core.home import PROJECT
from core.schema import MethodSpec

TEXT = (PROJECT / "docs" / "adding-a-method.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.slow
def test_the_worked_example_passes_the_matrix(tmp_path):
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "core", tmp_path / "core", ignore=ignore)
    shutil.copytree(PROJECT / "tests" / "adapters", tmp_path / "tests", ignore=ignore)
    shutil.copyfile(PROJECT / "pyproject.toml", tmp_path / "pyproject.toml")
    files = [path for path, _ in BLOCKS if path.endswith(".py")]
    assert len(files) == 3
    for path, code in BLOCKS:
        if path in files:
            assert not (tmp_path / path).exists()
            (tmp_path / path).write_text(code, "utf-8")
        else:
            support = tmp_path / "tests" / "adapters_support.py"
            row = f"PRESETS = [\n    {code.strip()},\n"
            support.write_text(support.read_text("utf-8").replace("PRESETS = [\n", row, 1))
    chosen = "(frozen-experts and not compilation) or every_preset or share_one_base"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "tests/test_matrix.py", "tests/test_catalog.py", "-k", chosen],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 15


def test_the_split_in_the_guide_is_one():
    method = yaml.safe_load(re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[1])["method"]
    cells = resolve(MethodSpec(**method))
    assert [cell.gate.word for cell in cells] == ["token", "task"] and cells[0].gate.balance == 0.001
