"""What killed processes left half done: taken away when a worker's end is seen and when a dispatcher starts."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from core.home import Home, RunFolder, write_text
from core.jobs.processes import boot_id

UNTOUCHED_SECONDS = 24 * 3600.0
RESTARTED_SECONDS = 600.0
PLACES = {  # below the home -> names of what is moved there as a whole when it is ready, or is on its way out
    "runs": (".gone-*", ".import-*"),
    "datasets": (".gone-*", ".new-*"),
    "cache": ("experts-*",),
    "cache/tokens": (".*",),
    "runs/*": (".adapter-*", ".spec.json.*"),
    "runs/*/jobs": (".*.json.*",),
    "runs/*/routing": (".*.npz.*",),
    "dispatcher": (".pid.*", ".web-*"),
}


def sweep(home: Home) -> list[Path]:
    """Delete what nobody can be writing any more; returns what was deleted.

    A living process may be in the middle of anything that was touched within a day, or within minutes where the
    machine was started anew since the last sweep.
    """
    last = home.dispatcher / "boot"
    restarted = not last.is_file() or last.read_text("utf-8").strip() != boot_id()
    oldest = time.time() - (RESTARTED_SECONDS if restarted else UNTOUCHED_SECONDS)
    gone = []
    for place, names in PLACES.items():
        for path in (path for folder in home.root.glob(place) for name in names for path in folder.glob(name)):
            with contextlib.suppress(OSError):
                if _touched(path) < oldest:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
                    gone.append(path)
    with contextlib.suppress(OSError):
        write_text(last, boot_id() + "\n")
    return gone


def sweep_run(folder: RunFolder) -> None:
    """Delete what a worker had begun to write: hidden until it is whole. Nobody else may be at work in the folder."""
    for place in (folder.root, folder.jobs, folder.checkpoints, folder.routing, folder.predictions):
        for path in place.glob(".*"):
            with contextlib.suppress(OSError):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def _touched(path: Path) -> float:
    """When anything in it changed last."""
    inside = (one.lstat().st_mtime for one in path.rglob("*")) if path.is_dir() and not path.is_symlink() else ()
    return max((path.lstat().st_mtime, *inside))
