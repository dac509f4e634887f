"""Task vectors of finished runs, read from their adapter folders without the weights of the base.

A mixture becomes one constant update: exactly where its experts are only added up or the task alone decides, else at
the mean gates that were recorded at the end of its training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from core.adapters.attach import adapter_tensors, add, mixture_layers
from core.adapters.config import MixtureConfig
from core.adapters.folders import PREFIX, WEIGHTS, read_config
from core.adapters.layer import MixtureLayer
from core.adapters.merging import always_all, mean_gates, task_gate
from core.adapters.peft_lora import cells_of_lora, renamed_from_lora
from core.errors import ConfigurationError, DataError
from core.fusion.delta import Delta, TaskVector
from core.models import resolve_base
from core.routing.snapshot import RoutingSnapshot
from core.schema import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "source"


@dataclass(frozen=True)
class Source:
    """A trained adapter: ``name`` of its run, its folder, and one of its tasks where only that counts.

    ``routing`` is the snapshot of its gates at the end; None where it recorded none.
    """

    name: str
    adapter: Path
    task: str | None = None
    routing: Path | None = None


def read_vectors(sources: Sequence[Source], model: ModelSpec) -> list[TaskVector]:
    """The task vector of each source, float32 on the CPU.

    Raises:
        ConfigurationError: an adapter that is no constant update, or is computed by PEFT's own layers.
        DataError: an adapter of another base.
    """
    return [TaskVector(source.name, _deltas(source, model), _tasks(source)) for source in sources]


def _tasks(source: Source) -> tuple[str, ...]:
    return (source.task,) if source.task else tuple(read_config(source.adapter).get("tasks") or ())


def _deltas(source: Source, model: ModelSpec) -> dict[str, Delta]:
    adapted, tasks = _shell(source, model)
    gates = _Gates(source, tasks)
    with torch.no_grad():
        found = {path: gates.freeze(path, layer) for path, layer in mixture_layers(adapted)}
    broken = next((path for path, delta in found.items() if not delta.finite), None)
    if broken is not None:
        raise DataError(f"{source.name}: the update of {broken} is not finite.", "Leave it out, or train it again.")
    return found


def _shell(source: Source, model: ModelSpec) -> tuple[PeftModel, list[str]]:
    """The adapter with its tensors on a base that has shapes and no weights; also the tasks that it knows."""
    data, tensors = read_config(source.adapter), load_file(source.adapter / WEIGHTS)
    if data["peft_type"] == "LORA" and not data.get("use_dora"):
        cells = [cell.model_dump(mode="json") for cell in cells_of_lora(source.adapter)]
        config, tensors = MixtureConfig(task_type="CAUSAL_LM", cells=cells), renamed_from_lora(tensors)
    elif "cells" in data:
        fields = {name: value for name, value in data.items() if name in MixtureConfig.__dataclass_fields__}
        config = MixtureConfig(**fields)
    else:
        raise ConfigurationError(
            f"{source.name} is a {data.get('method') or data['peft_type']} adapter, which is no sum of matrices.",
            "Fuse runs of other methods: lora, full, or a mixture.",
        )
    adapted = add(bare_base(model), config, NAME)
    places = adapter_tensors(adapted, NAME)
    wrong = [key for key in places.keys() | tensors.keys() if _shape(places, key) != _shape(tensors, key)]
    if wrong:
        raise DataError(
            f"{source.name} does not fit {model.base}: {len(wrong)} tensors differ, such as "
            f"{min(wrong).removeprefix(PREFIX)}.",
            "Fuse runs that were trained on the same base.",
        )
    for path, layer in mixture_layers(adapted):
        for container in layer.adapter_layer_names:
            head = f"{PREFIX}{path}.{container}."
            own = {key.removeprefix(head): value.float() for key, value in tensors.items() if key.startswith(head)}
            if own:
                getattr(layer, container)[NAME].load_state_dict(own, assign=True)
    return adapted, list(config.tasks)


def _shape(tensors: dict[str, Tensor], key: str) -> torch.Size | None:
    return tensors[key].shape if key in tensors else None


def bare_base(model: ModelSpec) -> PreTrainedModel:
    """The base on the meta device: shapes without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = model.trust_remote_code
    config = AutoConfig.from_pretrained(resolve_base(model), trust_remote_code=trust)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust)


class _Gates:
    """What the gates of one adapter are frozen at."""

    def __init__(self, source: Source, tasks: list[str]) -> None:
        self.source, self.tasks = source, tasks
        named = source.task or (tasks[0] if len(tasks) == 1 else None)
        if named is not None and named not in tasks:
            known = ", ".join(tasks) or "none"
            raise ConfigurationError(f"{source.name} was not trained on {named}.", f"Its tasks are {known}.")
        self.task = None if named is None else tasks.index(named)
        self._snapshot: RoutingSnapshot | None = None

    def freeze(self, path: str, layer: MixtureLayer) -> Delta:
        """The constant update of a projection."""
        site = layer.sites[NAME]
        weights = self._weights(path, layer)
        if any(word.needs_task for word in (site.down, site.up)) and self.task is None:
            raise self._refusal(path, "has a matrix for each task", "Name one of them, as in run-3:TASK.")
        return Delta(*layer.factors(NAME, weights, self.task))

    def _weights(self, path: str, layer: MixtureLayer) -> Tensor | None:
        decided = None if self.task is None else task_gate(layer, NAME, self.task)
        if decided is not None or always_all(layer, NAME):
            return decided
        return mean_gates(layer, NAME, path, self._recorded(path), self.source.task)

    def _recorded(self, path: str) -> RoutingSnapshot:
        if self._snapshot is None:
            if self.source.routing is None:
                raise self._refusal(
                    path, "decides anew each time and recorded no routing", "Score it, or fuse a run that has routing."
                )
            self._snapshot = RoutingSnapshot.load(self.source.routing)
        return self._snapshot

    def _refusal(self, path: str, what: str, hint: str) -> ConfigurationError:
        return ConfigurationError(f"{self.source.name}: {path} {what}, so it is no single update.", hint)
