"""What a base model's folder must hold before anything of it is loaded or run. Imports no torch.

Nothing here is unpickled and no code of the folder runs: a folder from elsewhere is judged by its JSON files and by
the headers of its safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.adapters.folders import shapes_in
from core.errors import ConfigurationError, DataError
from core.paths import SNAPSHOTS, is_name, shortened
from core.schema import ModelSpec
from core.units import MIB

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
CAUSAL = ("ForCausalLM", "LMHeadModel")
TWO_TEXTS = (
    "an encoder-decoder model ({}): it reads a prompt in one half and writes the answer in the other, while training, "
    "scoring and chat here are made for models that continue one text."
)
DECODERS = "Choose a model whose architecture ends in ForCausalLM."
TRUSTED = "TESSERA_TRUSTED_CODE"  # owner/name@commit or folder@digest, separated by commas
WHOLE = "Download or save the model again."
LARGEST_JSON = 64 * MIB  # bytes; an index of a thousand shards has a few
LARGEST_TOKENIZER = 512 * MIB
MOST = {  # several times what the largest published models have
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 2_000),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "head_dim"), 2**18),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "n_inner", "ffn_dim"), 2**22),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads"), 2**14),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 2**14),
    "vocab_size": 2**25,
}


def check_base(folder: Path, spec: ModelSpec) -> None:
    """Refuse a folder that is not a causal language model with safetensors weights and a fast tokenizer."""
    if not (folder / "config.json").is_file():
        raise ConfigurationError(
            f"{spec.base} has no config.json, so it is not a model in the transformers format.",
            "Name a folder or Hub id that holds a whole model; an adapter alone needs its base named here.",
        )
    config = read_config(folder, spec)
    check_config(folder, config, spec)
    if (folder / "adapter_config.json").is_file():  # transformers would put it on the base without a word
        raise ConfigurationError(
            f"{spec.base} holds an adapter beside the base (adapter_config.json).",
            "Move the adapter's files into a folder of their own, and import that.",
        )
    _check_weights(folder, spec)
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise ConfigurationError(
            f"{spec.base} has no fast tokenizer (tokenizer.json).",
            "Save one beside the weights with AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
        )
    _check_size(tokenizer, spec, LARGEST_TOKENIZER)


def read_config(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """The settings in ``config.json``."""
    return _read(folder / "config.json", spec)


def check_config(folder: Path, config: dict[str, Any], spec: ModelSpec) -> None:
    """Refuse what is no decoder of text, has sizes that no model has, or brings code that nobody allowed."""
    _check_architecture(config, spec)
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            _check_numbers(part, spec)
    stored = config.get("quantization_config")
    if stored is not None and not isinstance(stored, dict):
        raise ConfigurationError(f"config.json of {spec.base}: quantization_config holds no settings.", WHOLE)
    _check_code(folder, config, spec)


def _read(path: Path, spec: ModelSpec) -> dict[str, Any]:
    _check_size(path, spec, LARGEST_JSON)
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path.name} of {spec.base} is not valid JSON: {error}.", WHOLE) from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{path.name} of {spec.base} holds no settings.", WHOLE)
    return found


def _check_size(path: Path, spec: ModelSpec, most: int) -> None:
    if (size := path.stat().st_size) > most:
        raise ConfigurationError(f"{path.name} of {spec.base} has {size / MIB:,.0f} MiB.", WHOLE)


def _check_architecture(config: dict[str, Any], spec: ModelSpec) -> None:
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ConfigurationError(f"config.json of {spec.base}: architectures is no list of names.", WHOLE)
    kind = architectures[0] if architectures else config.get("model_type") or "model of no known type"
    if config.get("is_encoder_decoder"):
        raise ConfigurationError(f"{spec.base} is {TWO_TEXTS.format(kind)}", DECODERS)
    if not architectures or any(name.endswith(CAUSAL) for name in architectures):
        return
    reason = "."
    if kind.endswith("ForMaskedLM"):
        reason = ": an encoder fills gaps in a text and writes none."
    elif "vision_config" in config or "image_size" in config:
        reason = ": it is built for images."
    raise ConfigurationError(f"{spec.base} is a {kind}, not a causal language model{reason}", DECODERS)


def _check_numbers(config: dict[str, Any], spec: ModelSpec) -> None:
    for name, most in MOST.items():
        least, given = 0 if "expert" in name else 1, config.get(name)
        values = given if isinstance(given, list) else [] if given is None else [given]  # a list: one for each layer
        if not all(isinstance(value, int) and least <= value <= most for value in values):
            raise ConfigurationError(
                f"config.json of {spec.base} says {name} {shortened(given)}; it should be {least} to {most:,}.", WHOLE
            )


def _check_code(folder: Path, config: dict[str, Any], spec: ModelSpec) -> None:
    """Refuse code that a model brings, or fetches from the Hub, unless it was allowed for this very revision."""
    for name in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        if "/" in str(config.get(name) or ""):
            raise ConfigurationError(
                f"config.json of {spec.base} asks for a kernel from the Hub ({name}), which is code.",
                f"Take {name} out of its config.json.",
            )
    auto = config.get("auto_map") or {}
    if not isinstance(auto, dict) or "--" in json.dumps(auto):
        raise ConfigurationError(
            f"config.json of {spec.base} asks for Python code of another repository (auto_map).",
            "Put that code beside the weights, or take auto_map out.",
        )
    if "AutoModelForCausalLM" not in auto or (_built_in(config) and not spec.trust_remote_code):
        return
    name = code_name(folder, spec)
    if not spec.trust_remote_code:
        raise ConfigurationError(
            f"{spec.base} needs Python code that comes with its weights.",
            f"Read that code; if you trust it, set model.trust_remote_code to true, and {TRUSTED}={name} where the "
            "studio runs.",
        )
    if name not in {part.strip() for part in os.environ.get(TRUSTED, "").split(",")}:
        raise ConfigurationError(
            f"The Python code of {spec.base} was not allowed for this revision of it.",
            f"Read that code; if you trust it, start the studio and its dispatcher with {TRUSTED}={name}.",
        )


def code_name(folder: Path, spec: ModelSpec) -> str:
    """What names the code of a base: ``owner/name@commit``, or of a folder its path and a digest of its code."""
    if folder.parent.name == SNAPSHOTS and not Path(spec.base).expanduser().is_dir():
        return f"{spec.base}@{folder.name}"
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return f"{folder}@{digest.hexdigest()[:16]}"


def _built_in(config: dict[str, Any]) -> bool:
    """Whether transformers has its own code for a model that also comes with some."""
    package = find_spec("transformers").submodule_search_locations[0]  # found, not imported: that would bring torch
    kind = str(config.get("model_type") or "").replace("-", "_")
    return is_name(kind) and (Path(package) / "models" / kind).is_dir()


def _check_weights(folder: Path, spec: ModelSpec) -> None:
    """Every weight file is there, lies in this folder, and is as long as its own header says."""
    for name in _weight_files(folder, spec):
        try:
            shapes_in(folder / name)
        except DataError as error:
            raise ConfigurationError(
                f"{name} of {spec.base} is broken or cut short: it could not be loaded. {error.message}", WHOLE
            ) from error


def _weight_files(folder: Path, spec: ModelSpec) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        if (folder / "model.safetensors").is_file():
            return ["model.safetensors"]
        raise _no_weights(folder, spec)
    shards = _read(index, spec).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ConfigurationError(f"{index.name} of {spec.base} names no weight files.", WHOLE)
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if not is_name(name) or not name.endswith(".safetensors"):
            raise ConfigurationError(
                f"{index.name} of {spec.base} names {shortened(name)}, which is no safetensors file of its folder.",
                WHOLE,
            )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ConfigurationError(
            f"{spec.base} lacks {len(missing)} of {len(names)} weight files, first {missing[0]}.",
            "Finish the download, then try again.",
        )
    return names


def _no_weights(folder: Path, spec: ModelSpec) -> ConfigurationError:
    names = sorted(path.name for path in folder.iterdir() if path.name != "training_args.bin")
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        return pickles_only(spec.base, pickles[0])
    return ConfigurationError(
        f"{spec.base} has a config.json but no model.safetensors.", "Name a folder or Hub id that holds the weights."
    )


def pickles_only(base: str, example: str) -> ConfigurationError:
    return ConfigurationError(
        f"{base} has its weights only as {example}: opening such a file can run any code, so it is refused.",
        "Convert them on a machine you can spare with save_pretrained(folder), which writes safetensors, or choose a "
        "revision that has safetensors.",
    )
