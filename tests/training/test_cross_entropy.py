"""The loss in chunks is the plain one, gradients too, and holds few logits at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.data.batches import as_item
from core.data.templates import Encoded
from core.training import loss
from core.training.cross_entropy import in_chunks
from core.training.loss import AnswerCollator, AnswerHead
from tests.adapters.adapters_support import TASKS, Row, gradients, made, tiny

LOGITS = 3 * 50  # three positions at a time


def head(bias: bool = False, trained: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(12, 50, bias=bias).double().requires_grad_(trained)


def given(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(7, 12, dtype=torch.float64, generator=generator)
    return states, torch.randint(0, 50, (7,), generator=generator)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_values_and_gradients_are_those_of_the_whole(bias: bool, trained: bool):
    layer, (states, targets) = head(bias, trained), given()
    weights = torch.rand(7, dtype=torch.float64)
    found = []
    for losses in (
        lambda x: F.cross_entropy(layer(x), targets, reduction="none"),
        lambda x: in_chunks(x, targets, layer, LOGITS),
    ):
        layer.zero_grad()
        entered = states.clone().requires_grad_()
        values = losses(entered)
        (values * weights).sum().backward()
        found.append([values, entered.grad, *(None if p.grad is None else p.grad.clone() for p in layer.parameters())])
    for whole, chunked in zip(*found, strict=True):
        assert (whole is None) == (chunked is None)
        if whole is not None:
            torch.testing.assert_close(chunked, whole, rtol=1e-10, atol=1e-12)


def test_without_gradients_the_values_stay():
    layer, (states, targets) = head(), given()
    with torch.no_grad():
        whole = F.cross_entropy(layer(states), targets, reduction="none")
        torch.testing.assert_close(in_chunks(states, targets, layer, LOGITS), whole, rtol=1e-10, atol=1e-12)


def kept(losses: Callable[[], Tensor]) -> int:
    """The largest number of entries of one tensor that is saved for the backward pass or made on the way."""
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses()
    return max(sizes)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_no_tensor_of_all_logits_is_kept(trained: bool):
    layer, (states, targets) = head(trained=trained), given()
    states.requires_grad_()
    assert kept(lambda: F.cross_entropy(layer(states), targets, reduction="none")) >= 7 * 50
    assert kept(lambda: in_chunks(states, targets, layer, LOGITS)) <= max(
        7 * 12, 3 * 50, layer.weight.numel() * trained
    )


def batch() -> dict[str, Any]:
    texts = [Encoded(list(range(3, 8 + i)), list(range(20, 26 + i))) for i in range(4)]
    return AnswerCollator(0)([as_item(text, i % len(TASKS)) for i, text in enumerate(texts)])


ADAPTED = {
    "plain": Row("mosld", "mosld", {"rank": 4, "modules": "all-linear"}),
    "tied embedding": Row("full", "full", {"embeddings": True}),
    "head": Row("head", "lora", {"rank": 2, "modules": ["lm_head", "q_proj"]}),
}


@pytest.mark.parametrize("kind", list(ADAPTED))
def test_a_model_in_chunks_learns_the_same(kind: str, monkeypatch: pytest.MonkeyPatch):
    found = []
    for whole in (10**9, 64 * 3):
        monkeypatch.setattr(loss, "WHOLE", whole)
        monkeypatch.setattr(loss, "in_chunks", lambda s, t, h, whole=whole: in_chunks(s, t, h, whole))
        base = tiny(tie_word_embeddings=kind == "tied embedding")
        model = made(ADAPTED[kind], base, warm=True).double().eval()
        values = AnswerHead(model).losses(batch())
        values.sum().backward()
        found.append((values, gradients(model)))
    (values, wanted), (chunked, got) = found
    torch.testing.assert_close(chunked, values, rtol=1e-9, atol=1e-12)
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-8, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}")


def test_a_base_that_caps_its_logits_is_not_cut_short(monkeypatch: pytest.MonkeyPatch):
    model = made(ADAPTED["plain"], warm=True).eval()
    base, honest = model.get_base_model(), AnswerHead(model)
    plain = honest.losses(batch())
    forward = base.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits.tanh()
        return output

    monkeypatch.setattr(base, "forward", capped)
    wanted = AnswerHead(model).losses(batch())
    monkeypatch.setattr(loss, "WHOLE", 1)
    assert torch.allclose(AnswerHead(model).losses(batch()), wanted) and not torch.allclose(wanted, plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_does_not_grow_with_the_vocabulary():
    layer = nn.Linear(256, 65536, bias=False, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    states = torch.randn(4096, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, 65536, (4096,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    in_chunks(states, targets, layer, 2**22).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 2**22 * 16 + 4096 * 256 * 16
