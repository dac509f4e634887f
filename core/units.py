"""Units of memory and of files, in bytes."""

from __future__ import annotations

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40


def size(count: float) -> str:
    """Bytes as 2.4 GiB or 310 MiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / MIB:.0f} MiB"
