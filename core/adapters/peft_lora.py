"""PEFT LoRA folders as cells, and back. The reading side imports no torch."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, DataError
from .cells import Cell
from .folders import PREFIX, read_config, tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

DOWN, UP = ".lora_A.weight", ".lora_B.weight"


def cells_of_lora(folder: str | Path) -> list[Cell]:
    """The cells that equal a PEFT LoRA folder; ranks come from the stored shapes, scalings from its config.

    Raises:
        ConfigurationError: the folder holds more than low-rank pairs (DoRA, biases, trained modules, ...).
    """
    config, shapes = read_config(folder), tensor_shapes(folder)
    _refuse_more_than_lora(config, Path(folder))
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


def _refuse_more_than_lora(config: dict[str, Any], folder: Path) -> None:
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
