"""What the README tells people to type exists, parses, and, where it is quick, runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
QUICK = ("upload assets/demo", "datasets demo", "methods", "train recipes/demo.yaml --check")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def lines() -> list[list[str]]:
    return [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines() if line.strip()]


def commands() -> list[list[str]]:
    """The words behind ``python app.py``, of every line that starts with it."""
    return [words[2:] for words in lines() if words[:2] == ["python", "app.py"]]


def test_every_line_is_make_or_the_studio():
    assert commands()
    assert {tuple(words[:1]) for words in lines()} == {("make",), ("python",)}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for words in lines():
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.M), words


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_parse(words: list[str]):
    import typer

    from app.cli import app

    group = typer.main.get_command(app)
    with group.make_context("app", words, resilient_parsing=True) as context:
        name, command, rest = group.resolve_command(context, words)
        assert command.make_context(name, list(rest), parent=context).params is not None


def test_quick_commands_run_in_order(tmp_path: Path):
    home = tmp_path / "home"
    quick = [words for words in commands() if " ".join(words).startswith(QUICK)]
    assert len(quick) >= 5
    for words in quick:
        command = [sys.executable, "app.py", "--home", str(home), *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (words, done.stderr)
        assert done.stdout.strip(), words


def test_python_blocks_run(tmp_path: Path):
    for block in blocks("python"):
        code = block.replace("out/home", str(tmp_path / "home"))
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr


def test_the_run_in_the_readme_is_valid():
    from core.schema import RunSpec

    for block in blocks("yaml"):
        assert RunSpec.parse(yaml.safe_load(block)).method.name == "mosld"


def links(path: Path) -> list[Path]:
    targets = re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8"))
    return [path.parent / target for target in targets if not target.startswith("http")]


@pytest.mark.parametrize("page", ["README.md", "docs/README.md"])
def test_links_and_pictures_exist(page: str):
    assert [str(target) for target in links(ROOT / page) if not target.exists()] == []


def test_every_page_is_in_the_index():
    listed = {target.name for target in links(ROOT / "docs" / "README.md")}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_are_valid_runs(recipe: Path):
    from core.adapters.methods import resolve
    from core.schema import RunSpec

    spec = RunSpec.from_yaml(recipe.read_text("utf-8"))
    assert resolve(spec.method)
