"""PEFT adapters as runs: from folders and from a stand-in Hub; bases from the Hub, gated, offline and misspelt."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core import hub
from core.errors import ConfigurationError, NotFoundError
from core.home import PROJECT
from core.studio import Studio
from tests.support.hub import LocalHub


@pytest.fixture(scope="module")
def peft_lora(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A plain PEFT LoRA folder whose update is not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.fill_(0.05)
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    model.save_pretrained(folder)
    return folder


def test_a_peft_lora_folder_becomes_a_run_of_its_own(studio: Studio, peft_lora: Path, tiny: Path):
    run = studio.import_(peft_lora, name="from elsewhere")
    assert (run["state"], run["method"], run["base"]) == ("done", "lora", str(tiny))
    assert run["trainable"] == 2 * 4 * (32 + 32 + 32 + 16)
    assert (studio.home.run(run["id"]).adapter / "adapter_model.safetensors").is_file()
    assert studio.import_(peft_lora, name="from elsewhere")["id"] == run["id"]


@pytest.mark.slow
def test_an_imported_adapter_is_scored_and_talks(studio: Studio, peft_lora: Path, colours: Path):
    run = studio.import_(peft_lora)["id"]
    with pytest.raises(ConfigurationError, match="no tasks of its own"):
        studio.score(run)
    studio.upload(colours)
    job = studio.score(run, datasets=["colours"])
    list(studio.follow(run, job=job))
    assert studio.job(run, job)["state"] == "done", studio.logs(run)
    assert set(studio.scores(run).model) == {"adapter", "base"}
    with studio.chat([run, "base"]) as conversation:
        told = conversation.ask("thing 1 is red today", max_new_tokens=3, temperature=0.0)
    assert [reply.model for reply in told] == [run, "base"]


def test_pickled_weights_and_other_methods_are_refused(studio: Studio, peft_lora: Path, tmp_path: Path):
    pickled, other, nameless = (tmp_path / name for name in ("pickled", "other", "nameless"))
    for folder in (pickled, other, nameless):
        shutil.copytree(peft_lora, folder)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(ConfigurationError, match="can run any code"):
        studio.import_(pickled)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(ConfigurationError, match="IA3"):
        studio.import_(other)
    (nameless / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ConfigurationError, match="does not name its base"):
        studio.import_(nameless)
    assert studio.import_(nameless, base="tessera-base")["base"] == "tessera-base"


def test_what_is_no_adapter_is_refused(studio: Studio, tmp_path: Path):
    with pytest.raises(NotFoundError, match="neither a run folder"):
        studio.import_(tmp_path)
    with pytest.raises(NotFoundError, match="does not exist"):
        studio.import_(tmp_path / "none")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A tiny model with Qwen's architecture and the tiny base's tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("hub") / "qwen"
    Qwen3ForCausalLM(config).save_pretrained(folder)
    for path in tiny.iterdir():
        if path.name.startswith(("tokenizer", "chat_template", "special")):
            shutil.copy(path, folder / path.name)
    return folder


@pytest.fixture(scope="module")
def served(qwen: Path, peft_lora: Path):
    repositories = {"model:org/tiny-qwen": qwen, "model:org/adapter": peft_lora, "model:org/secret": qwen}
    with LocalHub(repositories, gated={"model:org/secret"}) as local:
        yield local


def ask(served: LocalHub, cache: Path, home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own: the Hub's client reads its variables when it is imported."""
    environment = os.environ | served.environment(cache) | {"OMP_NUM_THREADS": "1"} | more
    command = [sys.executable, str(PROJECT / "app.py"), "--home", str(home), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


def test_an_adapter_is_imported_by_its_hub_id(served: LocalHub, tmp_path: Path):
    done = ask(served, tmp_path / "cache", tmp_path / "home", "import", "org/adapter", "--json")
    assert done.returncode == 0, done.stdout
    run = json.loads(done.stdout)
    assert (run["name"], run["imported_from"], run["state"]) == ("adapter", "org/adapter", "done")
    wrong = ask(served, tmp_path / "cache", tmp_path / "home", "import", "org/adaptor")
    assert wrong.returncode == 1 and "knows no" in wrong.stderr and "Traceback" not in wrong.stderr
    whole = ask(served, tmp_path / "cache", tmp_path / "home", "import", "org/tiny-qwen")
    assert whole.returncode == 1 and "not a PEFT adapter" in whole.stderr


@pytest.mark.slow
def test_a_hub_base_is_checked_then_downloaded_and_trained(served: LocalHub, tmp_path: Path, recipe: Path):
    place = (served, tmp_path / "cache", tmp_path / "home")
    before = len(served.requests)
    checked = ask(*place, "train", str(recipe), "--set", "model.base=org/tiny-qwen", "--check", "--json")
    assert checked.returncode == 0, checked.stdout
    plan = json.loads(checked.stdout)[0]
    assert plan["trainable"] > 0 and "downloaded when the run starts" in plan["notes"][0]
    assert not [path for _, path in served.requests[before:] if path.endswith("safetensors")]
    options = ["--set", "model.base=org/tiny-qwen", "--here", "--out", str(tmp_path / "run")]
    trained = ask(*place, "train", str(recipe), *options)
    assert trained.returncode == 0, trained.stderr
    offline = ask(*place, "train", str(recipe), *options[:2], "--check", "--json", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0 and json.loads(offline.stdout)[0]["notes"] == []


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("org/tiny-qwn", "knows no"),
        ("org/secret", "restricted"),
        ("not a name", "neither a local folder nor a Hub id"),
        ("org/adapter", "config.json"),
    ],
)
def test_a_base_that_cannot_be_had_is_refused_before_it_is_queued(
    served: LocalHub, tmp_path: Path, recipe: Path, base: str, says: str
):
    place = (served, tmp_path / "cache", tmp_path / "home")
    done = ask(*place, "train", str(recipe), "--set", f"model.base={base}", "--check")
    assert done.returncode == 1
    assert says in done.stderr and "Traceback" not in done.stderr


def test_offline_says_what_is_not_in_the_cache(served: LocalHub, tmp_path: Path, recipe: Path):
    place = (served, tmp_path / "cache", tmp_path / "home")
    done = ask(*place, "train", str(recipe), "--set", "model.base=org/tiny-qwen", "--check", HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and "HF_HUB_OFFLINE" in done.stderr


def test_the_stand_in_is_reachable(served: LocalHub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert hub.endpoint() == served.url and hub.reachable()
