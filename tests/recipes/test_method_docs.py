"""The pages about methods: complete, fresh, their links and figures there, their counts those of the papers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from core import method_pages
from core.adapters.methods import presets, resolve
from core.errors import NotFoundError
from core.home import PROJECT
from core.method_counts import EXAMPLE_SPLIT, PUBLISHED
from core.overrides import parse
from core.schema import MethodSpec
from recipes import method_docs
from recipes.method_figures import style

HEADINGS = (
    "Equation",
    "What is shared, what is each expert's own",
    "When to use it, and when not",
    "Options",
    "Parameters",
    "What is known, what is interpretation",
    "Beside its neighbours",
    "Train it",
)
DOCS = PROJECT / "docs"
PAGES = sorted([DOCS / "methods.md", *(DOCS / "methods").glob("*.md")])


def test_every_method_has_a_page_and_every_page_a_method():
    assert {path.stem for path in (DOCS / "methods").glob("*.md")} == set(presets())


@pytest.mark.parametrize("name", presets())
def test_a_page_says_all_that_is_asked_of_one(name: str):
    page, text, preset = method_pages.page(name), method_pages.source(name), presets()[name]
    assert page.title == preset.title
    assert tuple(re.findall(r"^## (.+)$", text, re.M)) == HEADINGS
    assert all(page.sections.get(heading) for heading in HEADINGS if heading != "Parameters")
    assert [match[1] for match in method_pages.BLOCK.finditer(text)] == ["facts", "options", "parameters"]
    assert f"../figures/methods/{name}.svg" in text
    assert ("**interpretation**" in text) == bool(preset.badge)
    if preset.badge:
        assert "not read" in text.lower() or "could be read" in text, "what was not read is said"


def test_the_readme_names_every_method_and_marks_interpretations():
    text = (PROJECT / "README.md").read_text("utf-8")
    found = dict(re.findall(r"\(docs/methods/([\w-]+)\.md\)(\\\*)?", text))
    assert {name: bool(mark) for name, mark in found.items()} == {
        name: bool(preset.badge) for name, preset in presets().items()
    }


def test_what_code_knows_is_fresh():
    assert [str(path.relative_to(PROJECT)) for path in method_docs.stale()] == [], "python -m recipes.method_docs"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_and_figures_are_there(path: Path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text("utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target.partition("#")[0]).is_file(), target


@pytest.mark.parametrize("path", sorted(method_docs.FIGURES.glob("*.svg")), ids=lambda path: path.stem)
def test_figures_are_drawings_with_inks_for_day_and_night(path: Path):
    root = ElementTree.fromstring(path.read_text("utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("aria-label")
    assert "prefers-color-scheme:dark" in path.read_text("utf-8")


def test_every_word_that_is_drawn_has_its_colour_in_the_file():
    rules = style()
    for name in ("mosld", "mtl_lora", "mode"):
        text = (method_docs.FIGURES / f"{name}.svg").read_text("utf-8")
        used = set(re.findall(r"word-(\w+)", text.partition("</style>")[2]))
        assert used and all(f".word-{word}" in rules for word in used)


@pytest.mark.parametrize("one", PUBLISHED, ids=lambda one: f"{one.method}-{one.base}-{one.count}")
def test_a_setting_of_a_paper_has_the_count_of_the_paper(one):
    assert one.counted() == one.count


@pytest.mark.parametrize("name", presets())
def test_the_command_that_trains_it_is_one(name: str):
    block = re.search(r"## Train it\n.*?```sh\n(.*?)```", method_pages.source(name), re.S)[1]
    words = shlex.split(block)
    assert words[:4] == ["python", "app.py", "train", "recipes/demo.yaml"]
    changes = parse([words[words.index("--set") + 1]])
    method = MethodSpec.parse(changes["method"])
    assert method.name == name and resolve(method)


def test_the_example_of_a_split_is_the_one_that_is_drawn_and_counted():
    text = re.search(r"```yaml\n(.*?)```", method_pages.source("split"), re.S)[1]
    assert yaml.safe_load(text)["method"] == {"name": "split", "cells": EXAMPLE_SPLIT}


def test_the_studio_gets_sections_without_what_it_draws_itself():
    page = method_pages.page("mosld")
    text = "\n".join(page.sections.values())
    assert "<!--" not in text and "![" not in text and "Parameters" not in page.sections
    assert "(/methods?method=hydralora)" in text and ".md)" not in text


def test_a_method_without_a_page_is_told():
    for name in ("nothing", "../cli", ""):
        with pytest.raises(NotFoundError, match="no page"):
            method_pages.page(name)
