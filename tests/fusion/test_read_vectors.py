"""Task vectors read from adapter folders are what the adapters add to the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from core.adapters.attach import attach, mixture_layers, save, tape_of
from core.adapters.merging import merge_mean_gates, merge_task
from core.adapters.methods import resolve
from core.errors import ConfigurationError, DataError
from core.fusion.candidate import Candidate
from core.fusion.read import Source, read_vectors
from core.models import load_base
from core.routing.recorder import RoutingRecorder
from core.schema import MethodSpec, ModelSpec
from tests.adapters.adapters_support import MATRIX, TASKS, Row, batch
from tests.support.tiny import tiny_base

PLAIN = ("input_ids", "attention_mask")
PAIRED = [row for row in MATRIX if any(cell.gate.pairs_factors and not cell.single for cell in resolve(row.spec))]
FROZEN = [row for row in MATRIX if row not in PAIRED]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return ModelSpec(base=str(tiny_base(tmp_path_factory.mktemp("base") / "tiny", layers=3)))


def warm(base: ModelSpec, method: MethodSpec, tasks: list[str], seed: int = 0):
    """A trained-looking adapter: every parameter away from its start."""
    model = attach(load_base(base, "cpu"), method, tasks=tasks, seed=seed).eval()
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "tessera_" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=chance))
    return model


def logits(base: ModelSpec, deltas, data) -> torch.Tensor:
    candidate = Candidate(load_base(base, "cpu"), list(deltas))
    with torch.no_grad(), candidate.using(deltas) as model:
        return model(**{name: data[name] for name in PLAIN}).logits


@pytest.mark.parametrize("row", FROZEN, ids=lambda row: row.id)
def test_every_mixture_is_read_as_its_merge_at_mean_gates(row: Row, base: ModelSpec, tmp_path: Path):
    model, data = warm(base, row.spec, TASKS), batch()
    recorder = RoutingRecorder(tape_of(model), TASKS)
    with torch.no_grad():
        model(**data)
    recorder.update()
    snapshot = recorder.snapshot()
    save(model, tmp_path / "adapter")
    by_task = any(word.needs_task for _, layer in mixture_layers(model) for word in parts(layer))
    source = Source("run-1", tmp_path / "adapter", "beta" if by_task else None, snapshot.save(tmp_path / "end.npz"))
    (vector,) = read_vectors([source], base)
    if by_task:
        try:
            merged = merge_task(model, "beta")
        except ConfigurationError:  # its gate looks at more than the task: the vector has the task's mean gates
            assert vector.deltas.keys() == {path for path, _ in mixture_layers(model)}
            return
    else:
        merged = merge_mean_gates(model, snapshot)
    with torch.no_grad():
        expected = merged(**{name: data[name] for name in PLAIN}).logits
    assert torch.allclose(logits(base, vector.deltas, data), expected, atol=1e-4)


@pytest.mark.parametrize("row", PAIRED, ids=lambda row: row.id)
def test_a_gate_that_pairs_factors_anew_each_time_is_refused(row: Row, base: ModelSpec, tmp_path: Path):
    model = warm(base, row.spec, TASKS)
    recorder = RoutingRecorder(tape_of(model), TASKS)
    with torch.no_grad():
        model(**batch())
    recorder.update()
    save(model, tmp_path / "adapter")
    routing = recorder.snapshot().save(tmp_path / "end.npz")
    with pytest.raises(ConfigurationError, match="pairs factors anew"):
        read_vectors([Source("run-1", tmp_path / "adapter", None, routing)], base)


def parts(layer):
    site = layer.sites["default"]
    return site.down, site.up


def test_what_all_experts_share_stands_in_the_factors_once(base: ModelSpec, tmp_path: Path):
    spec = MethodSpec(name="mosld", options={"rank": 4, "experts": 3, "modules": ["q_proj"]})
    model, data = warm(base, spec, TASKS), batch()
    recorder = RoutingRecorder(tape_of(model), TASKS)
    with torch.no_grad():
        model(**data)
    recorder.update()
    save(model, tmp_path / "adapter")
    (vector,) = read_vectors(
        [Source("run-1", tmp_path / "adapter", None, recorder.snapshot().save(tmp_path / "end.npz"))], base
    )
    assert {delta.up.shape[1] for delta in vector.deltas.values()} == {4}


def test_a_plain_lora_is_read_exactly_and_needs_no_routing(base: ModelSpec, tmp_path: Path):
    model, data = warm(base, MethodSpec(name="lora", options={"rank": 3, "alpha": 5}), ["one"]), batch()
    save(model, tmp_path)
    (vector,) = read_vectors([Source("run-1", tmp_path)], base)
    with torch.no_grad():
        expected = model(**data).logits
    assert torch.allclose(logits(base, vector.deltas, data), expected, atol=1e-5)
    assert all(delta.low_rank and delta.up.shape[1] == 3 for delta in vector.deltas.values())


@pytest.mark.parametrize("rslora", [False, True])
def test_a_peft_folder_is_read_with_its_own_scaling(base: ModelSpec, tmp_path: Path, rslora: bool):
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], use_rslora=rslora)
    model, data = get_peft_model(load_base(base, "cpu"), config).eval(), batch()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
        expected = model(**{name: data[name] for name in PLAIN}).logits
    model.save_pretrained(tmp_path)
    (vector,) = read_vectors([Source("peft", tmp_path)], base)
    assert torch.allclose(logits(base, vector.deltas, data), expected, atol=1e-5)


def test_a_mixture_without_recorded_routing_says_so(base: ModelSpec, tmp_path: Path):
    save(warm(base, MethodSpec(name="molora", options={"rank": 2, "experts": 2}), TASKS), tmp_path)
    with pytest.raises(ConfigurationError, match="recorded no routing"):
        read_vectors([Source("run-7", tmp_path)], base)


def test_an_adapter_of_another_base_is_refused(base: ModelSpec, tmp_path: Path):
    other = ModelSpec(base=str(tiny_base(tmp_path / "wide", hidden=64)))
    save(warm(other, MethodSpec(name="lora", options={"rank": 2}), ["one"]), tmp_path / "adapter")
    with pytest.raises(DataError, match="run-7 does not fit"):
        read_vectors([Source("run-7", tmp_path / "adapter")], base)


@pytest.mark.parametrize("part", ["tessera_up", "tessera_down"])
def test_an_update_that_is_not_finite_is_refused(base: ModelSpec, tmp_path: Path, part: str):
    model = warm(base, MethodSpec(name="lora", options={"rank": 2}), ["one"])
    with torch.no_grad():
        getattr(mixture_layers(model)[0][1], part)["default"].weight.fill_(float("nan"))
    save(model, tmp_path)
    with pytest.raises(DataError, match="not finite"):
        read_vectors([Source("run-7", tmp_path)], base)
