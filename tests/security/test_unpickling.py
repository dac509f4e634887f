"""Nothing from elsewhere is unpickled or run: the sources are searched, and pickles are tried everywhere."""

from __future__ import annotations

import ast
import io
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.base_files import check_base
from core.data.upload import preview
from core.errors import ConfigurationError, StudioError
from core.home import PROJECT
from core.jobs.routing_files import read_arrays
from core.models import load_base
from core.routing.snapshot import RoutingSnapshot
from core.schema import ModelSpec, RunSpec
from core.studio import Studio

# What may not be imported, what may not be called, and what a call must say.
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "joblib",
    "cloudpickle",
    "shelve",
    "marshal",
    "datasets",
    "jsonpickle",
}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pd.read_pickle", "pandas.read_pickle",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.hub.load", "torch.jit.load",
    "shutil.unpack_archive", "pty.spawn",
}  # fmt: skip
SAYS: dict[str, dict[str, Any]] = {
    "torch.load": {"weights_only": True},
    "np.load": {"allow_pickle": False},
    "numpy.load": {"allow_pickle": False},
    "extractall": {"filter": "data"},
}
WEIGHTS = ("AutoModel", "AutoModelForCausalLM", "PeftModel")


@cache
def nodes() -> list[tuple[Path, ast.AST]]:
    """Every call and import of the studio's own code, with its file."""
    paths = [path for room in ("app", "core", "storage", "recipes") for path in sorted((PROJECT / room).rglob("*.py"))]
    return [
        (path.relative_to(PROJECT), node)
        for path in [PROJECT / "app.py", *paths]
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call | ast.Import | ast.ImportFrom)
    ]


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Place, dotted name and node of every call."""
    for path, node in nodes():
        if isinstance(node, ast.Call):
            yield f"{path}:{node.lineno}", ast.unparse(node.func), node


def keywords(node: ast.Call) -> dict[str, Any]:
    return {one.arg: one.value.value for one in node.keywords if one.arg and isinstance(one.value, ast.Constant)}


def test_the_sources_open_no_pickle_and_run_no_text():
    found = []
    for place, name, node in calls():
        given = keywords(node)
        if name in CALLS:
            found.append(f"{place} calls {name}")
        for short, wanted in SAYS.items():
            if (name == short or name.endswith(f".{short}")) and wanted.items() - given.items():
                found.append(f"{place} calls {name} without {wanted}")
        if given.get("shell") is True or given.get("allow_pickle") is True or given.get("trust_remote_code") is True:
            found.append(f"{place} says shell, allow_pickle or trust_remote_code")
        if name == "yaml.load" and not place.startswith("core/yaml_text.py"):
            found.append(f"{place} calls yaml.load")
    assert found == []


def test_the_sources_import_nothing_that_unpickles():
    found = []
    for path, node in nodes():
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        found += [f"{path} imports {name}" for name in names if name.split(".")[0] in MODULES]
    assert found == []


def test_weights_that_people_name_are_loaded_as_safetensors_alone():
    found = []
    for place, name, node in calls():
        head, _, last = name.rpartition(".")
        loads = last == "from_pretrained" and head.split(".")[-1] in WEIGHTS and not place.startswith("recipes/")
        if loads and keywords(node).get("use_safetensors") is not True:
            found.append(place)
    assert found == []


def test_the_yaml_reader_is_a_safe_one():
    import yaml

    from core import yaml_text

    assert issubclass(yaml_text._Loader, yaml.SafeLoader | yaml.CSafeLoader)


def test_the_bomb_goes_off_when_it_is_opened(tmp_path: Path):
    """The tests below would see it."""
    from tests.security.conftest import Bomb

    pickle.loads(pickle.dumps(Bomb(tmp_path / "the code ran")))
    assert (tmp_path / "the code ran").is_dir()


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "tf_model.h5", "flax_model.msgpack"])
def test_a_base_of_pickles_alone_is_refused_with_reason_and_remedy(name: str, folder: Path, bomb: Callable[[], bytes]):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(bomb())
    with pytest.raises(ConfigurationError, match="run any code.*safetensors"):
        check_base(folder, ModelSpec(base=str(folder)))
    with pytest.raises(ConfigurationError):  # past the check, loading itself takes safetensors alone
        load_base(ModelSpec(base=str(folder)), "cpu", folder=folder)


def test_pickles_beside_safetensors_are_left_alone(folder: Path, bomb: Callable[[], bytes]):
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "tokenizer.pkl"):
        (folder / name).write_bytes(bomb())
    load_base(ModelSpec(base=str(folder)), "cpu")


def test_safetensors_that_are_a_pickle_are_refused(folder: Path, bomb: Callable[[], bytes]):
    (folder / "model.safetensors").write_bytes(bomb())
    for attempt in (lambda: check_base(folder, ModelSpec(base=str(folder))), lambda: load(folder)):
        with pytest.raises(ConfigurationError):
            attempt()


def load(folder: Path) -> None:
    load_base(ModelSpec(base=str(folder)), "cpu", folder=folder)


def test_a_tokenizer_that_is_a_pickle_is_refused(folder: Path, studio: Studio, bomb: Callable[[], bytes]):
    (folder / "tokenizer.json").write_bytes(bomb())
    with pytest.raises(StudioError):
        studio.encoder(str(folder))


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_a_pickled_adapter_is_refused(name: str, tmp_path: Path, studio: Studio, bomb: Callable[[], bytes]):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "base_model_name_or_path": "b"})
    )
    (folder / name).write_bytes(bomb())
    with pytest.raises(StudioError):
        studio.import_(folder)


def test_pickles_beside_an_adapter_do_not_come_in(
    tmp_path: Path, studio: Studio, tiny: Path, bomb: Callable[[], bytes]
):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    for name in ("adapter_model.bin", "training_args.bin", "optimizer.pt"):
        (tmp_path / "adapter" / name).write_bytes(bomb())
    run = studio.import_(tmp_path / "adapter")
    kept = {path.name for path in studio.home.run(run["id"]).adapter.iterdir()}
    assert kept == {"adapter_config.json", "adapter_model.safetensors", "README.md"}


def test_a_checkpoint_whose_state_carries_code_is_not_opened(tmp_path: Path, bomb: Callable[[], bytes]):
    """Its manifest and checksums are right, as somebody who plants it would make them."""
    import torch

    from core.training import checkpoints
    from core.training.trainer import read_state

    class Carrier:
        def __reduce__(self) -> tuple[Any, ...]:
            return pickle.loads, (bomb(),)

    def fill(folder: Path) -> None:
        torch.save({"optimizer": Carrier(), "rng": Carrier()}, folder / "state.pt")

    whole = checkpoints.write(tmp_path / "checkpoints", 5, fill, {})
    assert not checkpoints.defect(whole)
    with pytest.raises(pickle.UnpicklingError):
        read_state(whole)
    (whole / "state.pt").write_bytes(bomb())
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        read_state(whole)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_arrays_of_objects_are_refused(suffix: str, tmp_path: Path, bomb: Callable[[], bytes]):
    class Carrier:
        def __reduce__(self) -> tuple[Any, ...]:
            return pickle.loads, (bomb(),)

    objects, path = np.array([Carrier()], dtype=object), tmp_path / f"x{suffix}"
    out = io.BytesIO()
    (np.savez if suffix == ".npz" else np.save)(out, objects, allow_pickle=True)
    path.write_bytes(out.getvalue())
    with pytest.raises(ValueError):
        read_arrays(tmp_path, path.name)
    with pytest.raises((StudioError, ValueError)):
        RoutingSnapshot.load(path)


def test_parquet_with_pickled_metadata_is_data_alone(tmp_path: Path, bomb: Callable[[], bytes]):
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {b"pandas": bomb(), b"ARROW:schema": bomb(), b"huggingface": bomb()}
    table = pa.table({"text": ["a", "b"] * 20, "label": ["x", "y"] * 20}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "rows.parquet", store_schema=False)
    assert preview(tmp_path / "rows.parquet").tasks
    column = pa.table({"text": [bomb()] * 20, "label": ["x", "y"] * 10})
    pq.write_table(column, tmp_path / "bytes.parquet")
    with suppress(StudioError):
        preview(tmp_path / "bytes.parquet")


TAGS = [
    "!!python/object/apply:os.mkdir ['{mark}']",
    "name: !!python/object/new:os.mkdir ['{mark}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "notes: !!python/object/apply:os.mkdir\n  args: ['{mark}']",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: !!python/tuple [*b]",
]


@pytest.mark.parametrize("text", TAGS)
def test_a_tag_in_yaml_makes_nothing(text: str, opened: Path):
    with pytest.raises(StudioError):
        RunSpec.from_yaml(text.replace("{mark}", str(opened)))
    assert not opened.exists()
