"""Runs what its arguments say and prints the most memory that it held, in MiB, without pages of files."""

import json
import sys
import threading
import time
from pathlib import Path

from core.data.store import DatasetStore


def anonymous() -> float:
    told = Path("/proc/self/status").read_text()
    return int(next(line for line in told.splitlines() if line.startswith("RssAnon")).split()[1]) / 1024


def main(what: str, root: str, given: str) -> dict[str, float]:
    if what == "upload":
        from core.data.upload import upload

        work = lambda: upload(DatasetStore(root), given)  # noqa: E731
    elif what == "preview":
        from core.data.templates import TextEncoder
        from core.data.upload import preview
        from core.home import BUNDLED_BASE_FOLDER

        work = lambda: preview(given, encoder=TextEncoder(BUNDLED_BASE_FOLDER), room=Path(root))  # noqa: E731
    else:
        work = prepared(root, given)
    before, most, done = anonymous(), [0.0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], anonymous())
            time.sleep(0.01)

    watching = threading.Thread(target=watch)
    watching.start()
    work()
    done.set()
    watching.join()
    return {"before": before, "most": most[0]}


def prepared(root: str, name: str):
    """What a worker does with its data before the first step."""
    from core.data.batches import TaskDataset
    from core.data.tasks import load_tasks
    from core.data.templates import TextEncoder
    from core.models import resolve_base
    from core.schema import ModelSpec, TaskSpec

    tasks = load_tasks(DatasetStore(root), [TaskSpec(dataset=name)])
    encoder = TextEncoder(resolve_base(ModelSpec(base="tessera-base")))

    def work() -> None:
        rows = TaskDataset(tasks, encoder, "train", 256)
        rows.keep()
        rows.lengths  # noqa: B018
        for index in range(0, len(rows), max(1, len(rows) // 100)):
            rows[index]

    return work


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
