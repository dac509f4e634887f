"""The studio's own server with a demo of a few steps, as a process that can be killed and started again.

``python -m tests.support.small_studio HOME PORT RECIPE`` serves; ``SmallServer`` is what a test holds.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from app import server
from core.home import PROJECT
from core.studio import Studio

RECIPE = """\
name: demo
tasks: [{dataset: demo, max_new_tokens: 4, train_rows: 64, test_rows: 6}]
method: {name: mosld, options: {rank: 8, modules: all-linear}}
train: {steps: 6, batch_size: 4, max_length: 96, log_every: 1, evaluate_every: 3, validation_rows: 4,
        checkpoint_every: 3, routing_moments: 1}
evaluation: {batch_size: 32}
device: cpu
tags: [demo]
"""


class SmallStudio(Studio):
    recipe = Path()

    def demo(self, **options: Any) -> Any:
        return super().demo(recipe=self.recipe, **options)


class SmallServer:
    """``start`` serves on the port of the first time, ``kill`` ends the process as a power cut would."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, 0
        self.recipe = home.parent / "demo.yaml"
        self.recipe.write_text(RECIPE, "utf-8")
        self._process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> str:
        command = [sys.executable, "-m", "tests.support.small_studio", str(self.home), str(self.port), str(self.recipe)]
        settings = {"OMP_NUM_THREADS": "1", "TESSERA_CPU_JOBS": "2", "HF_HUB_OFFLINE": "1"}
        log = self.home.parent / "server.log"
        with log.open("w") as out:  # a pipe that nobody reads would stop the server once it is full
            self._process = subprocess.Popen(command, cwd=PROJECT, env=os.environ | settings, stdout=out, stderr=out)
        deadline = time.monotonic() + 120
        while not (found := re.search(r"http://[\d.]+:(\d+)", log.read_text("utf-8"))):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The server did not start: {log.read_text('utf-8')[-2000:]}")
            time.sleep(0.1)
        self.port = int(found[1])
        return self.address

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=20)

    def stop(self) -> None:
        """Everything that serves this home: the web process, its dispatcher, the inference worker."""
        self.kill()
        studio = Studio(self.home)
        studio.dispatcher("stop")
        studio.chats.inference.stop()
        studio.close()


def main(home: str, port: str, recipe: str) -> None:
    SmallStudio.recipe = Path(recipe)
    server.run(SmallStudio(home), port=int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
