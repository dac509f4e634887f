"""A dispatcher with short limits and the stand-in worker (or the real one): HOME, then wishes as JSON."""

import json
import logging
import signal
import sys
from pathlib import Path

from core.home import Home
from core.jobs.devices import Device
from core.jobs.dispatcher import Dispatcher, Limits
from core.jobs.executors import LocalExecutor

WORKER = [sys.executable, str(Path(__file__).with_name("stand_in_worker.py"))]
SHORT = {"poll": 0.05, "cancel_grace": 0.6, "term_grace": 0.4, "finish_grace": 1.0, "nameless_grace": 1.0}


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    wish = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    slots, real = wish.pop("slots", 1), wish.pop("real", False)
    dispatcher = Dispatcher(
        Home.open(sys.argv[1]),
        executor=LocalExecutor() if real else LocalExecutor(WORKER),
        limits=Limits(**{**SHORT, "idle": None, **wish}),
        devices=lambda: [Device("cpu", "CPU", visible="", slots=slots)],
    )
    signal.signal(signal.SIGTERM, dispatcher.stop)
    return 0 if dispatcher.run() else 4


if __name__ == "__main__":
    raise SystemExit(main())
