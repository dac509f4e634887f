"""Put mixtures on models, save them and load them back. Importing this module registers the tuner with PEFT."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import ConfigurationError, DataError
from .config import MixtureConfig
from .folders import PREFIX, WEIGHTS, read_config
from .layer import MixtureLayer
from .model import MixtureModel
from .peft_lora import cells_of_lora, renamed_from_lora
from .peft_methods import (
    BaselineModel,
    config_of_baseline,
    fresh_config,
    is_baseline,
    on_bare_base,
    refuse_beside_others,
    tensors_of_baseline,
)
from .prelude import fill_widths
from .registry import register
from .tape import BASE, RoutingTape

if TYPE_CHECKING:
    from ..schema import MethodSpec


def attach(
    model: nn.Module | PeftModel, method: MethodSpec, *, tasks: list[str], name: str = "default", seed: int = 0
) -> PeftModel:
    """Put a fresh adapter on a base, or one more on a model that has some.

    The base is frozen; the adapter starts at zero difference from it, drawn from ``seed`` without touching the global
    random state. ``tasks`` are saved with the adapter: ``task_index`` counts in their order.
    """
    from .methods import options_of, preset_named, resolve

    described, preset = {"method": method.name, "tasks": list(tasks)}, preset_named(method.name)
    if preset.peft is not None:
        config = fresh_config(model, preset, options_of(method), given=dict(method.options), **described)
    else:
        cells = fill_widths([cell.model_dump(mode="json") for cell in resolve(method)], model)
        config = MixtureConfig(task_type=_task_type(model), options=dict(method.options), cells=cells, **described)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return add(model, config, name)


def add(model: nn.Module | PeftModel, config: PeftConfig, name: str) -> PeftModel:
    """Add an adapter with a given config; the first one of a model becomes active."""
    _check_name(model, name)
    if not isinstance(config, MixtureConfig):
        return on_bare_base(model, config, name)
    if isinstance(model, BaselineModel):
        refuse_beside_others(model, config.method)
    register()
    if isinstance(model, PeftModel):
        tape_of(model)
        model.add_adapter(name, config)
        return model
    return get_peft_model(model, config, adapter_name=name)


def tape_of(model: PeftModel) -> RoutingTape:
    """The tape of a model with mixtures: what its gates decide, and their auxiliary losses."""
    if isinstance(model, BaselineModel):
        return model.tape
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, MixtureModel):
        raise ConfigurationError(
            f"This {type(model).__name__} has no mixture adapters.", "Load its adapters with core.adapters.attach.load."
        )
    return tuner.tape


def save(model: PeftModel, folder: str | Path, name: str = "default") -> Path:
    """Write one adapter as a PEFT adapter folder; the config comes last, so its existence means a whole folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = _config_of(model, name)
    tensors = {stored: tensor.detach().contiguous().cpu() for stored, tensor in adapter_tensors(model, name).items()}
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{WEIGHTS}.")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        os.replace(temporary, folder / WEIGHTS)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    inference_mode, config.inference_mode = config.inference_mode, True
    try:
        config.save_pretrained(str(folder))
    finally:
        config.inference_mode = inference_mode
    return folder


def load(model: nn.Module | PeftModel, folder: str | Path, *, name: str, trainable: bool = False) -> PeftModel:
    """Load an adapter folder, Tessera's or a plain PEFT LoRA, beside those that the model already has.

    A baseline that PEFT computes (DoRA, Poly) needs a bare base.

    On a bare base the adapter becomes active; on a model with adapters, activate it with ``set_adapter`` or name it
    in ``adapter_names``. Every stored tensor must have its place and every place its tensor.
    """
    folder = Path(folder)
    data = read_config(folder)
    if is_baseline(data):
        config, tensors = config_of_baseline(data, folder), load_file(folder / WEIGHTS)
    elif data["peft_type"] == "LORA":
        cells = [cell.model_dump(mode="json") for cell in cells_of_lora(folder)]
        config = MixtureConfig(task_type=_task_type(model), method="lora", cells=cells)
        tensors = renamed_from_lora(load_file(folder / WEIGHTS))
    else:
        config = _config_from(data, folder)
        tensors = load_file(folder / WEIGHTS)
    config.inference_mode = not trainable
    with torch.random.fork_rng(devices=[]):  # the initial draw is overwritten: leave the caller's random state alone
        model = add(model, config, name)
    try:
        _fill(model, name, tensors, folder)
    except BaseException:
        if len(model.peft_config) > 1:
            model.delete_adapter(name)
        raise
    if trainable:
        model.set_requires_grad(name)
    return model


def adapter_tensors(model: PeftModel, name: str = "default") -> dict[str, Tensor]:
    """An adapter's parameters and buffers under their stored names."""
    if isinstance(model, BaselineModel):
        return tensors_of_baseline(model, name)
    tensors = {}
    for path, layer in mixture_layers(model):
        for container in layer.adapter_layer_names:
            modules = getattr(layer, container)
            if name in modules:
                for key, tensor in modules[name].state_dict(keep_vars=True).items():
                    tensors[f"{PREFIX}{path}.{container}.{key}"] = tensor
    return tensors


def mixture_layers(model: PeftModel) -> list[tuple[str, MixtureLayer]]:
    """The adapted projections with their paths below the base model, in order."""
    tape_of(model)
    if isinstance(model, BaselineModel):
        raise ConfigurationError(
            f"{model.active_peft_config.method} is computed by PEFT's own layers: no cells, gates or experts are here.",
            "Save it, or merge it with merge_and_unload where PEFT can: DoRA merges, Poly does not.",
        )
    inner = model.base_model.model
    return [(path, module) for path, module in inner.named_modules() if isinstance(module, MixtureLayer)]


def _fill(model: PeftModel, name: str, tensors: dict[str, Tensor], folder: Path) -> None:
    places = adapter_tensors(model, name)
    missing, unknown = sorted(places.keys() - tensors.keys()), sorted(tensors.keys() - places.keys())
    if missing or unknown:
        example = (missing or unknown)[0].removeprefix(PREFIX)
        raise DataError(
            f"{folder} does not fit this base: {len(missing)} tensors are missing from it and {len(unknown)} have no "
            f"place in the model, such as {example}.",
            "Load it on the base that it was trained on.",
        )
    for key, place in places.items():
        if place.shape != tensors[key].shape:
            raise DataError(
                f"{folder}: {key.removeprefix(PREFIX)} has shape {tuple(tensors[key].shape)}, but this base needs "
                f"{tuple(place.shape)}.",
                "Load it on the base that it was trained on.",
            )
    with torch.no_grad():
        for key, place in places.items():
            place.copy_(tensors[key])


def _config_from(data: dict[str, Any], folder: Path) -> MixtureConfig:
    known = {field: value for field, value in data.items() if field in MixtureConfig.__dataclass_fields__}
    config = MixtureConfig(**known)
    try:
        config.parsed_cells()
    except ValueError as error:
        raise ConfigurationError(
            f"{folder} was made with words that are not known here: {error}.",
            "Install the version of Tessera, or the module, that defines them.",
        ) from error
    return config


def _task_type(model: nn.Module) -> str:
    two_texts = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return "SEQ_2_SEQ_LM" if two_texts else "CAUSAL_LM"


def _config_of(model: PeftModel, name: str) -> PeftConfig:
    tape_of(model)
    if name not in model.peft_config:
        raise ConfigurationError(f"The model has no adapter {name!r}.", f"It has {', '.join(model.peft_config)}.")
    return model.peft_config[name]


def _check_name(model: nn.Module, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name == BASE:
        raise ConfigurationError(
            f"{name!r} cannot name an adapter.", "Use letters, digits, hyphens and underscores, such as run-12."
        )
    if isinstance(model, PeftModel) and name in model.peft_config:
        raise ConfigurationError(f"The model already has an adapter {name!r}.", "Choose another name.")
    taken = {part for path, _ in model.named_modules() for part in path.split(".")}
    if name in taken - set(getattr(model, "peft_config", ())):
        # PEFT finds an adapter's tensors by its name: one that names a module too would lose some on saving.
        raise ConfigurationError(f"A module of the model is called {name!r}.", f"Choose another name: {name}-adapter.")
