"""Base models: where their files are and how they are loaded. Importing this module imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import hub
from core.base_files import PICKLES, check_base, pickles_only
from core.errors import ConfigurationError, NotFoundError, OutOfMemoryError
from core.home import BUNDLED_BASE_FOLDER
from core.jobs.sinks import Cancelled, Sink
from core.schema import BUNDLED_BASE, ModelSpec
from core.units import MIB

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")

# What transformers raises for a config or weights that are not right, besides the errors of its own libraries.
UNREADABLE = (OSError, ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)

Progress = Callable[[int, int], None]  # bytes that have come, bytes in all as far as they are known


def resolve_base(spec: ModelSpec, *, offline: bool = False, progress: Progress | None = None) -> Path:
    """The local folder of a base model: bundled, a folder, or a Hub snapshot that is downloaded once.

    ``offline`` (or ``HF_HUB_OFFLINE=1``) uses only what lies in the Hub's cache folder.
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
        folder = _snapshot(spec, offline, progress)
    check_base(folder, spec)
    return folder


def download_progress(sink: Sink) -> Progress:
    """Tells a job's sink how many MiB of its base have come; raises Cancelled where the sink asks to stop."""

    def tell(done: int, total: int) -> None:
        if sink.cancelled():
            raise Cancelled
        size = max(1, round(total / MIB))
        sink.emit("progress", step=min(size, done // MIB), total=size, phase="downloading MiB", seconds_left=None)

    return tell


def _snapshot(spec: ModelSpec, offline: bool, progress: Progress | None) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [*WANTED, "*.py"] if spec.trust_remote_code else list(WANTED)
    offline = offline or not hub.reachable()
    try:
        with hub.quiet():
            folder = snapshot_download(
                spec.base,
                revision=spec.revision,
                endpoint=hub.endpoint(),
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
        raise pickles_only(spec.base, example)
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
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    device = pick_device(device)
    folder = folder or resolve_base(spec)
    quantization, stored = _quantization(spec, device), _stored_quantization(spec, device, folder)
    placed = {"device_map": {"": device}} if quantization or stored else {}
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            folder,
            output_loading_info=True,
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
    except (*UNREADABLE, SafetensorError, StrictDataclassError) as error:
        raise ConfigurationError(
            f"{spec.base} could not be loaded from {folder}: {error}.",
            "Check that the folder holds a whole causal language model that this transformers version knows.",
        ) from error
    if (missing := sorted(told["missing_keys"])) and not placed:  # they would be random numbers
        raise ConfigurationError(
            f"The weights of {spec.base} lack {len(missing)} tensors of its config.json, first {missing[0]}.",
            "Finish the download, or give the config that belongs to these weights.",
        )
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
