"""One job in one process: ``python -m core.jobs.worker <run folder>/jobs/<job>.json``.

The exit code is 0 for done, 1 for failed, 3 for cancelled and 4 where the disk took not even the last event. Whoever
starts a worker gives it a process group and places for its output; a worker writes into its run folder only.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from core.errors import StudioError
from core.home import Home, RunFolder, read_json
from core.jobs.sinks import Cancelled, FileSink, Sink, Tee
from core.memory import CONTEXT, size
from core.room import EXIT_NO_ROOM, trouble
from core.schema import RunSpec, TaskSpec
from core.secrets import guard_output

DONE, FAILED, CANCELLED = 0, 1, 3
TAIL_LINES = 12
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",  # loaders fork after the tokenizer was used
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # batches differ in length: less fragmentation
}
MEMORY_HINT = (
    "Lower train.batch_size (raise train.gradient_accumulation by as much to keep the result), lower train.max_length "
    "or evaluation.batch_size, or set train.activation_checkpointing to true."
)
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1:
        print("usage: python -m core.jobs.worker <run folder>/jobs/<job>.json", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries to each other's authors; the log is for users
    guard_output()
    path = Path(arguments[0]).resolve()
    job = read_json(path)
    job.setdefault("folder", str(path.parent.parent))
    cancel = Path(job["cancel"]) if job.get("cancel") else None
    events = RunFolder(Path(job["folder"])).events
    stop = StopSignal()
    signal.signal(signal.SIGTERM, stop.heard)
    try:
        file = FileSink(events, run=job["run"], job=job["job"], attempt=job["attempt"], cancel=cancel)
    except OSError as error:
        if trouble(error) is None:
            raise
        print(error, file=sys.stderr)
        return EXIT_NO_ROOM
    try:
        return run_job(job, Tee(file, stop))
    finally:
        file.close()


class StopSignal:
    """A sink that only listens: SIGTERM asks for a checkpoint and an orderly end."""

    def __init__(self) -> None:
        self.asked = False

    def heard(self, *_: Any) -> None:
        self.asked = True

    def emit(self, kind: str, **fields: Any) -> None:
        pass

    def cancelled(self) -> bool:
        return self.asked


def run_job(job: dict[str, Any], sink: Sink) -> int:
    """Do a job in this process and say how it ended; returns the exit code and raises nothing but what ends Python."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        try:
            code, word, fields = DONE, "finished", {"step": _do(job, sink)}
        except Cancelled as stopped:
            code, word, fields = CANCELLED, "cancelled", {"step": stopped.step}
        except KeyboardInterrupt:
            sink.emit("log", level="warning", message="Interrupted: the run goes on from its last checkpoint.")
            code, word, fields = CANCELLED, "cancelled", {"step": 0}
        except Exception as error:
            code, word, fields = FAILED, "failed", describe_failure(error)
            if fields["failure"] == "internal":
                traceback.print_exception(error)
        sink.emit(word, **fields)
    except OSError as error:
        if trouble(error) is None:
            raise
        with suppress(OSError):  # the log lies on the same disk
            print(error, file=sys.stderr)
        return EXIT_NO_ROOM
    return code


def _do(job: dict[str, Any], sink: Sink) -> int:
    try:
        return JOBS[job["kind"]](job, sink)
    finally:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            sink.emit("memory", peak=torch.cuda.max_memory_reserved())


def describe_failure(error: BaseException) -> dict[str, str]:
    """The failure class of an exception, with message, hint and, unless it explains itself, the last lines of its
    traceback."""
    tail = "".join(traceback.format_exception(error)).strip().splitlines()[-TAIL_LINES:]
    if isinstance(error, StudioError):
        cause = [] if error.__cause__ is None else traceback.format_exception_only(error.__cause__)
        tail = "".join(cause).strip().splitlines()[-TAIL_LINES:]
        found = {"failure": error.kind, "message": error.message, "hint": error.hint}
    elif full := trouble(error):
        found = {"failure": full.kind, "message": full.message, "hint": full.hint}
    elif is_out_of_memory(error):
        found = {"failure": "memory", "message": f"The device ran out of memory: {_first_line(error)}"}
        found["hint"] = MEMORY_HINT
    else:
        message = f"{type(error).__name__}: {_first_line(error)}"
        hint = "This is a fault of the studio or of a library; the log has the whole traceback."
        found = {"failure": "internal", "message": message, "hint": hint}
    return found | {"tail": "\n".join(tail)}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine refused memory; libraries say so with several exceptions."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in OUT_OF_MEMORY)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _train(job: dict[str, Any], sink: Sink) -> int:
    folder, store, spec = _open(job)
    sink.emit("progress", step=0, total=0, phase="loading", seconds_left=None)
    with _lasting():
        from core.training.run import train

    experts = (job.get("arguments") or {}).get("experts") or ()
    device = _device(job, spec, sink)
    return train(spec, folder, store, sink, device=device, resume=bool(job.get("resume")), experts=experts)


def _score(job: dict[str, Any], sink: Sink) -> int:
    folder, store, spec = _open(job)
    with _lasting():
        from core.evaluation.run import score
        from core.models import pick_device
        from core.training.settings import versions

    device = pick_device(_device(job, spec, sink))
    sink.emit("started", step=0, device=device, versions=versions())
    given = job.get("arguments") or {}
    tasks = [TaskSpec.parse(task) for task in given["tasks"]] if given.get("tasks") else None
    models = tuple(given.get("models") or ("adapter", "base"))
    split = given.get("split") or spec.evaluation.split
    score(spec, folder, store, sink, tasks=tasks, split=split, models=models, device=device)
    return 0


def _fuse(job: dict[str, Any], sink: Sink) -> int:
    folder, store, spec = _open(job)
    sink.emit("progress", step=0, total=0, phase="loading", seconds_left=None)
    with _lasting():
        from core.fusion.run import fuse

    runs, device = Home.open(job["home"]).runs, _device(job, spec, sink)
    return fuse(spec, folder, store, sink, runs=runs, device=device, resume=bool(job.get("resume")))


@contextmanager
def _lasting() -> Iterator[None]:
    """What libraries make as they are imported lives as long as the process: to look for garbage in it takes a second
    here and again at every collection."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


JOBS: dict[str, Callable[[dict[str, Any], Sink], int]] = {"train": _train, "score": _score, "fuse": _fuse}


def _open(job: dict[str, Any]) -> tuple[RunFolder, Any, RunSpec]:
    from core.data.store import DatasetStore

    _limit_threads()
    home = Home.open(job["home"])
    folder = RunFolder(Path(job["folder"])) if job.get("folder") else home.run(job["run"])
    return folder, DatasetStore(home.datasets), RunSpec.parse(read_json(folder.spec))


def _device(job: dict[str, Any], spec: RunSpec, sink: Sink) -> str:
    """The job's device as this process sees it: a GPU is made the only visible one, so that nothing touches another."""
    import torch

    device, share = job.get("device") or spec.device, job.get("share", 1.0)
    kind, _, index = device.partition(":")
    if kind != "cuda" or torch.cuda.is_initialized():
        return device
    if os.environ.get("CUDA_VISIBLE_DEVICES") is None and index:
        os.environ["CUDA_VISIBLE_DEVICES"], device = index, "cuda:0"
    if share < 1.0 and torch.cuda.is_available():
        _stay_within(share, sink)
    return device


def _stay_within(share: float, sink: Sink) -> None:
    """Limit what torch may hold of the GPU, so that no job pushes out another."""
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    allowed = max(int(share * total) - CONTEXT, 0)
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    message = f"Other jobs may run on the same GPU: this one has {share:.0%} of it and may hold {size(allowed)}."
    sink.emit("log", level="info", message=message)


def _limit_threads() -> None:
    """``TESSERA_THREADS`` caps torch's CPU threads, so that several workers can share a machine."""
    if threads := os.environ.get("TESSERA_THREADS"):
        import torch

        torch.set_num_threads(max(1, int(threads)))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written, and to take torch apart piece by piece holds the device for seconds
