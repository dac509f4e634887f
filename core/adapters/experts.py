"""Experts that were trained alone: read from adapter folders, put into a mixture, taken out, exchanged.

A mixture here is an adapter with a ``label`` gate: an expert for each task, in the order of its tasks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import ConfigurationError
from .cells import Cell, Linear
from .folders import CONFIG, PREFIX, WEIGHTS, read_config
from .peft_lora import cells_of_lora, renamed_from_lora

if TYPE_CHECKING:
    from peft import PeftModel

DOWN, UP = ".tessera_down.weight", ".tessera_up.weight"
ROUTER = (".tessera_gate.weight", ".tessera_gate.bias")
NEVER = -1e4  # the bias of an expert that no router knows yet


@dataclass(frozen=True)
class Expert:
    """A LoRA as one expert: by projection, down (rank, inputs) and up (outputs, rank) with the scaling inside up."""

    source: str
    down: dict[str, Tensor]
    up: dict[str, Tensor]

    @property
    def rank(self) -> int:
        return max(matrix.shape[0] for matrix in self.down.values())


def read_expert(folder: str | Path, task: str | None = None) -> Expert:
    """The single LoRA of a folder (PEFT's or ours), or the expert of ``task`` in a mixture.

    Raises:
        ConfigurationError: the folder is another kind of adapter, or has no such task.
    """
    config, source = read_config(folder), str(folder) if task is None else f"{folder}:{task}"
    tensors = load_file(Path(folder) / WEIGHTS)
    if config["peft_type"] == "LORA":
        cells, tensors = cells_of_lora(folder), renamed_from_lora(tensors)
    else:
        cells = [Cell.model_validate(cell) for cell in config["cells"]]
    index = 0 if task is None else _index(config, task, source)
    down = {key.removesuffix(DOWN): value for key, value in tensors.items() if key.endswith(DOWN)}
    up = {key.removesuffix(UP): value for key, value in tensors.items() if key.endswith(UP)}
    several = task is None and any(len(value) != 1 for value in down.values() if value.dim() == 3)
    known = all(cell.down.word == cell.up.word == "unique" for cell in cells) and down.keys() == up.keys() and down
    if several or not known:
        raise ConfigurationError(
            f"{source} is no single LoRA, so it cannot become an expert.",
            "Name a run of the method lora, a PEFT LoRA folder, or RUN:TASK for an expert of a MoA run.",
        )
    paths = {path: path.removeprefix(PREFIX) for path in down}
    return Expert(
        source,
        {paths[path]: value[index].float() for path, value in down.items()},
        {paths[path]: value[index].float() * _scaling(cells, paths[path]) for path, value in up.items()},
    )


def fill_experts(model: PeftModel, experts: Sequence[Expert], name: str = "default") -> None:
    """Copy ``experts`` into the mixture ``name`` of a model, one for each of its tasks in order.

    A smaller rank is filled up with zeros and a projection that an expert does not adapt gets none of it, so that
    each expert computes exactly what it did alone.

    Raises:
        ConfigurationError: other numbers, a larger rank, other widths, or projections that the mixture does not adapt.
    """
    from .attach import mixture_layers

    layers = {path: layer for path, layer in mixture_layers(model) if name in layer.sites}
    tasks = model.peft_config[name].tasks
    if len(experts) != len(tasks):
        raise ConfigurationError(
            f"There are {len(experts)} experts for {len(tasks)} tasks ({', '.join(tasks)}).",
            "Name one for each task, in the order of the tasks.",
        )
    for expert in experts:
        _check_fit(expert, layers, name)
    with torch.no_grad():
        for path, layer in layers.items():
            down, up = layer.tessera_down[name].weight, layer.tessera_up[name].weight
            down.zero_()
            up.zero_()
            for index, expert in enumerate(experts):
                if path in expert.down:
                    rank = expert.down[path].shape[0]
                    down[index, :rank].copy_(expert.down[path])
                    up[index, :, :rank].copy_(expert.up[path] / layer.scaling[name])


def remove_expert(folder: str | Path, task: str, target: str | Path) -> Path:
    """Write a mixture without one task's expert and its router rows; what the others decide stays as it was."""
    config, tensors = _mixture(folder)
    index, tasks = _index(config, task, str(folder)), config["tasks"]
    if len(tasks) == 1:
        raise ConfigurationError(f"{task} is the only expert of {folder}.", "A mixture keeps at least one.")
    kept = [place for place in range(len(tasks)) if place != index]
    return _write(target, config | {"tasks": [tasks[place] for place in kept]}, _rows(tensors, lambda old: old[kept]))


def replace_expert(folder: str | Path, task: str, expert: Expert, target: str | Path) -> Path:
    """Write a mixture with another expert for ``task``; routers stay, so train them briefly afterwards."""
    config, tensors = _mixture(folder)
    index = _index(config, task, str(folder))
    return _write(target, config, _placed(config, tensors, expert, index))


def add_expert(folder: str | Path, task: str, expert: Expert, target: str | Path) -> Path:
    """Write a mixture with one more task, whose router rows never choose it until they are trained."""
    config, tensors = _mixture(folder)
    if task in config["tasks"]:
        raise ConfigurationError(f"{folder} already has an expert for {task}.", "Replace it, or name another task.")
    grown = _rows(tensors, lambda old: torch.cat([old, torch.zeros_like(old[:1])]))
    for key in grown:
        if key.endswith(ROUTER[1]):
            grown[key][-1] = NEVER
    config = config | {"tasks": [*config["tasks"], task]}
    return _write(target, config, _placed(config, grown, expert, len(config["tasks"]) - 1))


def change_expert(verb: str, folder: str, task: str, target: str, source: str = "", part: str | None = None) -> None:
    """``add``, ``replace`` or ``remove`` by name, as a child process is asked; the expert is read from ``source``."""
    if verb == "remove":
        remove_expert(folder, task, target)
    else:
        change = {"add": add_expert, "replace": replace_expert}[verb]
        change(folder, task, read_expert(source, part), target)


def _placed(config: dict[str, Any], tensors: dict[str, Tensor], expert: Expert, index: int) -> dict[str, Tensor]:
    cells = [Cell.model_validate(cell) for cell in config["cells"]]
    for key in [key for key in tensors if key.endswith(DOWN)]:
        path, up = key.removeprefix(PREFIX).removesuffix(DOWN), key.removesuffix(DOWN) + UP
        tensors[key][index], tensors[up][index] = 0, 0
        if path not in expert.down:
            continue
        rank = expert.down[path].shape[0]
        if rank > tensors[key].shape[1] or expert.down[path].shape[1] != tensors[key].shape[2]:
            raise _no_fit(expert, path, tuple(expert.down[path].shape), tuple(tensors[key].shape[1:]))
        tensors[key][index, :rank] = expert.down[path].to(tensors[key])
        tensors[up][index, :, :rank] = (expert.up[path] / _scaling(cells, path)).to(tensors[up])
    _refuse_more(expert, {key.removeprefix(PREFIX).removesuffix(DOWN) for key in tensors if key.endswith(DOWN)})
    return tensors


def _check_fit(expert: Expert, layers: dict[str, Any], name: str) -> None:
    _refuse_more(expert, set(layers))
    for path, matrix in expert.down.items():
        place = layers[path].tessera_down[name].weight
        if matrix.shape[0] > place.shape[1] or matrix.shape[1] != place.shape[2]:
            raise _no_fit(expert, path, tuple(matrix.shape), tuple(place.shape[1:]))


def _refuse_more(expert: Expert, adapted: set[str]) -> None:
    if more := sorted(set(expert.down) - adapted):
        raise ConfigurationError(
            f"{expert.source} adapts {more[0]} ({len(more)} such projections), which the mixture does not.",
            "Let the mixture adapt them too (method.options.modules and layers).",
        )


def _no_fit(expert: Expert, path: str, has: tuple[int, ...], place: tuple[int, ...]) -> ConfigurationError:
    return ConfigurationError(
        f"{expert.source} has rank {has[0]} and {has[1]} inputs at {path}, but the mixture has rank {place[0]} and "
        f"{place[1]} inputs there.",
        "Raise method.options.rank to the experts' rank, and use experts of the same base.",
    )


def _mixture(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = read_config(folder)
    if any(cell.get("gate", {}).get("word") != "label" for cell in config.get("cells", [{}])):
        raise ConfigurationError(f"{folder} is no mixture of an expert for each task.", "Name a run of the method moa.")
    return config, load_file(Path(folder) / WEIGHTS)


def _rows(tensors: dict[str, Tensor], change: Any) -> dict[str, Tensor]:
    """Every tensor here has the experts on its first axis."""
    return {key: change(value).contiguous() for key, value in tensors.items()}


def _index(config: dict[str, Any], task: str, source: str) -> int:
    if task not in config.get("tasks", []):
        known = ", ".join(config.get("tasks", [])) or "none"
        raise ConfigurationError(f"{source}: there is no expert for {task}.", f"Its tasks are {known}.")
    return config["tasks"].index(task)


def _scaling(cells: Sequence[Cell], path: str) -> float:
    linear = Linear(path, 0, 0)
    return next(cell.scaling for cell in cells if cell.matches(linear))


def _write(target: str | Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    target = Path(target)
    if target.exists() and any(target.iterdir()):
        raise ConfigurationError(f"{target} is not empty.", "Name a folder that does not exist yet.")
    target.mkdir(parents=True, exist_ok=True)
    try:
        save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
        (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return target
