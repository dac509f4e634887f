"""PEFT LoRA folders as cells, and back. The reading side imports no torch."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, DataError
from .cells import Cell
from .folders import PREFIX, WEIGHTS, read_config, tensor_shapes

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

DOWN, UP = ".lora_A.weight", ".lora_B.weight"


def cells_of_lora(folder: str | Path) -> list[Cell]:
    """The cells that equal a PEFT LoRA folder; ranks come from the stored shapes, scalings from its config.

    Raises:
        ConfigurationError: the folder holds more than low-rank pairs (DoRA, biases, trained modules, ...).
    """
    config, shapes = read_config(folder), tensor_shapes(folder)
    refuse_more_than_lora(config, Path(folder))
    modules = sorted(key.removeprefix(PREFIX).removesuffix(DOWN) for key in shapes if key.endswith(DOWN))
    expected = {f"{PREFIX}{module}{end}" for module in modules for end in (DOWN, UP)}
    if not modules or expected != set(shapes):
        other = sorted(set(shapes) ^ expected)
        raise ConfigurationError(
            f"{folder} holds tensors that are no low-rank pairs of linear layers"
            + (f", such as {other[0].removeprefix(PREFIX)}." if other else "."),
            "Only LoRA on linear layers can be loaded: no embeddings, biases or whole modules.",
        )
    groups: dict[tuple[int, float], list[str]] = defaultdict(list)
    for module in modules:
        rank = shapes[f"{PREFIX}{module}{DOWN}"][0]
        groups[rank, _alpha(config, module, rank)].append(module)
    dropout = {"word": "unique", "dropout": config.get("lora_dropout") or 0.0, "dropout_on": "input"}
    return [
        Cell(modules=names, rank=rank, alpha=alpha, experts=1, down=dropout, gate="none", up="unique")
        for (rank, alpha), names in groups.items()
    ]


def renamed_from_lora(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """PEFT's names and shapes to ours: every matrix gains its axis of experts."""
    return {
        key.replace(DOWN, ".tessera_down.weight").replace(UP, ".tessera_up.weight"): tensor.unsqueeze(0)
        for key, tensor in tensors.items()
    }


def _alpha(config: dict[str, Any], module: str, rank: int) -> float:
    """The alpha that gives our ``alpha / rank`` the scaling that PEFT would use."""
    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    matched = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
    alpha = float(patterns[matched] if matched is not None else config.get("lora_alpha", 8))
    if alpha <= 0:
        raise DataError(f"lora_alpha is {alpha} for {module}.", "An adapter with no scaling does nothing: retrain it.")
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def refuse_more_than_lora(config: dict[str, Any], folder: str | Path) -> None:
    """
    Raises:
        ConfigurationError: the config says of something that it is more than low-rank pairs.
    """
    reasons = {
        "is a DoRA adapter": config.get("use_dora"),
        "is a QALoRA adapter": config.get("use_qalora"),
        "is an activated LoRA": config.get("alora_invocation_tokens"),
        "trains biases": config.get("bias", "none") != "none" or config.get("lora_bias"),
        "trains whole modules": config.get("modules_to_save"),
        "trains new tokens": config.get("trainable_token_indices"),
        "adapts bare parameters": config.get("target_parameters"),
        "repeats layers of its base": config.get("layer_replication"),
        "belongs to a Megatron base": config.get("megatron_config"),
        "was trained from a changed base": str(config.get("init_lora_weights", True)).partition("_")[0].lower()
        in ("pissa", "olora", "corda", "loftq", "lora-ga"),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigurationError(
                f"{folder} {reason}; only plain LoRA can be loaded.",
                "Convert it to a plain LoRA with PEFT, or merge it into its base and load that as the base.",
            )


def export_peft_lora(model: PeftModel, folder: str | Path, name: str = "default") -> Path:
    """Write an adapter of single experts without gates as a LoRA folder that PEFT loads with equal logits.

    Raises:
        ConfigurationError: the adapter weighs several experts or trains the token embedding, which no LoRA can do.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    from .attach import mixture_layers

    sites, tensors = {}, {}
    for path, layer in mixture_layers(model):
        if name not in layer.scaling:
            continue
        site = layer.sites[name]
        if site.experts > 1 or name in layer.slots:
            raise ConfigurationError(
                f"Adapter {name!r} is a mixture ({site.experts} experts at {path}), which PEFT's LoRA cannot express.",
                "Use core.adapters.export.export, which puts its own loader beside the weights.",
            )
        if site.kind == "embedding":
            raise ConfigurationError(
                f"Adapter {name!r} trains the token embedding as a whole, which PEFT's LoRA cannot express.",
                "Use core.adapters.export.export, which puts its own loader beside the weights.",
            )
        sites[path] = site
        tensors[f"{PREFIX}{path}{DOWN}"] = layer.tessera_down[name].experts()[0].detach().cpu().contiguous()
        tensors[f"{PREFIX}{path}{UP}"] = layer.tessera_up[name].experts()[0].detach().cpu().contiguous()
    if not sites:
        raise ConfigurationError(f"The model has no adapter {name!r}.", f"It has {', '.join(model.peft_config)}.")
    first = next(iter(sites.values()))
    others = {path: site for path, site in sites.items() if (site.rank, site.scaling) != (first.rank, first.scaling)}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=first.rank,
        lora_alpha=first.scaling * first.rank,
        lora_dropout=getattr(first.down, "dropout", 0.0) if getattr(first.down, "dropout_on", "") == "input" else 0.0,
        target_modules=_shortest_names(model, list(sites)),
        rank_pattern={re.escape(path): site.rank for path, site in others.items()},
        alpha_pattern={re.escape(path): site.scaling * site.rank for path, site in others.items()},
        fan_in_fan_out=any(site.kind == "transposed" for site in sites.values()),
        inference_mode=True,
    )
    config.base_model_name_or_path = model.peft_config[name].base_model_name_or_path
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    return folder


def _shortest_names(model: PeftModel, paths: list[str]) -> list[str]:
    """Projection names where they mean exactly ``paths``, else the whole paths."""
    from .model import linears_of

    names = {path.rpartition(".")[2] for path in paths}
    meant = {line.name for line in linears_of(model.base_model.model) if line.projection in names}
    return sorted(names) if meant == set(paths) else paths
