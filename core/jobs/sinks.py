"""The torch side's only way out: events.

An event is one flat JSON object. Every event has ``run``, ``job``, ``attempt``, ``seq`` (from 1 in each attempt),
``at`` (UTC, ISO 8601) and ``kind``; the other fields depend on the kind:

=============  ========================================================================================================
started        ``step`` the attempt resumes from (0: from the start), ``device``, ``versions``, ``trainable`` and
               ``total`` parameters. Points of earlier attempts past ``step`` are void: no step counts twice.
estimate       ``memory``: bytes that training was estimated to take at its peak, said before it starts
memory         ``peak``: bytes of the GPU that the job held at most, said before its last event
progress       ``step``, ``total``, ``phase`` (loading, embedding prompts, training, fusing, scoring), ``seconds_left``
metrics        ``step``, ``values``: name -> number. Names: ``loss``, ``loss/<task>``, ``validation/<task>``,
               ``validation``, ``auxiliary_loss``, ``auxiliary_loss/<name>``, ``learning_rate``, ``grad_norm``,
               ``tokens_per_second``, ``memory_gib``
routing        ``step``, ``moment`` (``step-100`` ..., ``end``), ``split``, ``file``: name under ``routing/``
score          ``task``, ``dataset`` (content hash), ``split``, ``model`` (``adapter`` or ``base``), ``metric``,
               ``value``, ``stderr``, ``rows``, ``primary`` (bool), ``chance``, ``predictions``: name under
               ``predictions/``, ``key``: hash of rows, template and scoring options: equal keys can be paired
               (with the same metric); ``trivial`` and ``copy``: baselines to beat, or null
table          ``name``, ``step``, ``columns`` (texts) and ``rows`` (lists of numbers, texts and nulls): what fusing
               found, such as ``coefficients`` (run by projection), ``mask_density``, ``form``, ``sweep``
checkpoint     ``step``, ``path`` relative to the run folder
log            ``level`` (info, warning, error), ``message``
alarm          ``name`` (diverged, spike, gradient, dead experts, collapse), ``step``, ``message``
finished       ``step``
cancelled      ``step``
failed         ``failure`` (data, memory, disk, alarm, configuration, internal), ``message``, ``hint``, ``tail``
=============  ========================================================================================================
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TextIO

from core.secrets import masked


class Cancelled(Exception):
    """The job was asked to stop and did, at a step from which it can go on."""

    def __init__(self, step: int = 0) -> None:
        super().__init__(f"cancelled at step {step}")
        self.step = step


class Sink(Protocol):
    def emit(self, kind: str, **fields: Any) -> None: ...

    def cancelled(self) -> bool: ...


class FileSink:
    """Appends whole lines to ``events.jsonl``; cancelled when the file ``cancel`` stands beside the job."""

    def __init__(self, path: Path, *, run: str, job: str, attempt: int, cancel: Path | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if os.fstat(self._file).st_size and not _ends_with_newline(path):
            os.write(self._file, b"\n")  # a killed writer left half a line: end it, readers skip it
        self._head = {"run": run, "job": job, "attempt": attempt}
        self._began, self._clock = (
            datetime.now(UTC),
            time.monotonic(),
        )  # times keep their distances when the clock jumps
        self._cancel = cancel
        self._seq = 0

    def emit(self, kind: str, **fields: Any) -> None:
        self._seq += 1
        at = self._began + timedelta(seconds=time.monotonic() - self._clock)
        event = {**self._head, "seq": self._seq, "at": at.isoformat(timespec="milliseconds"), "kind": kind, **fields}
        line = masked(json.dumps(event, ensure_ascii=False, allow_nan=True, default=_plain)).encode() + b"\n"
        while line:  # a disk that is nearly full takes a part and refuses the rest
            line = line[os.write(self._file, line) :]

    def cancelled(self) -> bool:
        return self._cancel is not None and self._cancel.exists()

    def close(self) -> None:
        os.close(self._file)


class ListSink:
    """Keeps events in memory: for tests and notebooks."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.stop = False

    def emit(self, kind: str, **fields: Any) -> None:
        self.events.append({"seq": len(self.events) + 1, "kind": kind, **fields})

    def cancelled(self) -> bool:
        return self.stop

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]


class TerminalSink:
    """One line for each thing worth reading."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr

    def emit(self, kind: str, **fields: Any) -> None:
        if (line := describe(kind, fields)) is not None:
            print(line, file=self._out, flush=True)

    def cancelled(self) -> bool:
        return False


class Tee:
    """Several sinks as one; cancelled when any of them is."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def emit(self, kind: str, **fields: Any) -> None:
        for sink in self._sinks:
            sink.emit(kind, **fields)

    def cancelled(self) -> bool:
        return any(sink.cancelled() for sink in self._sinks)


def describe(kind: str, event: dict[str, Any]) -> str | None:
    """One line for people, or None for events that only programs read."""
    match kind:
        case "progress" if event.get("total"):
            left = event.get("seconds_left")
            rest = "" if left is None else f", {left:.0f} s left"
            return f"{event.get('phase', 'working')} {event['step']}/{event['total']}{rest}"
        case "metrics" if "loss" in event["values"]:
            return f"step {event['step']}: loss {event['values']['loss']:.4f}"
        case "score" if event.get("primary"):
            error = "" if event.get("stderr") is None else f" ± {event['stderr']:.3f}"
            return f"{event['task']} ({event['model']}): {event['metric']} {event['value']:.3f}{error}"
        case "log" | "alarm":
            return f"{event.get('level', 'warning')}: {event['message']}"
        case "failed":
            return f"failed ({event['failure']}): {event['message']} {event.get('hint', '')}".rstrip()
        case "finished" | "cancelled":
            return kind
    return None


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()  # numpy and torch scalars
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
