"""Cases that are compiled side by side, each in a process of its own, and measured one after the other."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.cases import Case


def side_by_side(
    shape: str, chosen: Sequence[Case], count: int, together: int, within: float, rate: float | None
) -> Iterator[dict[str, Any]]:
    """Rows in order. While one case is measured, the others of its round wait, and nothing is compiled."""
    context = multiprocessing.get_context("spawn")
    workers = []
    for _ in range(min(together, len(chosen))):
        mine, theirs = context.Pipe()
        process = context.Process(target=_work, args=(shape, count, rate, theirs), daemon=True)
        process.start()
        theirs.close()
        workers.append((process, mine))
    for start in range(0, len(chosen), len(workers)):
        if time.monotonic() > within:
            break
        busy = list(zip(chosen[start : start + len(workers)], [pipe for _, pipe in workers], strict=False))
        for case, pipe in busy:
            pipe.send(case)
        for case, pipe in busy:
            _heard(pipe, case)  # ready, all of them
        for case, pipe in busy:
            yield _heard(pipe, case, "measure")
    for process, pipe in workers:
        pipe.close()
        process.join(10)
        process.kill()


def _heard(pipe: Connection, case: Case, ask: str = "") -> dict[str, Any]:
    """What the process says; one that died (of memory, say) loses its later cases too."""
    try:
        if ask:
            pipe.send(ask)
        return pipe.recv()
    except (EOFError, OSError) as error:
        return case.facts() | {"error": f"its process is gone: {error}"}


def _work(shape: str, count: int, rate: float | None, parent: Connection) -> None:
    import torch

    from benchmarks.throughput import Bench, failed
    from benchmarks.timing import release, row

    device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Bench(shape, device, count, rate=rate)
    while True:
        try:
            case = parent.recv()
        except EOFError:
            return
        steps, found = None, {}
        try:
            steps = bench.steps(case)
            steps.prepare()
        except Exception as error:
            found = failed(case, error)
        if device == "cuda":
            torch.cuda.empty_cache()  # room for the others
        parent.send({})
        parent.recv()
        try:
            if steps is not None and not found:
                steps.timed()
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                found = row(steps, float("nan"), [steps.timed() for _ in range(count)], bench.weights, rate)
                found["first_step_s"] = None
        except Exception as error:
            found = failed(case, error)
        del steps
        release(device)
        parent.send(found)
