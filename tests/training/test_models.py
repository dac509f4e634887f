"""Where base models come from, and what is said of those that cannot be used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import ConfigurationError, NotFoundError
from core.home import BUNDLED_BASE_FOLDER, PROJECT
from core.models import load_base, pick_device, resolve_base
from core.schema import ModelSpec
from tests.support.hub import LocalHub
from tests.support.tiny import tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


def spec(folder: Path | str, **more: object) -> ModelSpec:
    return ModelSpec.parse({"base": str(folder), **more})


def test_a_local_folder_loads_in_float32_on_the_cpu(base: Path):
    import torch

    assert resolve_base(spec(base)) == base
    model = load_base(spec(base), "cpu")
    assert model.dtype == torch.float32 and not model.training
    assert model.config._attn_implementation == "sdpa"


def test_a_named_dtype_is_taken(base: Path):
    import torch

    assert load_base(spec(base, dtype="bfloat16"), "cpu").dtype == torch.bfloat16


@pytest.mark.skipif(not (BUNDLED_BASE_FOLDER / "config.json").is_file(), reason="the bundled base is not there")
def test_the_bundled_base_is_found():
    assert resolve_base(ModelSpec()) == BUNDLED_BASE_FOLDER


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "a/b/c"])
def test_a_folder_that_is_not_there(name: str):
    with pytest.raises(NotFoundError, match="does not exist"):
        resolve_base(spec(name))


def test_a_name_that_is_no_id():
    with pytest.raises(NotFoundError, match="neither a local folder nor a Hub id"):
        resolve_base(spec("not a model"), offline=True)


def broken(folder: Path, how: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    match how:
        case "no config":
            (folder / "config.json").unlink()
        case "config is no JSON":
            (folder / "config.json").write_text("{")
        case "encoder":
            (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
        case "remote code":
            config |= {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modelling.Model"}}
            (folder / "config.json").write_text(json.dumps(config))
        case "pickle":
            (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "missing shard":
            (folder / "model.safetensors").unlink()
            index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no config", "no config.json"),
        ("config is no JSON", "not valid JSON"),
        ("encoder", "BertForMaskedLM, not a causal language model"),
        ("remote code", "trust_remote_code"),
        ("pickle", "run any code"),
        ("no weights", "no model.safetensors"),
        ("missing shard", "lacks 1 of 1"),
        ("no tokenizer", "no fast tokenizer"),
    ],
)
def test_folders_that_cannot_be_used_say_why(copy: Path, how: str, says: str):
    broken(copy, how)
    with pytest.raises(ConfigurationError) as caught:
        resolve_base(spec(copy))
    assert says in str(caught.value) and caught.value.hint


def test_damaged_weights_are_a_configuration_error(copy: Path):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ConfigurationError, match="could not be loaded"):
        load_base(spec(copy), "cpu")


def test_quantised_bases_need_cuda(base: Path):
    with pytest.raises(ConfigurationError, match="4bit"):
        load_base(spec(base, quantization="4bit"), "cpu")


def test_weights_that_were_saved_in_few_bits_say_what_they_need(copy: Path):
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="saved by bitsandbytes, but the device is cpu"):
        load_base(spec(copy), "cpu")


def test_attention_without_a_fused_form_is_taken_too(copy: Path):
    """GPT-OSS has sinks in its attention, for which PyTorch has no fused form."""
    import torch
    import transformers

    size = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    config = transformers.GptOssConfig(vocab_size=320, **size, **heads)
    transformers.GptOssForCausalLM(config).save_pretrained(copy)
    model = load_base(spec(copy), "cpu")
    assert model.config._attn_implementation == "eager"
    assert torch.isfinite(model(input_ids=torch.tensor([[3, 4, 5]])).logits).all()


def test_a_gpu_that_is_not_there():
    with pytest.raises(ConfigurationError, match="cuda:63 is not there"):
        pick_device("cuda:63")


def ask(model: dict[str, object], environment: dict[str, str]) -> dict[str, str]:
    """Resolve in a child process: huggingface_hub reads its environment when it is imported."""
    code = (
        "import json, sys\nfrom core.errors import StudioError\nfrom core.models import resolve_base\n"
        "from core.schema import ModelSpec\n"
        "try:\n    print(json.dumps({'folder': str(resolve_base(ModelSpec.parse(json.loads(sys.argv[1]))))}))\n"
        "except StudioError as error:\n"
        "    print(json.dumps({'kind': type(error).__name__, 'message': error.message, 'hint': error.hint}))\n"
        "assert 'torch' not in sys.modules"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, json.dumps(model)],
        cwd=PROJECT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.strip().splitlines()[-1])


def test_a_hub_model_is_downloaded_once_and_found_offline(base: Path, tmp_path: Path):
    (shutil.copytree(base, tmp_path / "repo") / "pytorch_model.bin").write_bytes(b"pickle")
    with LocalHub({"model:org/tiny": tmp_path / "repo"}) as hub:
        environment = hub.environment(tmp_path / "cache")
        folder = Path(ask({"base": "org/tiny"}, environment)["folder"])
        asked = [path for method, path in hub.requests if method == "GET"]
    assert (folder / "model.safetensors").is_file() and not (folder / "pytorch_model.bin").exists()
    assert not any(path.endswith(".bin") for path in asked)
    again = ask({"base": "org/tiny"}, environment | {"HF_HUB_OFFLINE": "1"})
    assert Path(again["folder"]) == folder


def test_a_download_tells_its_progress_and_can_be_stopped(base: Path, tmp_path: Path):
    repo = Path(shutil.copytree(base, tmp_path / "repo"))
    (repo / "more.safetensors").write_bytes(bytes(3 * 2**20))
    code = (
        "from core.jobs.sinks import Cancelled, ListSink\nfrom core.models import download_progress, resolve_base\n"
        "from core.schema import ModelSpec\nsink, stopped = ListSink(), ListSink()\nstopped.stop = True\n"
        "try:\n    resolve_base(ModelSpec(base='org/other'), progress=download_progress(stopped))\n"
        "except Cancelled:\n    print('stopped')\n"
        "resolve_base(ModelSpec(base='org/tiny'), progress=download_progress(sink))\n"
        "last = sink.of('progress')[-1]\nprint(last['phase'], last['step'], last['total'])\n"
    )
    with LocalHub({"model:org/tiny": repo, "model:org/other": repo}) as hub:
        environment = os.environ | hub.environment(tmp_path / "cache") | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    stopped, last = done.stdout.splitlines()
    assert stopped == "stopped"
    phase, step, total = last.rsplit(" ", 2)
    assert phase == "downloading MiB" and int(step) >= 3 and int(total) - int(step) <= 1
    assert "%" not in done.stderr


def test_hub_ids_that_cannot_be_used_say_why(base: Path, tmp_path: Path):
    pickled = Path(shutil.copytree(base, tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    repos = {"model:org/tiny": base, "model:org/locked": base, "model:org/pickled": pickled}
    with LocalHub(repos, gated={"model:org/locked"}) as hub:
        environment = hub.environment(tmp_path / "cache")
        unknown = ask({"base": "org/nothing"}, environment)
        revision = ask({"base": "org/tiny", "revision": "v9"}, environment)
        gated = ask({"base": "org/locked"}, environment)
        opened = ask({"base": "org/locked"}, environment | {"HF_TOKEN": hub.token})
        unsafe = ask({"base": "org/pickled"}, environment)
    offline = ask({"base": "org/other"}, environment | {"HF_HUB_OFFLINE": "1"})
    assert unknown["kind"] == "NotFoundError" and "org/nothing" in unknown["message"]
    assert revision["kind"] == "NotFoundError" and "v9" in revision["message"]
    assert gated["kind"] == "ConfigurationError" and "HF_TOKEN" in gated["hint"]
    assert Path(opened["folder"]).is_dir()
    assert unsafe["kind"] == "ConfigurationError" and "pytorch_model.bin" in unsafe["message"]
    assert offline["kind"] == "NotFoundError" and "local cache" in offline["message"]
