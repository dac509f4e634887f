"""Task vectors to fuse, PEFT's own combination of the same adapters, and fused runs without a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoModelForCausalLM

from core.fusion.delta import Delta, TaskVector
from core.fusion.methods import fusion_method, options_of
from core.fusion.read import Source, read_vectors
from core.fusion.save import FormRow, save
from core.fusion.setting import Fused, Setting
from core.home import RunFolder
from core.jobs.sinks import ListSink
from core.schema import MethodSpec, ModelSpec, RunSpec

Toy = Sequence[Sequence[float]]


def setting(vectors: Sequence[TaskVector], method: str, folder: Path = Path(), base: str = "", **rest: Any) -> Setting:
    """``rest``: options of the method; ``seed`` is the run's."""
    seed = rest.pop("seed", 0)
    spec = RunSpec(
        sources=[vector.name for vector in vectors],
        model=ModelSpec(base=base) if base else ModelSpec(),
        method=MethodSpec(name=method, options=rest),
        seed=seed,
    )
    return Setting(spec, RunFolder(folder), ListSink(), list(vectors), tasks=[], encoder=None, device="cpu")


def fused(vectors: Sequence[TaskVector], method: str, **rest: Any) -> Fused:
    given = setting(vectors, method, **rest)
    return fusion_method(method).fuse(given, options_of(given.spec.method))


def dense(vectors: Sequence[TaskVector], method: str, **rest: Any) -> dict[str, Tensor]:
    """The fused update of every projection."""
    return {path: delta.dense() for path, delta in fused(vectors, method, **rest).deltas.items()}


def saved(vectors: Sequence[TaskVector], method: str, folder: Path, base: str, **rest: Any) -> list[FormRow]:
    """Fuse and save into ``folder / "adapter"``."""
    folder.mkdir(parents=True, exist_ok=True)
    given = setting(vectors, method, folder, base, **rest)
    options = options_of(given.spec.method)
    return save(fusion_method(method).fuse(given, options), given, options)


def read(folder: Path, base: str, name: str = "fused") -> dict[str, Tensor]:
    """What an adapter folder adds to every projection."""
    (vector,) = read_vectors([Source(name, folder)], ModelSpec(base=base))
    return {path: delta.dense() for path, delta in vector.deltas.items()}


def toy(tasks: Toy) -> list[TaskVector]:
    """One projection of one output."""
    return [TaskVector(f"run-{k}", {"x": Delta(torch.tensor([list(values)]))}) for k, values in enumerate(tasks, 1)]


def factors(runs: int = 2, rank: int = 4, shape: tuple[int, int] = (40, 48), seed: int = 0) -> list[TaskVector]:
    """Adapters of two projections with random factors."""
    chance = torch.Generator().manual_seed(seed)
    return [
        TaskVector(
            f"run-{k}",
            {
                path: Delta(
                    torch.randn(shape[0], rank, generator=chance), torch.randn(rank, shape[1], generator=chance)
                )
                for path in ("x", "y")
            },
        )
        for k in range(1, runs + 1)
    ]


def summed(vectors: Sequence[TaskVector], weights: Sequence[float]) -> dict[str, Tensor]:
    """The dense definition ``sum_k w_k tau_k``."""
    found: dict[str, Tensor] = {}
    for vector, weight in zip(vectors, weights, strict=True):
        for path, delta in vector.deltas.items():
            found[path] = found.get(path, 0) + weight * delta.dense()
    return found


def apart(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Relative error in Frobenius norm over all projections."""
    assert found.keys() == wanted.keys()
    error = sum((found[path] - wanted[path]).double().square().sum() for path in wanted)
    return (error / sum(tensor.double().square().sum() for tensor in wanted.values())).sqrt().item()


def ratio(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The factor that brings ``wanted`` nearest to ``found``."""
    inner = sum((found[path] * wanted[path]).double().sum() for path in wanted)
    return (inner / sum(tensor.double().square().sum() for tensor in wanted.values())).item()


@dataclass
class Adapters:
    """Several LoRA adapters on one model of PEFT, and their folders as the studio reads them."""

    model: PeftModel
    base: str
    folder: Path

    @property
    def names(self) -> list[str]:
        return [path.name for path in sorted(self.folder.iterdir())]

    def vectors(self) -> list[TaskVector]:
        return read_vectors([Source(name, self.folder / name) for name in self.names], ModelSpec(base=self.base))

    def by_peft(self, weights: Sequence[float], kind: str, **rest: Any) -> dict[str, Tensor]:
        """What PEFT's weighted combination adds to every projection."""
        self.model.add_weighted_adapter(self.names, list(weights), kind, combination_type=kind, **rest)
        return self.updates(kind)

    def updates(self, name: str) -> dict[str, Tensor]:
        inner = self.model.base_model.model
        return {
            path: layer.get_delta_weight(name).detach()
            for path, layer in inner.named_modules()
            if isinstance(layer, LoraLayer)
        }

    def ranks_and_scalings(self, name: str) -> set[tuple[int, float]]:
        layers = [layer for layer in self.model.modules() if isinstance(layer, LoraLayer)]
        return {(layer.r[name], layer.scaling[name]) for layer in layers}


def adapters(base: str, folder: Path, *settings: dict[str, Any], same: bool = False) -> Adapters:
    """An adapter for each of the settings of ``LoraConfig``; ``same``: all of them with one and the same update."""
    model = AutoModelForCausalLM.from_pretrained(base)
    for index, given in enumerate(settings):
        config = LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM", **given)
        name = f"adapter-{index + 1}"
        if index == 0:
            model = get_peft_model(model, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        _draw(model, name, seed=0 if same else index)
        model.save_pretrained(str(folder), selected_adapters=[name])
    (folder / "README.md").unlink(missing_ok=True)
    return Adapters(model, base, folder)


@torch.no_grad()
def _draw(model: PeftModel, name: str, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if key.endswith((f"lora_A.{name}.weight", f"lora_B.{name}.weight")):
            parameter.normal_(std=0.1, generator=chance)
