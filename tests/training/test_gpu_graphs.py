"""Steps captured as CUDA graphs and compiled blocks compute what plain steps compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.data.store import DatasetStore
from core.home import RunFolder
from core.jobs.sinks import ListSink
from core.schema import RunSpec
from core.training.graphs import StepGraphs
from core.training.run import train_adapter
from tests.support.training import LORA, curve, toy_spec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
STILL = {"dropout": 0.0}
METHODS = {
    "lora": LORA,
    "mosld": {"name": "mosld", "options": {"rank": 4, "experts": 3, "balance": 0.01} | STILL},
    "malora": {"name": "malora", "options": {"rank": 4, "experts": 3} | STILL},
    "mtl_lora": {"name": "mtl_lora", "options": {"rank": 4}},
    "mixlora": {"name": "mixlora", "options": {"rank": 2, "experts": 3}},
    "mode": {"name": "mode", "options": {"rank": 4}},
    "mor1e": {"name": "mor1e", "options": dict(STILL)},
    "moa": {"name": "moa", "options": {"rank": 4} | STILL},
    "moelora": {"name": "moelora", "options": {"experts": 3, "after": 6, "positives": "all", "samples": 256}},
}


def run(spec: RunSpec, store: DatasetStore, folder: Path) -> ListSink:
    sink = ListSink()
    train_adapter(spec, RunFolder(folder).create(), store, sink, device="cuda:0", resume=False)
    return sink


def warnings(sink: ListSink) -> list[str]:
    return [event["message"] for event in sink.of("log") if event["level"] == "warning" and "graph" in event["message"]]


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_graphs_follow_plain_steps(base: Path, store: DatasetStore, tmp_path: Path, method: dict, packing: bool):
    settings = {"steps": 24, "learning_rate": 0.003, "packing": packing, "gradient_accumulation": 2}
    plain, captured = (
        run(toy_spec(base, method, compile=how, **settings), store, tmp_path / how) for how in ("off", "auto")
    )
    assert not warnings(captured)
    assert curve(captured.events) == pytest.approx(curve(plain.events), rel=0.02)


@pytest.mark.parametrize("name", ["lora", "mosld", "mixlora"])
def test_compiled_blocks_follow_plain_steps(base: Path, store: DatasetStore, tmp_path: Path, name: str):
    settings = {"steps": 16, "learning_rate": 0.003}
    plain, compiled = (
        run(toy_spec(base, METHODS[name], compile=how, **settings), store, tmp_path / how) for how in ("off", "on")
    )
    assert not warnings(compiled)
    assert curve(compiled.events) == pytest.approx(curve(plain.events), rel=0.02)


def test_what_a_graph_cannot_hold_goes_on_without():
    weight, calls, told = torch.randn(4, 4, device="cuda", requires_grad=True), [], []

    def work(batch):
        calls.append(1)
        loss = torch.nn.functional.dropout(batch["x"] @ weight, 0.5).square().sum()
        if len(calls) > 2:
            loss.item()
        return loss, {"loss": loss}

    steps = StepGraphs(work, [weight], ragged={}, told=told.append)
    for _ in range(6):
        weight.grad = None
        assert torch.isfinite(steps({"x": torch.randn(3, 4, device="cuda")})["loss"])
        assert torch.isfinite(weight.grad).all()
    assert len(told) == 1
    assert torch.randn(2, device="cuda").isfinite().all()


def test_gradients_add_up_over_graphs_and_plain_steps():
    weight = torch.randn(8, 4, device="cuda", requires_grad=True)

    def work(batch):
        loss = ((batch["x"] @ weight).square().sum(-1) * batch["counts"]).sum()
        return loss, {"loss": loss}

    steps = StepGraphs(work, [weight], ragged={"x": 0.0, "counts": 0.0})
    rows = [torch.randn(size, 8, device="cuda") for size in (3, 5, 70, 4, 66, 2, 90, 7)]
    for start in range(0, 8, 4):
        weight.grad = None
        for x in rows[start : start + 4]:
            steps({"x": x, "counts": torch.ones(len(x), device="cuda")})
        wanted = 2 * sum(x.t() @ x for x in rows[start : start + 4]) @ weight.detach()
        torch.testing.assert_close(weight.grad, wanted, rtol=1e-4, atol=1e-3)
    assert len(steps.graphs) == 2
