"""Base models from elsewhere: what is broken, lies or brings code is refused with a remedy before it is loaded."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core import catalog
from core.base_files import TRUSTED, check_base, code_name
from core.data.templates import TextEncoder
from core.errors import ConfigurationError, StudioError
from core.home import PROJECT
from core.models import load_base, resolve_base
from core.schema import ModelSpec
from core.studio import Studio
from tests.support.training import toy_spec

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def index(folder: Path, *names: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {f"t{i}": name for i, name in enumerate(names)}}))


def header(folder: Path, tensors: dict[str, Any] | bytes, body: bytes = b"0000", length: int | None = None) -> None:
    told = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(told) if length is None else length) + told + body)


def tensor(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def cut(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights cut short": (cut, "broken or cut short"),
    "no weights in it": (lambda f: (f / WEIGHTS).write_bytes(b""), "broken or cut short"),
    "header longer than the file": (lambda f: header(f, {}, length=2**62), "broken or cut short"),
    "header is no JSON": (lambda f: header(f, b"{"), "broken or cut short"),
    "header is nested without end": (lambda f: header(f, b"[" * 200_000), "broken or cut short"),
    "a tensor of huge size": (lambda f: header(f, {"a": tensor([2**62], 0, 4)}), "broken or cut short"),
    "sizes that overflow": (lambda f: header(f, {"a": tensor([2**40, 2**40], 0, 4)}), "broken or cut short"),
    "tensors on one another": (
        lambda f: header(f, {"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}), "broken or cut short"
    ),
    "a hole between tensors": (
        lambda f: header(f, {"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, b"0" * 12), "broken or cut short"
    ),
    "a shard outside": (lambda f: index(f, "../other/model.safetensors"), "no safetensors file of its folder"),
    "an absolute shard": (lambda f: index(f, "/etc/passwd"), "no safetensors file of its folder"),
    "a shard that is a pickle": (lambda f: index(f, "pytorch_model.bin"), "no safetensors file of its folder"),
    "a shard with a null": (lambda f: index(f, "a\0.safetensors"), "no safetensors file of its folder"),
    "a shard that is no name": (lambda f: index(f, {"a": 1}), "no safetensors file of its folder"),
    "a missing shard": (lambda f: index(f, WEIGHTS, "b.safetensors"), "lacks 1 of 2"),
    "an index without weights": (lambda f: (f / INDEX).write_text("{}"), "names no weight files"),
    "an index that is a list": (lambda f: (f / INDEX).write_text("[1]"), "holds no settings"),
    "an index that is no JSON": (lambda f: (f / INDEX).write_text("{"), "not valid JSON"),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[]"), "holds no settings"),
    "a config in no encoding": (lambda f: (f / "config.json").write_bytes(b'{"a": "\xff"}'), "not valid JSON"),
    "a config nested without end": (lambda f: (f / "config.json").write_text("[" * 200_000), "not valid JSON"),
    "layers without end": (lambda f: config(f, num_hidden_layers=10**9), "num_hidden_layers 1000000000"),
    "no layers": (lambda f: config(f, num_hidden_layers=0), "num_hidden_layers 0"),
    "a negative width": (lambda f: config(f, hidden_size=-32), "hidden_size -32"),
    "a vocabulary without end": (lambda f: config(f, vocab_size=10**12), "vocab_size"),
    "a width that is a text": (lambda f: config(f, hidden_size="32; rm"), "hidden_size 32; rm"),
    "sizes in the text part": (lambda f: config(f, text_config={"num_hidden_layers": 10**9}), "num_hidden_layers"),
    "architectures that are no list": (lambda f: config(f, architectures="LlamaForCausalLM"), "no list of names"),
    "bits that are no settings": (lambda f: config(f, quantization_config="4bit"), "quantization_config"),
    "an adapter beside the base": (
        lambda f: (f / "adapter_config.json").write_text('{"base_model_name_or_path": "other/base"}'),
        "adapter beside the base",
    ),
    "a kernel of the Hub": (lambda f: config(f, attn_implementation="evil/kernel"), "kernel from the Hub"),
    "code of another repository": (
        lambda f: config(f, auto_map={"AutoModelForCausalLM": "evil/code--modelling.Model"}), "another repository"
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no fast tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_is_a_sentence_with_a_remedy(what: str, folder: Path, studio: Studio):
    """Through the folder's check, through planning as pages and commands do it, and never with a traceback."""
    change, says = BROKEN[what]
    change(folder)
    with pytest.raises(ConfigurationError) as caught:
        check_base(folder, ModelSpec(base=str(folder)))
    assert says in str(caught.value) and caught.value.hint
    with pytest.raises(StudioError):
        studio.encoder(str(folder))


def test_a_command_says_the_same_sentence(folder: Path, tmp_path: Path):
    cut(folder)
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"thing {i},{'ab'[i % 2]}\n" for i in range(40)))
    recipe = tmp_path / "run.yaml"
    recipe.write_text(f"model: {{base: {folder}}}\ntasks: [{{dataset: {rows}}}]\nmethod: {{name: lora}}\n")
    command = [
        sys.executable,
        str(PROJECT / "app.py"),
        "--home",
        str(tmp_path / "home"),
        "train",
        str(recipe),
        "--check",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "broken or cut short" in done.stderr and "Traceback" not in done.stderr


def test_a_config_that_lies_about_its_weights_is_refused_when_they_are_loaded(folder: Path):
    config(folder, num_hidden_layers=3)
    with pytest.raises(ConfigurationError, match="lack .* tensors"):
        load_base(ModelSpec(base=str(folder)), "cpu")


@pytest.mark.parametrize("changes", [{"hidden_size": 48}, {"num_attention_heads": 3}, {"rms_norm_eps": "x"}])
def test_a_config_that_does_not_fit_its_weights_is_a_sentence(changes: dict[str, Any], folder: Path):
    config(folder, **changes)
    with pytest.raises(ConfigurationError):
        load_base(ModelSpec(base=str(folder)), "cpu")


def test_building_a_model_from_its_config_ends(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(catalog, "SHAPES_SECONDS", 0.05)
    with pytest.raises(ConfigurationError, match="not built in"):
        catalog.shapes(ModelSpec(base=str(folder)), tmp_path / "cache")


# Code that comes with weights


@pytest.fixture
def own_code(folder: Path, opened: Path) -> Path:
    """Its code makes a folder when it is imported."""
    config(folder, model_type="own", auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(opened)!r})\n")
    return folder


def test_code_runs_only_where_this_revision_of_it_was_allowed(
    own_code: Path, opened: Path, tmp_path: Path, monkeypatch
):
    wished = ModelSpec(base=str(own_code), trust_remote_code=True)
    for spec in (ModelSpec(base=str(own_code)), wished):
        for ask in (resolve_base, lambda one: catalog.shapes(one, tmp_path / "cache")):
            with pytest.raises(ConfigurationError, match="Python code") as caught:
                ask(spec)
            assert f"{TRUSTED}={own_code}@" in caught.value.hint
    monkeypatch.setenv(TRUSTED, f"other/model@{'0' * 40}, {code_name(own_code, wished)}")
    assert resolve_base(wished) == own_code
    with pytest.raises(ConfigurationError):  # nobody wished for it
        resolve_base(ModelSpec(base=str(own_code)))
    (own_code / "code.py").write_text("print('another revision')")
    with pytest.raises(ConfigurationError, match="not allowed for this revision"):
        resolve_base(wished)
    assert not opened.exists()


def test_code_from_the_hub_is_named_by_its_commit(own_code: Path, tmp_path: Path, monkeypatch):
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("a" * 40)
    shutil.copytree(own_code, snapshot)
    spec = ModelSpec(base="owner/name", trust_remote_code=True)
    assert code_name(snapshot, spec) == f"owner/name@{'a' * 40}"
    with pytest.raises(ConfigurationError, match="not allowed for this revision"):
        check_base(snapshot, spec)
    monkeypatch.setenv(TRUSTED, code_name(snapshot, spec))
    check_base(snapshot, spec)


# Tokenizers


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"model": {"type": "Unknown"}}'),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "[" * 200_000),
    ],
)
def test_a_broken_tokenizer_is_a_sentence(name: str, content: str, folder: Path, studio: Studio):
    (folder / name).write_text(content)
    with pytest.raises(ConfigurationError):
        TextEncoder(folder)
    with pytest.raises(StudioError):
        studio.encoder(str(folder))


# Adapters


def adapter(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "tessera-base", **changes}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    header_of = {"x.lora_A.weight": tensor([1], 0, 4)}
    told_bytes = json.dumps(header_of).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(told_bytes)) + told_bytes + b"0000")
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"r": "many"},
        {"r": -4},
        {"r": 10**12},
        {"peft_type": "TESSERA", "cells": "all"},
        {"peft_type": "TESSERA", "cells": [{"modules": 5}]},
        {"peft_type": "TESSERA", "cells": [{"modules": "all-linear", "rank": 10**9}]},
        {"peft_type": "PROMPT_TUNING"},
        {"peft_type": 7},
        {"base_model_name_or_path": ""},
    ],
)
def test_an_adapter_with_settings_that_no_adapter_has_is_refused(
    changes: dict[str, Any], tmp_path: Path, studio: Studio
):
    with pytest.raises(StudioError):
        studio.import_(adapter(tmp_path / "adapter", **changes))
    assert studio.runs() == []


@pytest.mark.parametrize("length", [2**62, 10**9, 3])
def test_an_adapter_whose_header_lies_is_refused(length: int, tmp_path: Path, studio: Studio):
    folder = adapter(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", length) + b'{"a": 1}')
    with pytest.raises(StudioError, match="no readable safetensors"):
        studio.import_(folder)
    assert studio.runs() == []


def test_an_adapter_of_another_base_is_refused_when_it_is_put_on(tmp_path: Path, tiny: Path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from core.adapters.attach import load
    from tests.support.tiny import tiny_base

    wide = AutoModelForCausalLM.from_pretrained(tiny_base(tmp_path / "wide", hidden=48))
    get_peft_model(wide, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(StudioError, match="this base needs"):
        load(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), tmp_path / "adapter", name="x")


def test_a_run_on_a_broken_base_is_refused_before_it_is_queued(folder: Path, studio: Studio, tmp_path: Path):
    cut(folder)
    rows = tmp_path / "toy.csv"
    rows.write_text("text,label\n" + "".join(f"thing {i},{'ab'[i % 2]}\n" for i in range(40)))
    studio.upload(rows, name="toy")
    with pytest.raises(ConfigurationError, match="broken or cut short"):
        studio.submit(toy_spec(folder))
    assert studio.runs() == []
