"""Folders that nobody can write while processes work in them: mounted so for root, by their rights for others."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Whatever is opened below ``folder`` from now on can be read alone; what is open stays as it was."""
    if os.geteuid():
        places = [folder, *(path for path in folder.rglob("*") if not path.is_symlink())]
        before = [(path, path.stat().st_mode) for path in places]
        for path, mode in reversed(before):
            path.chmod(mode & ~0o222)
        try:
            yield
        finally:
            for path, mode in before:
                path.chmod(mode)
        return
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode:
        pytest.skip("root may not mount here, and rights mean nothing to root")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
