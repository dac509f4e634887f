"""The catalogue: descriptions derived from the options, and counts that equal the built model's."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from adapters_support import MATRIX, TASKS, made, tiny, tiny_gpt2, tiny_qwen, trainable

from core import catalog
from core.adapters.methods import presets
from core.adapters.words import WORDS
from core.errors import ConfigurationError, NotFoundError
from core.home import PROJECT
from core.memory import WORKSPACE
from core.schema import MethodSpec, ModelSpec, TrainSpec


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny().config.save_pretrained(folder)
    return catalog.shapes(ModelSpec(base=str(folder)), folder / "cache")


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.id)
def test_the_count_before_launch_equals_the_built_model(base, row):
    built = sum(parameter.numel() for parameter in trainable(made(row)).values())
    assert catalog.trainable_parameters(row.spec, base, len(TASKS)) == built > 0


@pytest.mark.parametrize("make", [tiny, tiny_qwen, tiny_gpt2])
def test_shapes_are_those_of_the_model(make, tmp_path):
    model = make()
    model.config.save_pretrained(tmp_path)
    found = catalog.shapes(ModelSpec(base=str(tmp_path)), tmp_path / "cache")
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.layers == 3 and found.vocabulary == 64
    assert [line.name for line in found.linears if line.head] == ["lm_head"]
    row = MATRIX[1]
    built = sum(p.numel() for p in trainable(made(row, make())).values())
    assert catalog.trainable_parameters(row.spec, found) == built


def test_shapes_are_read_once(base, tmp_path, monkeypatch):
    tiny().config.save_pretrained(tmp_path)
    model = ModelSpec(base=str(tmp_path))
    first = catalog.shapes(model, tmp_path)
    monkeypatch.setattr(catalog.subprocess, "run", lambda *a, **k: pytest.fail("read again"))
    assert catalog.shapes(model, tmp_path) == first


def test_the_shapes_of_the_bundled_base_come_along(tmp_path, monkeypatch):
    shipped = catalog.shapes(ModelSpec(), tmp_path / "unused")
    assert not (tmp_path / "unused").exists(), "write its shapes into assets/shapes again"
    monkeypatch.setattr(catalog, "SHIPPED_SHAPES", tmp_path / "nothing")
    assert catalog.shapes(ModelSpec(), tmp_path / "cache") == shipped


def test_a_config_that_is_no_language_model_is_explained(tmp_path):
    with pytest.raises(NotFoundError, match=r"config\.json"):
        catalog.shapes(ModelSpec(base=str(tmp_path)), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(ConfigurationError, match="causal language model"):
        catalog.shapes(ModelSpec(base=str(tmp_path)), tmp_path)


def test_methods_describe_every_option_of_every_preset():
    described = {method["name"]: method for method in catalog.methods()}
    assert set(described) == set(presets()) and next(iter(described)) == "lora"
    for name, preset in presets().items():
        options = {option["name"]: option for option in described[name]["options"]}
        assert set(options) == set(preset.options.model_fields)
        assert all(option["help"] and option["type"] != "json" for option in options.values())
        assert described[name]["title"] and described[name]["summary"]
        defaults = {key: option["default"] for key, option in options.items() if not option["required"]}
        if name != "split":
            assert preset.options.parse(defaults) == preset.options()
    top_k = next(option for option in described["mosld"]["options"] if option["name"] == "top_k")
    assert (top_k["type"], top_k["default"], top_k["bounds"]) == ("integer", 2, {"minimum": 1, "maximum": 1024})
    dropout_on = next(option for option in described["mosld"]["options"] if option["name"] == "dropout_on")
    assert dropout_on["choices"] == ["down", "up", "none"]
    assert json.dumps(catalog.methods()) and json.dumps(catalog.words()) and json.dumps(catalog.cell_options())


def test_words_and_cells_are_described():
    described = catalog.words()
    assert {part: {word["name"] for word in known} for part, known in described.items()} == {
        part: set(known) for part, known in WORDS.items()
    }
    assert all(word["summary"] and "word" not in {o["name"] for o in word["options"]} for word in described["gate"])
    kinds = {option["name"]: option["type"] for option in catalog.cell_options()}
    assert kinds["down"] == kinds["gate"] == "word" and kinds["experts"] == "integers" and kinds["layers"] == "ranges"
    assert all(option["help"] for option in catalog.cell_options())


def test_memory_grows_with_what_costs_memory(base):
    def estimate(method="mosld", model=None, **train):
        spec = MethodSpec(name=method) if method else None
        return catalog.memory(spec, model or ModelSpec(base="x"), base, TrainSpec(**train))

    usual = estimate()
    assert usual.total == usual.weights + usual.adapter + usual.gradients + usual.optimiser + usual.activations
    fixed = WORKSPACE[True]
    assert estimate(batch_size=32).activations - fixed == pytest.approx(2 * (usual.activations - fixed), rel=0.05)
    assert estimate(activation_checkpointing=True).activations < usual.activations
    assert estimate(model=ModelSpec(base="x", dtype="float32")).weights == 2 * usual.weights
    assert estimate(model=ModelSpec(base="x", quantization="4bit")).weights < 0.8 * usual.weights
    assert estimate("base").adapter == 0
    assert "estimate" in usual.describe()


def test_the_catalogue_and_the_words_need_no_torch():
    code = (
        "import sys; from core import catalog; import core.adapters.peft_lora, core.routing.statistics; "
        "catalog.methods(); catalog.words(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0
