"""What workers print: a file that stays small whatever they print, and its end in readable lines."""

from __future__ import annotations

import os
from pathlib import Path

LIMIT = 16 << 20
HEAD, TAIL = 64 << 10, 1 << 20
TAIL_BYTES = 64 << 10
LINE = 500  # characters of one line that are shown
CUT = "\n[{left:,} bytes of output were cut out here: the log keeps its beginning and its end]\n"


def shorten(path: Path, limit: int = LIMIT) -> bool:
    """Cut the middle out of a log of more than ``limit`` bytes; what is appended meanwhile comes behind.

    The writer is never waited for and never waits: it appends to the same file, which becomes shorter under it.
    """
    try:
        if path.stat().st_size <= limit:
            return False
        with path.open("r+b") as file:
            head = file.read(HEAD)
            end = file.seek(0, os.SEEK_END)
            file.seek(max(len(head), end - TAIL))
            tail = file.read(TAIL)
            file.truncate(len(head))
        note = CUT.format(left=end - len(head) - len(tail)).encode()
        with path.open("ab") as file:
            file.write(note + tail)
    except OSError:
        return False  # a full disk, or somebody removed it: the next pass tries again
    return True


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log, however long it is; bytes that are no text become signs of replacement."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    return [_readable(line) for line in text.splitlines()[-count:]] if count > 0 else []


def _readable(line: str) -> str:
    kept = line if len(line) <= LINE else f"{line[: LINE // 2]} … {line[-LINE // 2 :]}"
    return "".join(sign if sign.isprintable() or sign == "\t" else "\N{REPLACEMENT CHARACTER}" for sign in kept)
