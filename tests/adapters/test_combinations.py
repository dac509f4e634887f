"""Any three words as a split: what the plan accepts trains every tensor, what it refuses it explains at the cell."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from adapters_support import TASKS, batch, loss_of, tiny

from core.adapters.attach import attach
from core.adapters.cells import Cell, plan
from core.adapters.model import linears_of
from core.adapters.words import WORDS
from core.errors import ConfigurationError
from core.schema import MethodSpec

SIZES = ({"experts": 4, "rank": 4}, {"experts": 4, "rank": 1}, {"experts": 16, "rank": 1})  # pools take the later ones
VECTORS = {"pool": {"word": "pool", "vectors": 4}}


def cells(down: str, gate: str, up: str):
    """The combination in several sizes, pools with their factors as well."""
    for size in SIZES:
        yield {"modules": ["q_proj", "up_proj"], **size, "down": down, "gate": gate, "up": up}
    if "pool" in (down, up):
        yield {
            "modules": ["q_proj", "up_proj"], "experts": 16, "rank": 1,
            "down": VECTORS.get(down, down), "gate": gate, "up": VECTORS.get(up, up),
        }  # fmt: skip


def accepted(down: str, gate: str, up: str, linears: list) -> dict | None:
    """The combination in the first size that the plan takes; None where it refuses all of them, with reasons."""
    for cell in cells(down, gate, up):
        try:
            plan([Cell.model_validate(cell)], linears, len(TASKS))
        except ConfigurationError as error:
            assert re.match(r"Cell 1\b", error.message) and error.hint, error
            continue
        return cell
    return None


def train(cell: dict) -> float:
    """Two steps: up matrices start at zero, so the others have gradients from the second step on."""
    model = attach(tiny(num_hidden_layers=1), MethodSpec(name="split", cells=[cell]), tasks=TASKS).train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trainable, lr=0.1)
    for step in range(2):
        optimiser.zero_grad()
        loss = loss_of(model, batch(seed=step))
        loss.backward()
        optimiser.step()
    return loss.item()


@pytest.mark.parametrize("down", WORDS["down"])
def test_every_combination_trains_or_is_refused_at_its_cell(down: str):
    linears = linears_of(tiny(num_hidden_layers=1))
    trained, broken = [], []
    for gate, up in itertools.product(WORDS["gate"], WORDS["up"]):
        cell = accepted(down, gate, up, linears)
        if cell is None:
            continue
        try:
            loss = train(cell)
            (trained if math.isfinite(loss) else broken).append(f"{down}, {gate}, {up}: loss {loss}")
        except (RuntimeError, ValueError, TypeError, AttributeError, ConfigurationError) as error:
            broken.append(f"{down}, {gate}, {up}: {type(error).__name__} {str(error).splitlines()[0]}")
    assert broken == []
    assert trained
