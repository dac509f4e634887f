"""What an ended worker means for its job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.jobs.worker_log import last_lines
from core.room import EXIT_NO_ROOM, FREE, told
from storage.queries.attempts import LastWords

TAIL_LINES = 50
EXIT_CANCELLED = 3


@dataclass(frozen=True)
class Ending:
    """``outcome`` of the attempt, ``state`` of its job, and whether the job is queued again instead, to run ``alone``
    on its device from now on."""

    outcome: str
    state: str
    lost_attempts: int = 0
    resume: bool = False
    failure: str | None = None
    message: str | None = None
    hint: str | None = None
    tail: str | None = None
    alone: bool = False


def judge(
    said: LastWords, exit_code: int | None, tail: str, *, limit: int, rebooted: bool = False, never_lived: bool = False
) -> Ending:
    """What the worker said itself counts first, then what was asked of it, then its exit code; else it was lost.

    ``exit_code`` is None for workers of an earlier dispatcher, negative for a signal. ``limit`` is how many attempts
    in a row may be lost without a new checkpoint (0: a lost job waits for a person). A machine that was started anew
    and a dispatcher that died while starting the worker are not the job's fault and do not count.
    """
    if said.outcome == "failed" and said.failure == "memory" and said.shared and not said.cancelling:
        return Ending("failed", "queued", said.lost_attempts, resume=True, alone=True)
    if said.outcome == "failed":
        return Ending("failed", "failed", 0, False, said.failure, said.message, said.hint, said.tail or tail)
    if said.outcome == "done":
        return Ending("done", "done")
    if said.cancelling:
        return Ending("cancelled", "cancelled")
    if said.outcome == "cancelled" and rebooted:  # a shutdown asks every process to end
        return _lost(said, exit_code, tail, limit, blameless=True)
    if said.outcome == "cancelled" or exit_code == EXIT_CANCELLED:
        message = "The worker was asked to end by something other than the studio."
        return Ending("cancelled", "cancelled", message=message, hint="Resume the job to go on from its checkpoint.")
    if exit_code == EXIT_NO_ROOM:
        return Ending(
            "failed", "failed", 0, False, "disk", "The disk took nothing more that the worker wrote.", FREE, tail
        )
    if exit_code is not None and exit_code >= 0:
        if disk := told(tail):
            return Ending("failed", "failed", 0, False, disk.kind, disk.message, disk.hint, tail)
        message, hint = _explain(exit_code)
        return Ending("failed", "failed", 0, False, "internal", message, hint, tail)
    return _lost(said, exit_code, tail, limit, blameless=rebooted or never_lived)


def read_tail(path: Path) -> str:
    """The last lines of a log, however long it is."""
    return "\n".join(last_lines(path, TAIL_LINES))


def _lost(said: LastWords, exit_code: int | None, tail: str, limit: int, *, blameless: bool) -> Ending:
    moved_on = said.checkpoint_step is not None and said.checkpoint_step > (said.resumed_from or 0)
    lost = 0 if moved_on else said.lost_attempts + (not blameless)
    how = f"killed by signal {-exit_code}" if exit_code is not None else "gone without a word"
    if limit == 0:
        return Ending("lost", "lost", lost, False, "internal", f"The worker was {how}.", "Resume the job.", tail)
    if lost < limit:
        return Ending("lost", "queued", lost, True)
    message = f"The worker was lost {lost} times without a new checkpoint; the last time it was {how}."
    hint = (
        "The system kills processes that use up the machine's memory: try a smaller batch or base, or more frequent "
        "checkpoints, then resume the job."
    )
    return Ending("lost", "failed", lost, False, "internal", message, hint, tail)


def _explain(exit_code: int) -> tuple[str, str]:
    if exit_code == 0:
        return "The worker ended before its job was done.", "Read the end of its log, then resume the job."
    return f"The worker ended with exit code {exit_code} and gave no reason.", "The end of its log says more."
