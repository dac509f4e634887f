"""``make audit``: known advisories against what the lock files name. Fails on those only: no source, no verdict."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from core.home import PROJECT

LOCKS = ("requirements.lock", "requirements-dev.lock")
SECONDS = 120


def asked(lock: Path) -> list[dict[str, Any]] | None:
    """What the advisory source says of every package in a lock file; None where it did not answer."""
    with tempfile.TemporaryDirectory() as room:
        answer = Path(room) / "answer.json"
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--require-hashes", "--disable-pip"]
        command += ["--format", "json", "--output", str(answer), "--progress-spinner", "off", "--timeout", "15"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return None
        if not answer.is_file() or not answer.stat().st_size:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"{lock.name}: {last[:200]}", file=sys.stderr)
            return None
        return json.loads(answer.read_text("utf-8"))["dependencies"]


def advisories(packages: list[dict[str, Any]]) -> list[str]:
    """One line for each package that has an advisory."""
    return [
        f"{one['name']} {one['version']}: {', '.join(found['id'] for found in one['vulns'])}"
        for one in packages
        if one.get("vulns")
    ]


def main() -> int:
    found = []
    for name in LOCKS:
        packages = asked(PROJECT / name)
        if packages is None:
            print(f"{name} was not audited: no source of advisories answers from here.")
            continue
        known = advisories(packages)
        print(f"{name}: {len(packages)} packages, {len(known)} with a known advisory.")
        found += known
    print("\n".join(found), end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
