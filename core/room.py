"""Room on the disk: what a run will write, and how a disk that cannot be written shows itself. Imports no torch."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import DiskError, StudioError
from core.home import RESERVE
from core.schema import TrainSpec
from core.units import size

MOMENTS = 2  # AdamW keeps two numbers for each one that is trained
WIDTH = 4  # bytes: adapter and optimiser are float32
BY_ITSELF = 5  # checkpoints of a run that does not say how often
FEWER = "lower train.checkpoints_kept, or adapt less"
EXIT_NO_ROOM = 4  # of a process that the disk lets write nothing, not even why
ROOM = "Make room (python app.py disk --clean checkpoints)"
RESUME = "resume: it goes on from its last checkpoint"
FREE = f"{ROOM}, then {RESUME}."
TROUBLES = {
    errno.ENOSPC: ("The disk is full", ROOM),
    errno.EDQUOT: ("The quota on this disk is used up", ROOM),
    errno.EFBIG: ("The disk takes no file that large", "Raise the limit (ulimit -f)"),
    errno.EROFS: ("The disk can only be read", "Mount it so that it can be written"),
    errno.EACCES: ("The rights of a file or folder forbid it", "Give them to the studio's user (chmod)"),
    errno.EIO: ("The disk reports an error", "Look at the disk (dmesg)"),
}
FULL = (errno.ENOSPC, errno.EDQUOT)
LIBRARIES = re.compile(r"\(os error (\d+)\)")  # how safetensors names what the system said


def trouble(error: BaseException, then: str = RESUME) -> DiskError | None:
    """The disk's part in an error, which libraries wrap in errors of their own; None where it has none.

    ``then`` is what to do once it is mended.
    """
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return None
        number = seen.errno if isinstance(seen, OSError) else None
        if number is None and (named := LIBRARIES.search(str(seen))):
            number = int(named[1])
        if number in TROUBLES:
            what, hint = TROUBLES[number]
            where = f": {seen.filename}" if isinstance(seen, OSError) and seen.filename else ""
            return DiskError(f"{what}{where}.", f"{hint}, then {then}.")
        seen = seen.__cause__ or seen.__context__
    return None


def told(text: str) -> DiskError | None:
    """As ``trouble``, from the last words of a process that said no more."""
    for number, (what, hint) in TROUBLES.items():
        if f"[Errno {number}]" in text or (number in FULL and os.strerror(number) in text):
            return DiskError(f"{what}.", f"{hint}, then {RESUME}.")
    return None


@contextmanager
def explained(then: str = "try again") -> Iterator[None]:
    """Raise a disk that cannot be written as DiskError; for what people wait for."""
    try:
        yield
    except StudioError:
        raise
    except Exception as error:
        if (found := trouble(error, then)) is None:
            raise
        raise found from error


def checkpoint_bytes(trainable: int, train: TrainSpec) -> int:
    """Bytes of one checkpoint: adapter, optimiser, and the best adapter where training may stop early."""
    copies = 1 + MOMENTS + (train.early_stopping is not None)
    return WIDTH * trainable * copies


def needed(trainable: int, train: TrainSpec) -> int:
    """Bytes that checkpoints (those kept, one that an alarm keeps, one being written) and adapter take at most."""
    most = train.checkpoints_kept + 2
    if train.checkpoint_every is None:
        most = min(most, BY_ITSELF)
    elif train.steps is not None:
        most = min(most, math.ceil(train.steps / train.checkpoint_every))
    return checkpoint_bytes(trainable, train) * most + WIDTH * trainable


def require(trainable: int, train: TrainSpec, folder: Path) -> str:
    """Raise DiskError where the disk of ``folder`` has no room for a run's checkpoints.

    Returns what is to be said where they would leave less than the reserve, else nothing.
    """
    need = needed(trainable, train)
    free = require_bytes(need, folder, "The checkpoints and the adapter of this run", f"{ROOM}, {FEWER}.")
    if not trainable or free - need >= RESERVE:
        return ""
    return (
        f"Checkpoints and adapter take up to {size(need)} of the {size(free)} that are free on the disk of {folder}, "
        f"and leave little to the studio. {FEWER.capitalize()}."
    )


def require_bytes(need: int, folder: Path, what: str, hint: str) -> int:
    """Bytes that are free on the disk of ``folder``; DiskError where ``what`` needs more than that."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < need:
        raise DiskError(f"{what} take up to {size(need)}; {size(free)} are free on the disk of {folder}.", hint)
    return free
