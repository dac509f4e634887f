"""Checkpoints that are whole or absent, and that are checked before they are believed.

A checkpoint is written into a hidden folder and renamed when every file is on disk; ``manifest.json`` is written last
and holds size and SHA-256 of each file. Nothing in it is unpickled: tensors are safetensors or are read with
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.home import read_json, write_json

ADAPTER = "default"  # what PEFT calls the one that is trained
MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d+)")


def write(root: Path, step: int, fill: Callable[[Path], None], facts: Mapping[str, Any]) -> Path:
    """Let ``fill`` write files into a new checkpoint folder below ``root``, seal and publish it."""
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=root, prefix=".writing-"))
    try:
        fill(folder)
        files = {path.name: _fingerprint(path, flush=True) for path in sorted(folder.iterdir())}
        write_json(folder / MANIFEST, {"step": step, **facts, "files": files})
        folder.chmod(0o755)
        target = root / f"step-{step}"
        if target.exists():  # left by an attempt that went further than the one that runs now
            os.replace(target, folder.with_name(folder.name + "-old"))
        os.replace(folder, target)
        _flush_folder(root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(folder.with_name(folder.name + "-old"), ignore_errors=True)
    return target


def found(root: Path) -> list[tuple[int, Path]]:
    """Published checkpoints as (step, folder), oldest first."""
    steps = [(int(match[1]), path) for path in root.glob("step-*") if (match := NAME.fullmatch(path.name))]
    return sorted(steps)


def newest(root: Path) -> Iterator[tuple[Path, str]]:
    """Checkpoints from the newest on, each with what is wrong with it (``""``: whole)."""
    for _, folder in reversed(found(root)):
        yield folder, defect(folder)


def defect(folder: Path) -> str:
    """What is wrong with a checkpoint's files, or an empty string."""
    try:
        files = read_json(folder / MANIFEST)["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or unreadable"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes, not {expected['size']}"
        if _fingerprint(path) != expected:
            return f"{name} does not match its checksum"
    return ""


def facts(folder: Path) -> dict[str, Any]:
    """The manifest of a whole checkpoint."""
    return read_json(folder / MANIFEST)


def step_of(folder: Path) -> int:
    return facts(folder)["step"]


def prune(root: Path, kept: int, after: int, spared: int | None = None) -> None:
    """Delete all but the newest ``kept`` checkpoints, those past step ``after`` and what killed writers left.

    The one of step ``spared`` stays.
    """
    steps = found(root)
    current = [path for step, path in steps if step <= after]
    old = [path for path in current[:-kept] if path.name != f"step-{spared}"]
    for path in [*old, *(path for step, path in steps if step > after), *root.glob(".writing-*")]:
        shutil.rmtree(path, ignore_errors=True)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training moves: trainable parameters, and buffers that belong to the adapter; not copied."""
    state = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    buffers = model.named_buffers()
    return state | {name: value for name, value in buffers if ADAPTER in name.split(".")}


def restore_adapter(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy ``state`` into the model in place; raises ValueError where names or shapes differ."""
    own = adapter_state(model)
    if own.keys() != state.keys():
        raise ValueError(f"other tensors: {sorted(own.keys() ^ state.keys())[:3]}")
    for name, value in state.items():
        if own[name].shape != value.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, not {tuple(own[name].shape)}")
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def finite(state: Mapping[str, Tensor]) -> bool:
    """Whether all tensors hold numbers alone; waits for the device."""
    whole = [torch.isfinite(value).all() for value in state.values() if value.is_floating_point()]
    return not whole or bool(torch.stack([one.to(whole[0].device) for one in whole]).all())


def save_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    save_file({name: value.contiguous() for name, value in state.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def rng_state(device: torch.device) -> dict[str, Any]:
    """States of the random generators of Python, numpy, torch and the device, as tensors and numbers."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "name": name,
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "rest": [int(position), int(has_gauss), float(cached)],
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_rng(state: Mapping[str, Any], device: torch.device) -> None:
    python, numpy_ = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    position, has_gauss, cached = numpy_["rest"]
    np.random.set_state((numpy_["name"], numpy_["keys"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def _fingerprint(path: Path, flush: bool = False) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if flush:
            os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": digest}


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
