"""Products that are taken together equal those taken one by one, with all their gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from adapters_support import PRESETS, TASKS, Row, batch, gradients, loss_of, made, tiny, tiny_qwen, warm_up
from torch.nn import functional

from core.adapters import siblings
from core.adapters.attach import attach, mixture_layers
from core.adapters.ops import close_products, open_products


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_the_products_equal_plain_ones_and_their_gradients_are_right():
    torch.manual_seed(0)
    x, down, router = draw(2, 3, 6), draw(4, 6), draw(2, 6)
    weights = [torch.randn(outputs, 6, dtype=torch.float64) for outputs in (5, 7)]
    bias, ups = torch.randn(5, dtype=torch.float64), [draw(5, 4), draw(7, 4)]

    def together(x, down, router, *ups):
        joint, tickets = open_products(x, weights, (down, router))
        folded = joint[..., :4] * joint[..., 4:].softmax(-1).sum(-1, keepdim=True)
        return [
            close_products(ticket, x, weight, first, folded, up)
            for ticket, weight, first, up in zip(tickets, weights, (bias, None), ups, strict=True)
        ]

    def plain(x, down, router, *ups):
        folded = functional.linear(x, down) * functional.linear(x, router).softmax(-1).sum(-1, keepdim=True)
        parts = zip(weights, (bias, None), ups, strict=True)
        return [functional.linear(x, weight, first) + functional.linear(folded, up) for weight, first, up in parts]

    for mine, wanted in zip(together(x, down, router, *ups), plain(x, down, router, *ups), strict=True):
        torch.testing.assert_close(mine, wanted)
    assert torch.autograd.gradcheck(together, (x, down, router, *ups))


def test_an_output_that_nothing_uses_costs_nothing_but_itself():
    x, down = draw(3, 6), draw(4, 6)
    weights = [torch.randn(5, 6, dtype=torch.float64) for _ in range(2)]
    joint, tickets = open_products(x, weights, (down,))
    close_products(tickets[0], x, weights[0], None, joint, torch.zeros(5, 4, dtype=torch.float64)).sum().backward()
    torch.testing.assert_close(x.grad, weights[0].sum(0).expand(3, 6))


@pytest.mark.parametrize("row", PRESETS, ids=lambda row: row.id)
def test_siblings_compute_what_each_computes_alone(row: Row, monkeypatch: pytest.MonkeyPatch):
    def result() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = made(row, warm=True).double().train()
        for module in model.modules():
            for name in ("dropout", "input_dropout", "weight_dropout", "noise"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        torch.manual_seed(3)
        loss = loss_of(model, batch())
        loss.backward()
        return loss.detach(), gradients(model)

    loss, found = result()
    monkeypatch.setattr(siblings, "TOGETHER", ())
    alone, wanted = result()
    torch.testing.assert_close(loss, alone)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], msg=lambda text, name=name: f"{name}: {text}")


def test_siblings_of_a_base_with_biases_where_only_some_are_adapted():
    cells = [{"modules": ["q_proj", "v_proj"], "experts": 2, "rank": 4, "down": "shared", "gate": "token"}]
    row = Row("some", "split", cells=tuple(cells))
    model = made(row, tiny_qwen(), warm=True)
    layers = [layer for path, layer in mixture_layers(model) if path.endswith(("q_proj", "v_proj"))]
    assert layers[0].siblings is layers[1].siblings
    assert layers[0].siblings is not layers[2].siblings
    data = batch()
    merged = copy.deepcopy(model)
    assert mixture_layers(merged)[0][1].siblings is not layers[0].siblings
    torch.testing.assert_close(model.eval()(**data).logits, merged.eval()(**data).logits)


def test_nothing_is_held_after_a_pass_and_a_broken_pass_harms_none():
    model = made(PRESETS[1], warm=True).train()
    group = mixture_layers(model)[0][1].siblings
    loss = loss_of(model, batch())
    assert group._read is None and not group._opened
    hook = model.get_base_model().model.layers[0].self_attn.k_proj.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss_of(model, batch())
    hook.remove()
    torch.testing.assert_close(loss_of(model, batch()).detach(), loss.detach(), rtol=0.2, atol=0)  # other masks
    assert group._read is None


def test_a_second_adapter_on_fewer_projections():
    model = attach(tiny(), PRESETS[1].spec, tasks=TASKS, name="first")
    few = {"modules": ["k_proj"], "rank": 2}
    model = attach(model, Row("few", "lora", few).spec, tasks=TASKS, name="second")
    warm_up(model, "first")
    warm_up(model, "second")
    data = batch()
    model.set_adapter("second")
    alone = attach(tiny(), Row("few", "lora", few).spec, tasks=TASKS, name="second")
    warm_up(alone, "second")
    own, copied = ({n: p for n, p in each.named_parameters() if ".second." in f"{n}."} for each in (model, alone))
    with torch.no_grad():
        for name, parameter in copied.items():
            parameter.copy_(own[name])
    torch.testing.assert_close(model.eval()(**data).logits, alone.eval()(**data).logits)
