"""A run that is cancelled while it trains on a GPU: its memory is free again within ten seconds. Needs CUDA."""

from __future__ import annotations

import subprocess
import time

import pytest
import torch
from support.tiny import tiny_base
from support.training import toy_spec, toy_store

from core.jobs.service import ensure_dispatcher, stop_dispatcher
from storage.queries import jobs, runs

pytestmark = pytest.mark.gpu
SOON = 10.0  # seconds
NOISE = 64  # MiB that other programs may take meanwhile


def used() -> int:
    """MiB of the first GPU that all programs hold."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.timeout(150)
def test_a_cancelled_run_gives_its_memory_back(house, tmp_path) -> None:
    toy_store(house.home.datasets)
    base = tiny_base(tmp_path / "base", hidden=1024, layers=8, heads=8)
    spec = toy_spec(base, {"name": "mosld", "options": {"rank": 8}}, steps=200_000, checkpoint_every=50)
    before = used()
    with house.database.write() as session:
        run, _ = runs.add(session, spec=spec.model_dump(mode="json"))
        job = jobs.add(session, run=run.id, kind="train", device="cuda")
    ensure_dispatcher(house.home)
    try:
        house.wait(lambda: (house.job(job).step or 0) >= 20 or house.job(job).state == "failed", seconds=90)
        assert house.job(job).state == "running", house.job(job)
        held = used() - before
        with house.database.write() as session:
            jobs.cancel_run(session, run=run.id)
        asked = time.monotonic()
        house.wait(lambda: used() <= before + NOISE, seconds=SOON)
        free = time.monotonic() - asked
        assert house.until(job, "cancelled", seconds=SOON).state == "cancelled"
        print(f"{held} MiB were held; all were free {free:.1f} s after the wish")
        assert held > 400, "the run held nothing that could be given back"
        assert house.survivors() == [] and house.leases() == []
        assert any(house.home.run(run.folder).checkpoints.glob("step-*")), "nothing to go on from"
    finally:
        stop_dispatcher(house.home)
