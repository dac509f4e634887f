"""Compiled blocks compute what plain blocks compute, from one graph for all, whether or not they are recomputed."""

from __future__ import annotations

import copy
import inspect
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from core.training import compiling
from core.training.settings import checkpoint_activations
from tests.adapters.adapters_support import Row, batch, gradients, loss_of, made, tiny

ROW = Row("molora", "molora", {"rank": 4, "modules": ["q_proj"], "experts": 3, "balance": 0.1})


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch):
    """Counts graphs in place of inductor; a break in one raises."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiling.torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    yield counter
    torch._dynamo.reset()


def model_of(checkpointing: bool = False) -> torch.nn.Module:
    model = made(ROW, tiny(num_hidden_layers=2), warm=True).train()
    if checkpointing:
        checkpoint_activations(model)
    return model


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss_of(model, batch() | {"use_cache": False}).backward()
    return gradients(model)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_compiled_blocks_compute_what_plain_ones_do(counter, checkpointing: bool):
    plain, model = model_of(), model_of(checkpointing)
    assert compiling.compile_regions(model, dynamic=False) == 2
    wanted, found = trained(plain), trained(model)
    graphs = counter.frame_count
    assert graphs == (1 if checkpointing else 2), "one for all blocks, and one for the first, whose input is frozen"
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    with torch.no_grad():
        model(**batch())
        plain.eval(), model.eval()
        assert torch.equal(model(**batch()).logits, plain(**batch()).logits)
    asked = {"input_ids": batch()["input_ids"][:1], "max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(**asked), plain.generate(**asked))
    assert counter.frame_count == graphs, "without gradients nothing is compiled"


def test_a_copy_computes_with_its_own_weights(counter):
    model = model_of(checkpointing=True)
    block = model.get_base_model().model.layers[0]
    signature = inspect.signature(block.forward)
    compiling.compile_regions(model, dynamic=False)
    assert inspect.signature(block.forward) == signature
    before, other = trained(model), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 0.5
    assert not any(torch.allclose(gradient, before[name]) for name, gradient in trained(other).items())
    for name, gradient in trained(model).items():
        torch.testing.assert_close(gradient, before[name])


def test_where_nothing_can_be_compiled_blocks_run_as_before_and_say_why(monkeypatch: pytest.MonkeyPatch):
    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        raise FileNotFoundError("no C compiler")

    monkeypatch.setattr(compiling.torch, "compile", partial(torch.compile, backend=broken))
    told: list[str] = []
    plain, model = model_of(), model_of()
    assert compiling.compile_regions(model, told=told.append) == 2
    wanted, found = trained(plain), trained(model)
    assert len(told) == 1 and "no C compiler" in told[0]
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    torch._dynamo.reset()
