"""Two processes that share the gradients of their halves of a batch: the result is the mean over both halves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapters_support import MATRIX, Row, batch, gradients, layers_of, loss_of, made
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

ROWS = ("mosld", "malora", "mtl_lora", "mode", "moa", "mixlora")
BY_ID = {row.id: row for row in MATRIX}


def half(which: int) -> dict[str, torch.Tensor]:
    """Two rows of the batch: one of each task, so that both processes reach everything."""
    return {name: value[2 * which : 2 * which + 2] for name, value in batch().items()}


def model_of(row: Row):
    model = made(row, warm=True).train()
    for layer in layers_of(model):  # the masks of dropout are each process's own by design
        for module in layer.modules():
            for name in ("weight_dropout", "input_dropout", "dropout"):
                if hasattr(module, name):
                    setattr(module, name, 0.0)
    model.enable_input_require_grads()
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        found = {}
        for name in ROWS:
            model = model_of(BY_ID[name])
            shared = DistributedDataParallel(model)
            for _ in range(2):  # the second pass meets what the first one left on the tape
                model.zero_grad()
                loss = shared(**half(rank)).loss
                auxiliary = model.base_model.tape.auxiliary_loss()
                (loss if auxiliary is None else loss + auxiliary).backward()
            found[name] = gradients(model)
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.timeout(240)
def test_shared_gradients_are_the_mean_over_both_halves(tmp_path):
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in ROWS:
        parts = []
        for which in range(2):
            model = model_of(BY_ID[name])
            loss_of(model, half(which)).backward()
            parts.append(gradients(model))
        assert set(first[name]) == set(second[name]) == set(parts[0]) == set(parts[1])
        for key, gradient in first[name].items():
            assert torch.equal(gradient, second[name][key]), (name, key)
            assert torch.allclose(gradient, (parts[0][key] + parts[1][key]) / 2, atol=1e-6), (name, key)
