"""The sum over experts is folded: nothing that is kept for the backward pass grows with experts times outputs."""

from __future__ import annotations

import pytest
import torch
from adapters_support import PRESETS, SPLITS, TASKS, Row, tiny
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from core.adapters.attach import attach, mixture_layers, tape_of
from core.adapters.layer import MixtureLayer
from core.adapters.tape import PROMPT, Addressing

SAMPLES, TOKENS = 4, 320  # more than what a loss between drawn tokens keeps, which does not grow with them


def kept(layer: MixtureLayer, x: torch.Tensor) -> list[torch.Tensor]:
    """What the pass keeps, without parameters and without what the base's own product keeps."""
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    own.add(x.untyped_storage().data_ptr())
    found = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return found


@pytest.mark.parametrize("row", PRESETS + SPLITS, ids=lambda row: row.id)
def test_nothing_larger_than_outputs_or_all_ranks_is_kept_for_each_token(row: Row):
    model = attach(tiny(), row.spec, tasks=TASKS).train()
    tape = tape_of(model)
    tape.begin(
        Addressing(
            task_index=torch.arange(SAMPLES) % len(TASKS),
            token_role=torch.full((SAMPLES, TOKENS), PROMPT),
        )
    )
    for slot in tape.slots:
        slot.prior = torch.randn(SAMPLES, getattr(slot.site.gate, "clusters", None) or slot.site.experts)
    seen = set()
    for path, layer in mixture_layers(model):
        site = layer.sites["default"]
        if site.layer != 1 or site.in_features != site.out_features:
            continue
        seen.add(path)
        found = kept(layer, torch.randn(SAMPLES, TOKENS, site.in_features, requires_grad=True))
        largest = max((tensor.numel() for tensor in found), default=0)
        widest = max(site.out_features, site.experts * site.rank)
        assert largest <= SAMPLES * TOKENS * widest, f"{path} keeps {largest} numbers"
    assert seen


def test_a_sum_over_whole_outputs_would_be_noticed():
    class Loop(nn.Module):
        """The form that is not folded: an output for each expert, then their sum."""

        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Parameter(torch.randn(3, 4, 32)), nn.Parameter(torch.randn(3, 32, 4))
            self.router = nn.Parameter(torch.randn(3, 32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            outputs = torch.einsum("btn,ern,eor->bteo", x, self.down, self.up)
            return ((x @ self.router.T).softmax(-1).unsqueeze(-1) * outputs).sum(-2)

    found = kept(Loop(), torch.randn(SAMPLES, TOKENS, 32, requires_grad=True))
    assert max(tensor.numel() for tensor in found) > SAMPLES * TOKENS * max(32, 3 * 4)
