"""``make lock``: the versions and hashes of all that is installed beside torch, for every Python and platform at once.

Torch and what it brings (CUDA) stay out: which build is right depends on the machine. No index stands in the files, so
any mirror serves them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from core.home import PROJECT

LEFT_OUT = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)$")
OLDEST = "3.11"
HEAD = "# Written by `make lock` from {source}. Install with: pip install --no-deps --require-hashes -r {name}\n"


def resolved(source: Path, constraints: str) -> dict[str, list[str]]:
    """Package -> its entries (one for each marker), each with all hashes."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as given:
        given.write(constraints)
        given.flush()
        command = [sys.executable, "-m", "uv", "pip", "compile", str(source), "--constraints", given.name]
        command += [
            "--universal",
            "--python-version",
            OLDEST,
            "--generate-hashes",
            "--no-header",
            "--no-annotate",
            "-q",
        ]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, list[str]] = {}
    for entry in re.split(r"\n(?=\S)", text.strip()):
        name = entry.partition("==")[0].lower()
        if not LEFT_OUT.match(name):
            found.setdefault(name, []).append(entry)
    return found


def main(torch: str) -> None:
    """Both files; what is only for tests has one of its own, of the same versions."""
    everything = resolved(PROJECT / "requirements-dev.txt", torch)
    pins = "\n".join(entry.split(" \\")[0] for entries in everything.values() for entry in entries)
    studio = resolved(PROJECT / "requirements.txt", f"{torch}\n{pins}")
    tests = {name: entries for name, entries in everything.items() if name not in studio}
    for source, found in (("requirements.txt", studio), ("requirements-dev.txt", tests)):
        name = source.replace(".txt", ".lock")
        entries = [entry for entries in found.values() for entry in entries]
        (PROJECT / name).write_text(HEAD.format(source=source, name=name) + "\n".join(entries) + "\n", "utf-8")
        print(f"{name}: {len(found)} packages")


if __name__ == "__main__":
    main(sys.argv[1])
