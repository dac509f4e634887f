"""Secrets stay where they are needed: which processes get them, and texts without them. Imports no torch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

HIDDEN = "[hidden]"
SHORTEST = 6  # letters; anything shorter would hide words
OURS = ("TESSERA_PASSWORD", "TESSERA_TOKEN", "TESSERA_DATABASE_URL")  # of no use to a worker, which knows no database
HUB = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
# What Hub tokens, API tokens of the studio and names before an address look like.
SHAPES = re.compile(r"\bhf_[A-Za-z0-9]{16,}|\btsr_[A-Za-z0-9_-]{16,}|(?<=://)[^\s/@:]+:[^\s/@]+(?=@)")


def for_work(environment: Mapping[str, str], hub: bool = True) -> dict[str, str]:
    """The variables for a process that works: not the studio's own secrets; ``hub``: it may fetch from the Hub."""
    left_out = OURS if hub else (*OURS, *HUB)
    return {name: value for name, value in environment.items() if name not in left_out}


def masked(text: str) -> str:
    """A text in which every secret that this process knows is hidden, and what looks like one."""
    for secret in _known(*(os.environ.get(name, "") for name in (*OURS, *HUB, "HF_ENDPOINT", "HF_TOKEN_PATH"))):
        text = text.replace(secret, HIDDEN)
    return SHAPES.sub(HIDDEN, text)


def guard_output() -> None:
    """Hide secrets in what this process prints, tracebacks of libraries included; for processes with a log."""
    sys.stdout, sys.stderr = _Masked(sys.stdout), _Masked(sys.stderr)


@lru_cache(maxsize=8)
def _known(password: str, token: str, database: str, *hub: str) -> tuple[str, ...]:
    """Secrets, the longest first; ``hub`` are two tokens, the address of the Hub and the file of the token."""
    *tokens, endpoint, file = hub
    path = Path(file or "~/.cache/huggingface/token").expanduser()
    with suppress(OSError, ValueError):
        tokens.append(path.read_text("utf-8").strip())
    found = {password, token, *tokens, *(_password(address) for address in (database, endpoint))}
    return tuple(sorted((one for one in found if len(one) >= SHORTEST), key=len, reverse=True))


def _password(address: str) -> str:
    try:
        return urlsplit(address).password or ""
    except ValueError:
        return ""


class _Masked:
    """A stream that hides secrets in each piece of text that is written. A disk that takes no log ends no work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(masked(text))
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
