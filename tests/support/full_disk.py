"""What a full disk does to files, without filling one: no file grows past some bytes."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def full(size: int = 600, pid: int = 0) -> Iterator[None]:
    """Of this process or another, and of the children that it starts meanwhile."""
    soft, hard = resource.prlimit(pid or os.getpid(), resource.RLIMIT_FSIZE)
    resource.prlimit(pid or os.getpid(), resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.prlimit(pid or os.getpid(), resource.RLIMIT_FSIZE, (soft, hard))
