"""Behaves like a training worker, without torch: resumes from its checkpoint, and misbehaves on request."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from core.home import Home, write_json
from core.jobs.sinks import FileSink
from tests.support import clock


def loss(step: int) -> float:
    return 10.0 / step


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text())
    wish = job["arguments"]
    folder = Home.open(job["home"]).run(job["run"])
    sink = FileSink(folder.events, run=job["run"], job=job["job"], attempt=job["attempt"], cancel=Path(job["cancel"]))
    if wish.get("ignore_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(wish.get("children", 0)):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if wish.get("runaway"):  # a grandchild in a session of its own
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    for _ in range(wish.get("print_mib", 0)):
        print("x" * (1 << 20))
    if wish.get("babble"):  # for ever, without a line's end and with bytes that are no text
        threading.Thread(target=babble, args=(wish["babble"],), daemon=True).start()
    checkpoint = folder.checkpoints / f"{job['job']}.json"
    first = 0
    if job["resume"] and checkpoint.exists():
        first = json.loads(checkpoint.read_text())["step"]
    total = wish.get("steps", 20)
    if wish.get("peak"):  # bytes of the GPU
        sink.emit("memory", peak=wish["peak"])
    if job["share"] < wish.get("least_share", 0.0):
        sink.emit("failed", failure="memory", message="The device ran out of memory.", hint="Lower it.", tail="")
        return 1
    sink.emit("started", step=first, device=job["device"], versions={"worker": "1"}, trainable=10, total=100)
    for step in range(first + 1, total + 1):
        if wish.get("heed_cancel", True) and sink.cancelled():
            write_json(checkpoint, {"step": step - 1})
            sink.emit("cancelled", step=step - 1)
            return 3
        time.sleep(wish.get("pause", 0.01))
        sink.emit("metrics", step=step, values={"loss": loss(step), "attempt": job["attempt"]})
        sink.emit("progress", step=step, total=total, phase="training", seconds_left=float(total - step))
        misbehave(wish, step, job["attempt"], sink)
        if step == total // 2 and wish.get("jump"):
            clock.jump(wish["jump"])
        while step == (wish.get("hold") or {}).get(str(job["attempt"])) and not (folder.root / "go").exists():
            if sink.cancelled():
                break
            time.sleep(0.02)
        if step % wish.get("checkpoint_every", 5) == 0:
            np.savez(folder.routing / f"step-{step}.npz", mean_gate=np.full((2, 3), step, np.float32), tasks=["a", "b"])
            sink.emit("routing", step=step, moment=f"step-{step}", split="validation", file=f"step-{step}.npz")
            write_json(checkpoint, {"step": step})
            sink.emit("checkpoint", step=step, path=f"checkpoints/{checkpoint.name}")
    sink.emit(
        "score", task="a", dataset="d", split="test", model="adapter", metric="accuracy", value=0.5, stderr=0.1,
        rows=4, primary=True, chance=0.25, predictions="a.jsonl", key="k",
    )  # fmt: skip
    sink.emit("finished", step=total)
    time.sleep(wish.get("linger", 0))
    return 0


def babble(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        os.write(1, b"\xff\x00\x1b[31mnoise " * 8000)


def misbehave(wish: dict, step: int, attempt: int, sink: FileSink) -> None:
    if step == wish.get("die_at") and attempt <= wish.get("deaths", 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if step == wish.get("exit_at"):
        print("about to leave")
        sys.exit(wish.get("exit_code", 1))
    if step == wish.get("fail_at") and attempt <= wish.get("failures", 1):
        sink.emit("failed", failure="data", message="Row 3 is empty.", hint="Fill it.", tail="row 1\nrow 2\nrow 3")
        sys.exit(1)


if __name__ == "__main__":
    raise SystemExit(main())
