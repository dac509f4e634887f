"""A worker that has a share of a GPU is kept to it by PyTorch, and says what it held."""

import json
import os
import subprocess
import sys

import pytest
import torch

from core.home import PROJECT
from core.jobs.worker import ENVIRONMENT

WORKER = """
import json, sys, torch
from core.jobs import worker
from core.jobs.sinks import ListSink
from core.schema import RunSpec, TaskSpec

def take(job, sink):
    device = worker._device(job, RunSpec(tasks=[TaskSpec(dataset="d")]), sink)
    whole = torch.cuda.get_device_properties(0).total_memory
    held = [torch.empty(int(part * whole), dtype=torch.uint8, device=device) for part in job["parts"]]
    return len(held)

worker.JOBS["train"] = take
sink = ListSink()
worker.run_job(json.loads(sys.argv[1]), sink)
print(json.dumps(sink.events))
"""


def events(**job: object) -> dict[str, dict]:
    order = json.dumps({"kind": "train", "device": "cuda", **job})
    path = os.pathsep.join(part for part in (str(PROJECT), os.environ.get("PYTHONPATH", "")) if part)
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run([sys.executable, "-c", WORKER, order], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return {event["kind"]: event for event in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.gpu
def test_more_than_the_share_is_refused_and_the_peak_is_told() -> None:
    whole = torch.cuda.get_device_properties(0).total_memory
    inside = events(share=0.25, parts=[0.1, 0.1])
    assert "finished" in inside and "25%" in inside["log"]["message"]
    assert 0.2 * whole <= inside["memory"]["peak"] <= 0.25 * whole
    beyond = events(share=0.25, parts=[0.1, 0.1, 0.1])
    assert beyond["failed"]["failure"] == "memory" and beyond["memory"]["peak"] <= 0.25 * whole
    alone = events(share=1.0, parts=[0.1, 0.1, 0.1])
    assert "finished" in alone and "log" not in alone
