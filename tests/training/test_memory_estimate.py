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
from core import memory
from core.adapters.attach import attach
from core.adapters.methods import presets
from core.home import RunFolder
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
    alive = Alive()
    for parameter in model.parameters():
        alive.see(parameter.data)
    with alive:
        trainer.train()
    assert estimate == pytest.approx(alive.most, rel=0.1), f"{estimate / alive.most - 1:+.1%}"


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
    assert estimate(tokens=128).activations > 2 * (usual.activations - memory.WORKSPACE[True])  # the mask is quadratic
    assert estimate(rows=8).weights == usual.weights
