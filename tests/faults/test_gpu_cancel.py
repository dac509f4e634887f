"""Cancelling a real run on a GPU gives its memory back. Needs the studio's database packages, no pages.

python -m pytest tests/faults/test_gpu_cancel.py -q
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.home import PROJECT, write_json
from storage.queries import jobs, runs
from tests.support.tiny import tiny_base
from tests.support.training import MOSLD, toy_spec, toy_store

pytestmark = pytest.mark.gpu
FREE = "import torch; print(torch.cuda.mem_get_info(0)[0])"
DISPATCHER = """
import signal, sys
from core.home import Home
from core.jobs.dispatcher import Dispatcher, Limits
dispatcher = Dispatcher(Home.open(sys.argv[1]), limits=Limits(poll=0.1, idle=None))
signal.signal(signal.SIGTERM, dispatcher.stop)
dispatcher.run()
"""


def free() -> int:
    """Bytes of the GPU that are free, as another process sees them."""
    return int(subprocess.run([sys.executable, "-c", FREE], capture_output=True, text=True, check=True).stdout)


def test_a_cancelled_run_gives_the_gpu_back_within_ten_seconds(house, tmp_path: Path) -> None:
    toy_store(house.home.datasets)
    base = tiny_base(tmp_path / "base", layers=8, hidden=512, heads=8)
    spec = toy_spec(base, MOSLD, steps=100_000, batch_size=16).model_copy(update={"device": "cuda"})
    with house.database.write() as session:
        run, _ = runs.add(session, spec=spec.model_dump(mode="json"))
        write_json(house.home.run(run.folder).create().spec, run.spec)
        job = jobs.add(session, run=run.id, kind="train", device="cuda")
    before = free()
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen([sys.executable, "-c", DISPATCHER, str(house.home.root)], cwd=PROJECT, env=environment)
    house.processes.append(process)
    house.wait(lambda: (house.job(job).step or 0) >= 20, 240)
    assert house.leases() and before - free() > 200 << 20, "the run holds no memory of the GPU"
    with house.database.write() as session:
        jobs.cancel_run(session, run=run.id)
    began = time.monotonic()
    house.until(job, "cancelled", seconds=60)
    while before - free() > 32 << 20 and time.monotonic() - began < 30:
        time.sleep(0.2)
    took = time.monotonic() - began
    print(json.dumps({"seconds until the memory was back": round(took, 2)}))
    assert took < 10 and house.survivors() == [] and house.leases() == []
