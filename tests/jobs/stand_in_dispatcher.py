"""A dispatcher with short limits and the stand-in worker (or the real one): HOME, then wishes as JSON."""

import json
import logging
import resource
import signal
import sys
import threading
import time
from pathlib import Path

from sqlalchemy import event

from core.home import Home
from core.jobs.devices import Device
from core.jobs.dispatcher import Dispatcher, Limits
from core.jobs.executors import LocalExecutor
from storage import Database
from tests.support import clock

WORKER = [sys.executable, str(Path(__file__).with_name("stand_in_worker.py"))]
SHORT = {"poll": 0.05, "read": 0.0, "cancel_grace": 0.6, "term_grace": 0.4, "finish_grace": 1.0, "nameless_grace": 1.0}


def fill(flag: Path) -> None:
    """While the file is there, no file of this process can grow: what a full disk does to a database."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    while True:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024 if flag.exists() else hard, hard))
        time.sleep(0.02)


def forbid(database: Database, flag: Path) -> None:
    """While the file is there, connections that are open can read alone, as on a file system that was mounted anew."""
    begun = lambda connection: flag.exists() and connection.exec_driver_sql("PRAGMA query_only=ON")  # noqa: E731
    event.listen(database.engine, "begin", begun)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    wish = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    slots, real = wish.pop("slots", 1), wish.pop("real", False)
    worker, jump, full, busy = (wish.pop(name, None) for name in ("worker", "jump", "full", "busy"))
    readonly = wish.pop("readonly", None)
    dispatcher = Dispatcher(
        Home.open(sys.argv[1]),
        executor=LocalExecutor() if real else LocalExecutor([sys.executable, worker] if worker else WORKER),
        limits=Limits(**{**SHORT, "idle": None, **wish}),
        devices=lambda: [Device("cpu", "CPU", visible="", slots=slots)],
    )
    if busy:
        dispatcher.database = Database(dispatcher.home.database_url, busy_seconds=busy)
    if readonly:
        forbid(dispatcher.database, Path(readonly))
    if jump:
        threading.Timer(0.5, clock.jump, [jump]).start()
    if full:
        threading.Thread(target=fill, args=[Path(full)], daemon=True).start()
    signal.signal(signal.SIGTERM, dispatcher.stop)
    return 0 if dispatcher.run() else 4


if __name__ == "__main__":
    raise SystemExit(main())
