"""The memory estimate against what the studio's trainer really keeps, tensor by tensor, on the CPU."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import memory as benchmark
from core import catalog, memory
from core.adapters.attach import attach
from core.adapters.methods import presets
from core.home import RunFolder
from core.schema import TrainSpec
from core.training.loss import AnswerCollator
from core.training.settings import checkpoint_activations

SHAPE = {
    "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip


class Alive(TorchDispatchMode):
    """Adds up the storages that live, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, weakref.ref[Any]] = {}
        self.now = self.most = 0

    def see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self.known:
            return

        def gone(_: Any) -> None:
            self.now -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        found = function(*arguments, **(keywords or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self.see(leaf)
        return found


def peak(model: torch.nn.Module, trainer: Any) -> int:
    """The most bytes that lived at once while it trained."""
    alive = Alive()
    for parameter in model.parameters():
        alive.see(parameter.data)
    with alive:
        trainer.train()
    return alive.most


# Of each kind of word one.
OTHERS = {"malora": {"experts": 4}, "moelora": {"experts": 4}, "mode": {}, "full": {"embeddings": True}}


@pytest.mark.parametrize(
    ("method", "checkpointing"),
    [*((name, on) for name in ("lora", "mosld") for on in (False, True)), *((name, True) for name in OTHERS)],
)
def test_the_estimate_is_what_the_trainer_keeps(
    method: str, checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(memory, "WORKSPACE", {True: 0, False: 0})  # what cuBLAS keeps
    if method in OTHERS:  # without dropout, whose masks take more on the CPU
        dropout = {"dropout": 0.0} if "dropout" in presets()[method].options.model_fields else {}
        monkeypatch.setitem(benchmark.METHODS, method, {"modules": "all-linear", **dropout, **OTHERS[method]})
    config = LlamaConfig(**SHAPE, max_position_embeddings=512, pad_token_id=0)
    case = benchmark.Case("small", method, rows=4, tokens=256, checkpointing=checkpointing)
    spec = benchmark.spec_of(case, steps=2)
    estimate = benchmark.estimated(spec, config, case).total
    torch.manual_seed(0)
    model = attach(LlamaForCausalLM(config).to(torch.bfloat16).eval(), spec.method, tasks=benchmark.TASKS)
    if checkpointing:
        checkpoint_activations(model)
    trainer = benchmark.trainer_of(spec, model, case, config.vocab_size, RunFolder(tmp_path).create(), "cpu")
    most = peak(model, trainer)
    assert estimate == pytest.approx(most, rel=0.1), f"{estimate / most - 1:+.1%}"


def test_each_part_grows_with_what_it_is_made_of():
    known = {"hidden": 64, "feed_forward": 256, "vocabulary": 1000}
    config = LlamaConfig(
        vocab_size=known["vocabulary"], hidden_size=known["hidden"], intermediate_size=known["feed_forward"],
        num_hidden_layers=2, num_attention_heads=4,
    )  # fmt: skip

    def estimate(**changes: Any) -> memory.MemoryEstimate:
        case = benchmark.Case("small", "mosld", **{"rows": 4, "tokens": 64, "checkpointing": False, **changes})
        return benchmark.estimated(benchmark.spec_of(case, steps=1), config, case)

    usual = estimate()
    assert usual.gradients == usual.adapter and usual.optimiser == 2 * usual.adapter
    assert estimate(rows=8).activations > usual.activations > estimate(checkpointing=True).activations
    assert estimate(tokens=128).activations > 1.8 * (usual.activations - memory.WORKSPACE[True])
    assert estimate(rows=8).weights == usual.weights


def test_packing_is_counted_where_the_usual_length_is_known():
    train = TrainSpec(batch_size=16, max_length=512)
    padded, packed = memory.Batch.of(train, None, 200), memory.Batch.of(train, None, 200, usual=(30.0, 20.0))
    assert padded.size == 16 * 200 and padded.mask == 0
    assert packed.pack == (1, 720), "16 samples of 30 tokens, three deviations more, in steps of 16"
    assert packed.size == 720 and packed.mask == 720**2 and (packed.rows, packed.tokens) == (16, 200)
    assert memory.Batch.of(train.model_copy(update={"packing": False}), None, 200, usual=(30.0, 20.0)) == padded
    assert memory.Batch.of(train, None, 200, usual=(190.0, 10.0)).pack is None, "a pack would save too little"
    rows, length = memory.Batch.of(train, None, 512, usual=(250.0, 30.0)).pack
    assert rows == 5 and 1024 * rows > rows * length > 16 * 250


def test_what_is_kept_of_packs_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rows of which one in a batch is long, so that packs save most of the padding."""
    monkeypatch.setattr(memory, "WORKSPACE", {True: 0, False: 0})
    config = LlamaConfig(**SHAPE, max_position_embeddings=512, pad_token_id=0)
    case = benchmark.Case("small", "mosld", rows=16, tokens=256, checkpointing=False)
    spec = benchmark.spec_of(case, steps=2)
    model = attach(LlamaForCausalLM(config).to(torch.bfloat16).eval(), spec.method, tasks=benchmark.TASKS)
    monkeypatch.setattr(benchmark, "AnswerCollator", lambda pad_id: AnswerCollator(pad_id, packing=True))
    monkeypatch.setattr(benchmark.random.Random, "randint", lambda self, low, high: 32)
    trainer = benchmark.trainer_of(spec, model, case, config.vocab_size, RunFolder(tmp_path).create(), "cpu")
    batch = memory.Batch(case.rows, case.tokens, benchmark.ANSWER, pack=(1, 736))
    assert trainer.data_collator([trainer.train_dataset[i] for i in range(16)])["back"].shape == batch.pack
    base = benchmark.shapes(config.to_json_string())
    estimate = catalog.memory(spec.method, spec.model, base, spec.train, len(benchmark.TASKS), True, batch).total
    most = peak(model, trainer)
    assert estimate == pytest.approx(most, rel=0.1), f"{estimate / most - 1:+.1%}"
