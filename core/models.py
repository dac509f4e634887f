"""Base models: where their files are and how they are loaded. Importing this module imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import hub
from core.errors import ConfigurationError, NotFoundError, OutOfMemoryError
from core.home import BUNDLED_BASE_FOLDER
from core.jobs.sinks import Cancelled, Sink
from core.schema import BUNDLED_BASE, ModelSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
CAUSAL = ("ForCausalLM", "LMHeadModel")
TWO_TEXTS = (
    "an encoder-decoder model ({}): it reads a prompt in one half and writes the answer in the other, while training, "
    "scoring and chat here are made for models that continue one text."
)
DECODERS = "Choose a model whose architecture ends in ForCausalLM."

Progress = Callable[[int, int], None]  # bytes that have come, bytes in all as far as they are known


def resolve_base(
    spec: ModelSpec, *, cache: Path | None = None, offline: bool = False, progress: Progress | None = None
) -> Path:
    """The local folder of a base model: bundled, a folder, or a Hub snapshot that is downloaded once.

    ``cache`` replaces the Hub's own cache folder; ``offline`` (or ``HF_HUB_OFFLINE=1``) uses only what lies there.
    ``progress`` hears of a download about once a second; Cancelled that it raises ends it.
    Raises NotFoundError for what does not exist and ConfigurationError for what cannot be used, both with a remedy.
    """
    if spec.base == BUNDLED_BASE:
        folder = BUNDLED_BASE_FOLDER
        if not (folder / "config.json").is_file():
            raise NotFoundError(
                f"The bundled base is missing from {folder}.", "Restore assets/base, or name another base."
            )
    elif (folder := Path(spec.base).expanduser()).is_dir():
        folder = folder.resolve()
    elif hub.is_path(spec.base):
        raise NotFoundError(
            f"The base model folder {spec.base} does not exist.", "Check the path, or give a Hub id such as owner/name."
        )
    else:
        folder = _snapshot(spec, cache, offline, progress)
    check_base(folder, spec)
    return folder


def download_progress(sink: Sink) -> Progress:
    """Tells a job's sink how many MiB of its base have come; raises Cancelled where the sink asks to stop."""

    def tell(done: int, total: int) -> None:
        if sink.cancelled():
            raise Cancelled
        mib = 2**20
        size = max(1, round(total / mib))
        sink.emit("progress", step=min(size, done // mib), total=size, phase="downloading MiB", seconds_left=None)

    return tell


def check_base(folder: Path, spec: ModelSpec) -> None:
    """Refuse a folder that is not a causal language model with safetensors weights and a fast tokenizer."""
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ConfigurationError(
            f"{spec.base} has no config.json, so it is not a model in the transformers format.",
            "Name a folder or Hub id that holds a whole model; an adapter alone needs its base named here.",
        )
    try:
        config = json.loads(config_path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigurationError(
            f"config.json of {spec.base} is not valid JSON: {error}.", "Download or save the model again."
        ) from error
    _check_architecture(config, spec)
    if "AutoModelForCausalLM" in config.get("auto_map", ()) and not spec.trust_remote_code and not _built_in(config):
        raise ConfigurationError(
            f"{spec.base} needs Python code that comes with its weights.",
            "Read that code; if you trust it, set model.trust_remote_code to true.",
        )
    _check_weights(folder, spec)
    if not (folder / "tokenizer.json").is_file():
        raise ConfigurationError(
            f"{spec.base} has no fast tokenizer (tokenizer.json).",
            "Save one beside the weights with AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
        )


def _check_architecture(config: dict[str, Any], spec: ModelSpec) -> None:
    """Refuse what is no decoder of text, with the reason."""
    architectures = config.get("architectures") or []
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


def _built_in(config: dict[str, Any]) -> bool:
    """Whether transformers has its own code for a model that also comes with some."""
    package = find_spec("transformers").submodule_search_locations[0]  # found, not imported: that would bring torch
    kind = str(config.get("model_type") or "").replace("-", "_")
    return bool(kind) and (Path(package) / "models" / kind).is_dir()


def _check_weights(folder: Path, spec: ModelSpec) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        missing = sorted(name for name in shards if not (folder / name).is_file())
        if missing:
            raise ConfigurationError(
                f"{spec.base} lacks {len(missing)} of {len(shards)} weight files, first {missing[0]}.",
                "Finish the download, then try again.",
            )
        return
    if (folder / "model.safetensors").is_file():
        return
    pickles = sorted(
        path.name for path in folder.iterdir() if path.suffix in PICKLES and path.name != "training_args.bin"
    )
    if pickles:
        raise _pickles_only(spec.base, pickles[0])
    raise ConfigurationError(
        f"{spec.base} has a config.json but no model.safetensors.", "Name a folder or Hub id that holds the weights."
    )


def _pickles_only(base: str, example: str) -> ConfigurationError:
    return ConfigurationError(
        f"{base} has its weights only as {example}: opening such a file can run any code, so it is refused.",
        "Convert them on a machine you can spare with save_pretrained(folder), which writes safetensors, or choose a "
        "revision that has safetensors.",
    )


def _snapshot(spec: ModelSpec, cache: Path | None, offline: bool, progress: Progress | None) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [*WANTED, "*.py"] if spec.trust_remote_code else list(WANTED)
    offline = offline or not hub.reachable()
    try:
        with hub.quiet():
            folder = snapshot_download(
                spec.base,
                revision=spec.revision,
                endpoint=hub.endpoint(),
                cache_dir=cache,
                local_files_only=offline,
                allow_patterns=wanted,
                tqdm_class=hub.progress_bar(progress or (lambda done, total: None)),
            )
        folder = Path(folder)
    except Cancelled:
        raise  # by ``progress``
    except Exception as error:
        raise hub.refusal(error, spec.base, spec.revision) from error
    if not any(folder.glob("*.safetensors")) and not offline and (example := _pickle_on_hub(spec)):
        raise _pickles_only(spec.base, example)
    return folder


def _pickle_on_hub(spec: ModelSpec) -> str | None:
    from huggingface_hub import HfApi

    try:
        files = HfApi(endpoint=hub.endpoint()).list_repo_files(spec.base, revision=spec.revision)
    except Exception:  # the download succeeded; only the wording of the refusal depends on this listing
        return None
    return next((name for name in files if name.endswith(PICKLES)), None)


def pick_device(device: str) -> str:
    """``auto`` is the first GPU where there is one; a GPU that is not there raises ConfigurationError."""
    import torch

    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(device.partition(":")[2] or 0)
        if index >= count:
            have = f"{count} CUDA device{'s' if count != 1 else ''}" if count else "no CUDA device"
            raise ConfigurationError(f"Device {device} is not there: this machine has {have}.", "Set device to auto.")
        return f"cuda:{index}"
    return device


def load_base(spec: ModelSpec, device: str = "auto", *, folder: Path | None = None) -> PreTrainedModel:
    """The base model on ``device``, in evaluation mode; ``folder`` saves resolving the spec again.

    Attention is PyTorch's fused one (sdpa) where the model has it, as transformers chooses by itself.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    device = pick_device(device)
    folder = folder or resolve_base(spec)
    quantization, stored = _quantization(spec, device), _stored_quantization(spec, device, folder)
    placed = {"device_map": {"": device}} if quantization or stored else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=_dtype(spec, device),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=spec.trust_remote_code,
            **({"quantization_config": quantization} if quantization else {}),
            **placed,
        )
        model = model if placed else model.to(device)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{spec.base} does not fit on {device}.", "Load it with model.quantization 4bit, or choose a smaller base."
        ) from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ConfigurationError(
            f"{spec.base} could not be loaded from {folder}: {error}.",
            "Check that the folder holds a whole causal language model that this transformers version knows.",
        ) from error
    return model.eval()


def require_bitsandbytes(reason: str) -> None:
    """Raises ConfigurationError, which begins with ``reason``, where it is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ConfigurationError(
            f"{reason}, but bitsandbytes is not installed.",
            "Install it with pip install bitsandbytes, or set model.quantization to none.",
        )


def _stored_quantization(spec: ModelSpec, device: str, folder: Path) -> bool:
    """Whether the weights were saved in few bits; refuses what cannot hold them."""
    stored = json.loads((folder / "config.json").read_text("utf-8")).get("quantization_config")
    if stored is None:
        return False
    if spec.quantization != "none":
        raise ConfigurationError(
            f"model.quantization is {spec.quantization}, but the weights of {spec.base} are quantised already.",
            "Set model.quantization to none.",
        )
    if stored.get("quant_method") == "bitsandbytes":
        if not device.startswith("cuda"):
            raise ConfigurationError(
                f"The weights of {spec.base} were saved by bitsandbytes, but the device is {device}.",
                "Quantised bases need CUDA: choose a base with whole weights.",
            )
        require_bitsandbytes(f"The weights of {spec.base} were saved by it")
    return True


def _dtype(spec: ModelSpec, device: str) -> torch.dtype:
    import torch

    if spec.dtype == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    return getattr(torch, spec.dtype)


def _quantization(spec: ModelSpec, device: str) -> Any | None:
    if spec.quantization == "none":
        return None
    if not device.startswith("cuda"):
        raise ConfigurationError(
            f"model.quantization is {spec.quantization}, but the device is {device}.",
            "Quantised bases need CUDA: set model.quantization to none.",
        )
    require_bitsandbytes(f"model.quantization is {spec.quantization}")
    from transformers import BitsAndBytesConfig

    if spec.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=_dtype(spec, device),
        bnb_4bit_use_double_quant=True,
    )
