"""Baselines that PEFT computes itself, with the face of a mixture: one adapter on a base of its own.

PEFT's layers are of another kind than the studio's, so such an adapter shares its base with no other one. It is
trained, saved, scored and chatted with like the others; what it decides is not recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftConfig, PeftModelForCausalLM, PolyConfig
from peft.tuners.poly import PolyLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, resolve_quantization_backend
from torch import Tensor, nn

from ..errors import ConfigurationError
from .cells import plan
from .model import linears_of
from .peft_lora import refuse_more_than_lora
from .tape import BASE, RoutingTape

if TYPE_CHECKING:
    from .methods import Preset

KINDS: dict[str, type[PeftConfig]] = {"LORA": LoraConfig, "POLY": PolyConfig}


@dataclass
class Described:
    """What the studio adds to a config of PEFT's; it lies in the same file, and PEFT passes over it."""

    method: str = field(default="", metadata={"help": "The preset."})
    options: dict[str, Any] = field(default_factory=dict, metadata={"help": "The preset's options, for display."})
    tasks: list[str] = field(default_factory=list, metadata={"help": "Names of the tasks, in the order of task_index."})


@cache
def described(kind: type[PeftConfig]) -> type[PeftConfig]:
    """A config class of PEFT's with the fields of ``Described``."""
    return dataclass(type(f"Described{kind.__name__}", (Described, kind), {}))


def is_baseline(data: dict[str, Any]) -> bool:
    """Whether a saved config is of an adapter that only PEFT can compute."""
    return data["peft_type"] in KINDS and (data["peft_type"] != "LORA" or bool(data.get("use_dora")))


class BaselineModel(PeftModelForCausalLM):
    """Takes the arguments of a mixture: ``task_index`` and ``adapter_names`` count, roles and side inputs do not."""

    def __init__(self, model: nn.Module, config: PeftConfig, adapter: str = "default") -> None:
        config.base_model_name_or_path = model.__dict__.get("name_or_path")
        super().__init__(model, config, adapter)
        self.tape = RoutingTape()  # stays empty
        self.batch = Batch()
        for path, layer in self.get_base_model().named_modules():
            if isinstance(layer, BaseTunerLayer):
                layer.register_forward_pre_hook(_enter(self.batch, path), with_kwargs=True)
                layer.register_forward_hook(_leave(self.batch))
                _keep_result(layer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **self._addressed(kwargs))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return super().generate(*args, **self._addressed(kwargs))

    def _addressed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keep what belongs to the adapter; the rest is for the base. Recomputation in the backward reads it again."""
        names = kwargs.pop("adapter_names", None)
        kwargs.pop("token_role", None)
        kwargs.pop("side_inputs", None)
        self.batch.task_index = kwargs.pop("task_index", None)
        packed = kwargs.pop("pack", None) is not None
        self.batch.base_rows = None if names is None else self._rows_of_base(names)
        config = self.active_peft_config
        if isinstance(config, PolyConfig):
            if packed:
                raise ConfigurationError("Poly mixes its skills by row, so samples cannot share one.", "Do not pack.")
            _check_tasks(config, self.batch.task_index)
        return kwargs

    def _rows_of_base(self, names: Sequence[str]) -> list[bool]:
        for name in names:
            if name not in (BASE, *self.peft_config):
                raise ConfigurationError(
                    f"The model has no adapter {name!r}.", f"It has {', '.join(self.peft_config)}, and {BASE}."
                )
        return [name == BASE for name in names]


class Batch:
    """What a forward pass was told: for every sample its task, and whether the base alone answers it."""

    def __init__(self) -> None:
        self.task_index: Tensor | None = None
        self.base_rows: list[bool] | None = None


def fresh_config(
    model: nn.Module, preset: Preset, options: Any, *, method: str, given: dict[str, Any], tasks: list[str]
) -> PeftConfig:
    """The config of a preset that PEFT computes, for the projections of ``model`` that its options choose."""
    sites = plan(preset.cells(options), linears_of(model), len(tasks))
    made = preset.peft(options, [site.name for site in sites], len(tasks))
    if isinstance(made, LoraConfig):
        made.fan_in_fan_out = any(site.kind == "transposed" for site in sites)
    values = {one.name: getattr(made, one.name) for one in fields(made) if one.init}
    return described(type(made))(**values, method=method, options=given, tasks=tasks)


def on_bare_base(model: nn.Module, config: PeftConfig, name: str) -> BaselineModel:
    """A base with a baseline's adapter.

    Raises:
        ConfigurationError: the base has adapters, or projections of a kind that PEFT's layer cannot stand on.
    """
    refuse_beside_others(model, config.method)
    try:
        return BaselineModel(model, config, name)
    except (TypeError, NotImplementedError) as error:
        raise ConfigurationError(
            f"PEFT cannot put {config.method} on this base: {error}",
            "Choose other projections, another method or another base.",
        ) from error


def config_of_baseline(data: dict[str, Any], folder: Path) -> PeftConfig:
    """The config of a saved baseline, of the studio or from elsewhere.

    Raises:
        ConfigurationError: it holds more than its method, such as trained biases or whole modules.
    """
    refuse_more_than_lora({**data, "use_dora": False}, folder)
    kind = described(KINDS[data["peft_type"]])
    config = kind(**{name: value for name, value in data.items() if name in kind.__dataclass_fields__})
    config.method = config.method or ("poly" if isinstance(config, PolyConfig) else "dora")
    if isinstance(config, PolyConfig) and not config.tasks:
        config.tasks = [f"task {index}" for index in range(config.n_tasks)]
    return config


def tensors_of_baseline(model: BaselineModel, name: str) -> dict[str, Tensor]:
    """The adapter's own tensors, not copies, under the names that PEFT stores them by."""
    return get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)


def refuse_beside_others(model: nn.Module, method: str) -> None:
    """A baseline has its base for itself."""
    if hasattr(model, "peft_config"):
        raise ConfigurationError(
            f"{method} cannot share a base with {', '.join(model.peft_config)}: DoRA and Poly are computed by PEFT's "
            "own layers, one adapter to a base.",
            "Use it alone, or beside the bare base.",
        )


def _check_tasks(config: PeftConfig, index: Tensor | None) -> None:
    if index is None:
        raise ConfigurationError(
            "Poly mixes its skills by task, but the batch does not say which task each sample belongs to.",
            "Pass task_index, one task number for each row.",
        )
    if index.device.type == "cpu" and (int(index.min()) < 0 or int(index.max()) >= config.n_tasks):
        raise ConfigurationError(
            f"The adapter has {config.n_tasks} tasks, counted from 0 ({', '.join(config.tasks)}), but the batch names "
            f"task {int(index.max())}.",
            "Number the tasks in the order in which the adapter was trained.",
        )


def _keep_result(layer: nn.Module) -> None:
    """Poly adds to what its base layer returns in place, which the backward of a quantised layer forbids."""
    base = layer.get_base_layer()
    if isinstance(layer, PolyLayer) and resolve_quantization_backend(base) is not None:
        base.register_forward_hook(lambda module, given, output: output.clone())


def _enter(batch: Batch, path: str) -> Callable[..., Any]:
    """Before a layer of PEFT's: say the task of each row, as long as this layer is told of tasks at all."""

    def hook(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if not isinstance(layer, PolyLayer) or batch.task_index is None:
            return None
        rows, given = args[0].shape[0], batch.task_index
        if args[0].dim() != 3 or rows % len(given):
            raise ConfigurationError(
                f"Poly needs (batch, tokens, features), but {path} sees {tuple(args[0].shape)} for {len(given)} rows.",
                "Leave this projection out.",
            )
        return args, {**kwargs, "task_ids": given.repeat_interleave(rows // len(given))}

    return hook


def _leave(batch: Batch) -> Callable[..., Any]:
    """After a layer of PEFT's: rows of the base get what the base alone computes."""

    def hook(layer: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        if batch.base_rows is None or not any(batch.base_rows):
            return None
        x = args[0]
        times = x.shape[0] // len(batch.base_rows)
        rows = torch.tensor([row for row in batch.base_rows for _ in range(times)], device=x.device).nonzero()[:, 0]
        return output.index_copy(0, rows, layer.get_base_layer()(x.index_select(0, rows)).to(output.dtype))

    return hook
