"""Bases that cannot work are refused before a run is queued, with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import transformers as hf

from core import catalog
from core.base_files import TRUSTED, check_base, code_name
from core.errors import ConfigurationError
from core.home import Home
from core.models import resolve_base
from core.planning import measure
from core.schema import ModelSpec
from tests.support.bases import DECODERS, ENCODER_DECODER
from tests.support.tiny import tiny_base
from tests.support.training import toy_spec

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("bases") / "base")


def with_config(base: Path, target: Path, config: hf.PretrainedConfig, architecture: str | None) -> Path:
    """The base's files under another config, as a folder of such a model would look."""
    shutil.copytree(base, target)
    config.architectures = [architecture] if architecture else None
    config.save_pretrained(target)
    return target


KINDS = {
    "encoder-decoder": (
        lambda: ENCODER_DECODER.made().config,
        "T5ForConditionalGeneration",
        "an encoder-decoder model .*: it reads a prompt in one half and writes the answer in the other",
    ),
    "encoder": (lambda: hf.BertConfig(**SMALL), "BertForMaskedLM", "an encoder fills gaps in a text and writes none"),
    "images": (
        lambda: hf.ViTConfig(**SMALL),
        "ViTForImageClassification",
        "not a causal language model: it is built for images",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_decoder_of_text_is_refused_by_its_folder(kind: str, base: Path, tmp_path: Path):
    config, architecture, says = KINDS[kind]
    folder = with_config(base, tmp_path / "model", config(), architecture)
    with pytest.raises(ConfigurationError, match=says) as caught:
        resolve_base(ModelSpec(base=str(folder)))
    assert "ForCausalLM" in caught.value.hint
    with pytest.raises(ConfigurationError, match=says):  # what planning asks
        measure(toy_spec(folder), Home(tmp_path), 2)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (lambda: ENCODER_DECODER.made().config, r"is an encoder-decoder model \(t5\)"),
        (lambda: hf.BertConfig(**SMALL), r"is an encoder \(bert\): it fills gaps"),
        (lambda: hf.ViTConfig(**SMALL), "no causal language model that transformers can build"),
    ],
    ids=["encoder-decoder", "encoder", "images"],
)
def test_a_config_alone_is_enough_to_refuse(config, says: str, tmp_path: Path):
    """Of a Hub model nothing but the config is there before launch, and it may not name an architecture."""
    made = config()
    made.architectures = None
    made.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigurationError, match=says):
        catalog.shapes(ModelSpec(base=str(tmp_path / "model")), tmp_path / "cache")


CODE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

class Config(PretrainedConfig):
    model_type = "no_linear"
    hidden_size, num_hidden_layers, vocab_size = 8, 1, 16

class Model(PreTrainedModel):
    config_class = Config
    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(16, 16)
        self.post_init()
    def forward(self, input_ids=None, **_):
        return self.table(input_ids)
"""


@pytest.fixture
def own_code(base: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(base, tmp_path / "own"))
    auto = {"AutoConfig": "modelling.Config", "AutoModelForCausalLM": "modelling.Model"}
    config = {"model_type": "no_linear", "architectures": ["ModelForCausalLM"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modelling.py").write_text(CODE)
    return folder


def test_code_of_its_own_is_run_only_where_that_is_allowed(own_code: Path, tmp_path: Path):
    with pytest.raises(ConfigurationError, match="needs Python code .*trust_remote_code"):
        check_base(own_code, ModelSpec(base=str(own_code)))
    with pytest.raises(ConfigurationError, match="trust_remote_code"):
        catalog.shapes(ModelSpec(base=str(own_code)), tmp_path / "cache")


def test_a_base_without_linear_layers_is_refused(own_code: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    spec = ModelSpec(base=str(own_code), trust_remote_code=True)
    monkeypatch.setenv(TRUSTED, code_name(own_code, spec))
    with pytest.raises(ConfigurationError, match="own has no linear layers that an adapter could stand on"):
        catalog.shapes(spec, tmp_path / "cache")


def test_a_model_that_transformers_knows_needs_no_code_of_its_own(base: Path, tmp_path: Path):
    """Published folders of Phi-3, Falcon and others still carry the code of their first days."""
    phi = next(one for one in DECODERS if one.id == "phi3")
    folder = with_config(base, tmp_path / "phi", phi.made().config, "Phi3ForCausalLM")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    check_base(folder, ModelSpec(base=str(folder)))
    assert catalog.shapes(ModelSpec(base=str(folder)), tmp_path / "cache").projections == list(phi.projections)
