"""Exported folders load where this checkout is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from adapters_support import MATRIX, batch, made, tiny
from safetensors.torch import load_file, save_file

from core.adapters.attach import load, save
from core.adapters.export import PACKAGE, export
from core.errors import ConfigurationError, NotFoundError
from core.home import PROJECT

BY_ID = {row.id: row for row in MATRIX}

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from safetensors.torch import load_file, save_file
from tessera_adapter import load

model = load(sys.argv[2]).eval()
data = load_file(sys.argv[3])
with torch.no_grad():
    save_file({"logits": model(**data).logits}, sys.argv[4])
assert not any(name == "core" or name.startswith("core.") for name in sys.modules)
"""


@pytest.mark.parametrize("id", ["mosld", "split-per-projection", "full-embeddings"])
def test_an_exported_folder_loads_without_this_checkout(tmp_path, id):
    tiny().save_pretrained(tmp_path / "base")
    data = {key: value for key, value in batch().items() if key != "labels"}
    model = made(BY_ID[id], warm=True).eval()
    with torch.no_grad():
        expected = model(**data).logits
    folder = export(model, tmp_path / "exported")
    save_file(data, tmp_path / "batch.safetensors")
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = [folder, tmp_path / "base", tmp_path / "batch.safetensors", tmp_path / "logits.safetensors"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "script.py"), *map(str, arguments)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], expected)


def test_an_exported_folder_holds_neither_checkout_paths_nor_presets(tmp_path):
    folder = export(made(BY_ID["split-task"]), tmp_path / "exported")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", PACKAGE,
    }  # fmt: skip
    assert not any("methods" in path.parts or "__pycache__" in path.parts for path in files)
    text = "".join(path.read_text("utf-8") for path in files if path.suffix in (".py", ".md", ".json"))
    assert str(PROJECT) not in text
    assert "0 alpha, 1 beta" in (folder / "README.md").read_text("utf-8")


def test_a_saved_folder_can_be_exported_and_loaded_here_again(tmp_path):
    model = made(BY_ID["mosld"], warm=True).eval()
    save(model, tmp_path / "saved")
    folder = export(tmp_path / "saved", tmp_path / "exported")
    again = load(tiny(), folder, name="again").eval()
    assert torch.equal(again(**batch()).logits, model(**batch()).logits)


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("owner/name", 'load("owner/name")'),
        ("/home/me/bases/small", 'load("path/to/small")'),
        ("tessera-base", "`tessera-base`"),
    ],
)
def test_the_readme_names_the_base_so_that_others_find_it(tmp_path, base, said):
    save(made(BY_ID["mosld"]), tmp_path / "saved")
    folder = export(tmp_path / "saved", tmp_path / "exported", base=base)
    text = (folder / "README.md").read_text("utf-8")
    assert said in text and "/home/me" not in text
    assert json.loads((folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"] == base


def test_exports_never_overwrite_and_need_an_adapter(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not empty"):
        export(made(BY_ID["lora"]), tmp_path / "full")
    with pytest.raises(NotFoundError):
        export(tmp_path / "missing", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_a_failed_save_leaves_no_half_folder(tmp_path, monkeypatch):
    model = made(BY_ID["lora"])
    monkeypatch.setattr("core.adapters.attach.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(model, tmp_path / "adapter")
    assert list((tmp_path / "adapter").iterdir()) == []


def test_the_config_is_plain_json(tmp_path):
    save(made(BY_ID["split-per-projection"]), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "TESSERA" and config["tasks"] == ["alpha", "beta"] and len(config["cells"]) == 3
    assert config["cells"][1]["gate"] == {"word": "task", "top_k": None, "renormalise": True, "temperature": 1.0}
