"""The real worker on a disk that fills up: what, and when, stands in ``full.json`` of the run's folder."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from core.jobs import worker
from core.jobs.sinks import FileSink
from core.training import checkpoints


def limit(size: int) -> None:
    """No file of this process grows past ``size`` bytes from now on."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def full_at_checkpoint(number: int) -> None:
    honest, seen = checkpoints.write, []

    def write(*given: Any) -> Path:
        seen.append(1)
        if len(seen) == number:
            limit(20_000)
        return honest(*given)

    checkpoints.write = write


def full_at_event(number: int, events: Path) -> None:
    honest, seen = FileSink.emit, []

    def emit(sink: FileSink, kind: str, **fields: Any) -> None:
        seen.append(1)
        if len(seen) == number:
            limit(events.stat().st_size + 20)  # in the middle of a line
        honest(sink, kind, **fields)

    FileSink.emit = emit


def main(job: str) -> int:
    folder = Path(job).parent.parent
    wish = folder / "full.json"
    if wish.exists():
        what, number = json.loads(wish.read_text())
        full_at_checkpoint(number) if what == "checkpoint" else full_at_event(number, folder / "events.jsonl")
    return worker.main([job])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
