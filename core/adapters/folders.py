"""Adapter folders: ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT lays them out. No torch here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, DataError, NotFoundError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config of a local adapter folder whose weights can be loaded safely."""
    folder = Path(folder)
    if not folder.is_dir():
        raise NotFoundError(f"There is no adapter folder {folder}.", "Give the folder that holds adapter_config.json.")
    if not (folder / CONFIG).is_file():
        raise NotFoundError(f"{folder} has no {CONFIG}, so it is no PEFT adapter.", "Give the adapter's own folder.")
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{folder / CONFIG} is no JSON: {error}.", "Copy the adapter again.") from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise DataError(f"{folder / CONFIG} names no peft_type.", "Copy the adapter again.")
    if config["peft_type"] not in ("TESSERA", "LORA", "POLY"):
        raise ConfigurationError(
            f"{folder} is a {config['peft_type']} adapter; LoRA, DoRA, Poly and Tessera's own adapters can be loaded.",
            "Train the method as a split of words, or load it with PEFT itself.",
        )
    if not (folder / WEIGHTS).is_file():
        if (folder / "adapter_model.bin").is_file():
            raise ConfigurationError(
                f"{folder} holds its weights as adapter_model.bin, a pickle, which can run code when it is opened.",
                "Where you trust it, load it with PEFT and call save_pretrained, which writes safetensors.",
            )
        raise NotFoundError(f"{folder} has no {WEIGHTS}.", "Copy the adapter again.")
    return config


def tensor_shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an adapter's stored tensors, from the file's header alone."""
    return shapes_in(Path(folder) / WEIGHTS)


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file; DataError where its header lies about what follows."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is no readable safetensors file: {error}.", "Copy it again.") from error
