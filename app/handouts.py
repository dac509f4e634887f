"""Files that the studio makes for a download: in Gradio's own folder, under a name that nobody can guess."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder

from app.holders import FILES
from core.paths import child
from core.room import explained

KEPT_SECONDS = 3600.0
PREFIX = "tessera-out-"

# A press makes the file and hands it to a hidden download button; this presses that one.
PRESS = "() => { setTimeout(() => document.querySelector('#%s')?.click(), 150); }"


def handed(name: str, write: Callable[[Path], Any]) -> str:
    """The file called ``name`` that ``write`` makes for whoever acts; a disk that cannot take it is a DiskError."""
    path = handout(name)
    try:
        with explained("press again"):
            write(path)
    except BaseException:
        shutil.rmtree(path.parent, ignore_errors=True)
        raise
    return str(path)


def handout(name: str) -> Path:
    """Where to write a file called ``name`` for whoever acts; those of an hour ago are removed."""
    root = Path(get_upload_folder())
    for old in root.glob(f"{PREFIX}*"):
        if time.time() - old.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    folder = root / f"{PREFIX}{secrets.token_hex(12)}"
    with explained("press again"):
        folder.mkdir(parents=True, mode=0o700)
    FILES.note(folder)
    return child(folder, "".join(letter for letter in name if letter.isalnum() or letter in "-_.")[-200:])
