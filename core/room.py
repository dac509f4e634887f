"""Room on the disk: what a run will write, and how a disk that cannot be written shows itself. Imports no torch."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import DiskError, StudioError
from core.schema import TrainSpec
from core.units import size

MOMENTS = 2  # AdamW keeps two numbers for each one that is trained
WIDTH = 4  # bytes: adapter and optimiser are float32
EXIT_NO_ROOM = 4  # of a process that the disk lets write nothing, not even why
ROOM = "Make room (python app.py disk --clean checkpoints)"
RESUME = "resume: it goes on from its last checkpoint"
FREE = f"{ROOM}, then {RESUME}."
TROUBLES = {
    errno.ENOSPC: ("The disk is full", ROOM),
    errno.EDQUOT: ("The quota on this disk is used up", ROOM),
    errno.EFBIG: ("The disk takes no file that large", "Raise the limit (ulimit -f)"),
    errno.EROFS: ("The disk can only be read", "Mount it so that it can be written"),
    errno.EIO: ("The disk reports an error", "Look at the disk (dmesg)"),
}
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
    return checkpoint_bytes(trainable, train) * (train.checkpoints_kept + 2) + WIDTH * trainable


def require(trainable: int, train: TrainSpec, folder: Path) -> None:
    """Raise DiskError where the disk of ``folder`` has no room for a run's checkpoints."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    need, free = needed(trainable, train), shutil.disk_usage(there).free
    if free < need:
        raise DiskError(
            f"The checkpoints and the adapter of this run take up to {size(need)}; {size(free)} are free on the disk "
            f"of {folder}.",
            "Make room (python app.py disk --clean checkpoints), or lower train.checkpoints_kept.",
        )
