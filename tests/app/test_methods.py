"""``methods`` of the command line: options with units, gates, tasks, and a formula that is what is counted."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import app
from core import catalog, known_shapes, method_facts
from core.adapters.cells import Cell, Site
from core.adapters.methods import presets, resolve
from core.adapters.words import WORDS
from core.schema import MethodSpec, ModelSpec

COUNTED = [name for name in presets() if name != "split"]
# Numbers that have no unit: scales, temperatures, shares of a whole.
BARE = {"alpha", "share", "beta", "condition", "temperature", "std", "noise"}
BARE |= {"token_scale", "prompt_scale", "sharpness"}


def said(*words: str) -> Any:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def listed() -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(said("methods", "--json"))}


def test_every_method_is_listed_with_what_is_known_of_it(listed: dict[str, dict[str, Any]]):
    assert set(listed) == set(presets())
    for name, one in listed.items():
        preset = presets()[name]
        assert (one["title"], one["summary"], one["badge"]) == (preset.title, preset.summary, preset.badge)
        assert one["unit"] in ("token", "sample", "none", None) and (one["unit"] is None) == (name == "split")
        assert (one["formula"] is None) == (name == "split")
    assert listed["mosld"]["unit"] == "token" and not listed["mosld"]["needs_tasks"]
    assert listed["mtl_lora"]["tasks"] == "always" and listed["moa"]["tasks"] == "training"
    assert listed["lora"]["unit"] == "none" and listed["lora"]["formula"] == "r * in + r * out"
    assert {"moa", "mtl_lora", "mor1e", "mixlora", "moelora"} <= {n for n, one in listed.items() if one["badge"]}


def test_every_option_says_type_default_bounds_help_and_unit(listed: dict[str, dict[str, Any]]):
    for name, one in listed.items():
        for option in one["options"]:
            assert {"name", "type", "default", "bounds", "choices", "help", "unit", "range"} <= set(option)
            number = option["type"] in ("integer", "number", "integers")
            assert not number or option["unit"] or option["name"] in BARE, (name, option["name"])
    units = {option["name"]: option["unit"] for option in listed["mosld"]["options"]}
    assert (
        units["dropout"] == "probability" and units["experts"] == "experts" and units["balance"] == "weight of a loss"
    )
    ranges = {option["name"]: option["range"] for option in listed["mosld"]["options"]}
    assert (ranges["dropout"], ranges["rank"], ranges["init"]) == ("≥ 0, < 1", "1 to 1024", "gaussian | kaiming")


def test_one_method_is_printed_so_that_it_can_be_read():
    text = said("methods", "malora")
    for part in ("MALoRA (malora)", "ceil(down.share * E * r)", "in: inputs", "E = 8, r = 12", "range", "probability"):
        assert part in text
    assert "interpretation" in said("methods", "moa") and "interpretation" not in text
    assert "parameters: E * r * out" in said("methods", "split")


def evaluated(formula: str, site: Site, cell: Cell) -> int:
    """The formula at one projection, with the options of its words."""
    words = {"down": cell.down, "gate": cell.gate, "up": cell.up}
    known = {"E": site.experts, "r": cell.rank, "tasks": site.tasks, "first": int(site.leads)}
    known |= {"inputs": site.in_features, "outputs": site.out_features, "ceil": lambda x: math.ceil(x - 1e-6)}
    text = re.sub(r"\b(down|gate|up)\.(\w+)", lambda m: str(getattr(words[m[1]], m[2])), formula)
    text = re.sub(r"\bin\b", "inputs", re.sub(r"\bout\b", "outputs", text))
    return eval(text, {"__builtins__": {}}, known)


VARIANTS = [
    *((name, {}) for name in COUNTED),
    ("mosld", {"experts": 1}),
    ("moa", {"train_experts": False}),
    ("mode", {"rank": 8, "expert_rank": 4}),
    ("mor1e", {"clusters": 5}),
    ("mor1e", {"pairing": "one-to-one", "down_vectors": 2, "router": False}),
    ("mtl_lora", {"diagonal": True}),
    *(("mixlora", {"mode": mode}) for mode in ("input", "shared", "random")),
    ("malora", {"share": 0.25, "enlarge_rank": False}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_the_formula_is_what_is_counted(name: str, options: dict[str, Any], tmp_path: Path):
    method = MethodSpec(name=name, options=options)
    (cell,) = resolve(method)
    formula, _ = method_facts.parameters(cell)
    for base in (catalog.shapes(ModelSpec(), tmp_path), known_shapes.MISTRAL_7B):
        sites = catalog.sites(method, base, tasks=3)
        assert sites and [evaluated(formula, site, cell) for site in sites] == [site.parameters() for site in sites]


def test_every_word_has_a_formula():
    for known in WORDS.values():
        for word in known.values():
            assert word.formula and word().expression
