"""A run on each supported architecture: trained with routing recorded, saved, scored and chatted with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from core.chat.engine import ChatEngine
from core.chat.settings import Sampling
from core.data.store import DatasetStore
from core.home import RunFolder
from core.jobs.sinks import ListSink
from core.routing.snapshot import RoutingSnapshot
from core.training.run import train
from tests.support.bases import DECODERS, Base
from tests.support.training import curve, toy_spec, toy_store

MOSLD = {"name": "mosld", "options": {"rank": 2, "modules": "all-linear", "experts": 3, "dropout": 0.0}}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> DatasetStore:
    return toy_store(tmp_path_factory.mktemp("few"), {"train": 12, "validation": 2, "test": 3})


@pytest.mark.parametrize("one", DECODERS, ids=lambda one: one.id)
def test_a_run_on_every_supported_base(one: Base, base: Path, few: DatasetStore, tmp_path: Path):
    folder = tmp_path / "base"
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "generation*"))
    one.made().save_pretrained(folder)
    run, sink = RunFolder(tmp_path / "run").create(), ListSink()
    spec = toy_spec(folder, MOSLD, steps=6, batch_size=6, routing_moments=1, max_length=160)
    train(spec, run, few, sink, device="cpu")
    losses = curve(sink.events)
    assert sum(losses[-2:]) < sum(losses[:2])
    assert {event["task"] for event in sink.of("score")} == {"colour", "count"}
    end = RoutingSnapshot.load(run.routing / sink.of("routing")[-1]["file"])
    assert {site.projection for site in end.sites} == set(one.projections)
    engine = ChatEngine(spec.model, "cpu")
    engine.load("mine", run.adapter)
    asked = [{"role": "user", "content": "Say the colour."}]
    pieces = list(engine.side_by_side(["mine", None], asked, Sampling(max_new_tokens=2, temperature=0)))
    assert sum(piece.ended is not None for piece in pieces) == 2
