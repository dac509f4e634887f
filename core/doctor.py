"""What this machine offers and what is wrong with it. Asks torch in a child process."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from core import hub
from core.errors import StudioError
from core.home import BUNDLED_BASE_FOLDER, PROJECT, Home
from core.secrets import masked
from core.units import GIB, MIB

State = Literal["good", "note", "wrong"]
MARKS = {"good": "+", "note": "o", "wrong": "x"}
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "lustre", "gpfs", "beegfs", "ceph", "9p"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``remedy`` says what to do where something is to be done."""

    name: str
    state: State
    found: str
    remedy: str = ""

    @property
    def mark(self) -> str:
        return MARKS[self.state]


def examine(home: Home, database: Callable[[], str], dispatcher: Callable[[], str]) -> list[Finding]:
    """Every finding; ``database`` and ``dispatcher`` describe themselves or raise StudioError."""
    return [
        python(),
        packages(),
        torch(),
        machine(),
        jobs_at_once(),
        *home_folder(home),
        _asked("database", database),
        _asked("dispatcher", dispatcher),
        bundled_base(),
        hugging_face(),
    ]


def python() -> Finding:
    """The newest syntax that the studio uses already asked for 3.11, so this only tells."""
    return Finding("Python", "good", f"{platform.python_version()} ({sys.executable})")


def packages(requirements: Path = PROJECT / "requirements.txt") -> Finding:
    """Installed versions against ``requirements.txt``."""
    problems = list(_unmet(requirements.read_text("utf-8")))
    if problems:
        return Finding("packages", "wrong", "; ".join(problems), f"{sys.executable} -m pip install -r {requirements}")
    return Finding("packages", "good", "all requirements are met")


def _unmet(text: str) -> Iterator[str]:
    from packaging.requirements import Requirement

    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if not line or line.startswith("-"):
            continue
        wanted = Requirement(line)
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield f"{wanted.name} is not installed"
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            yield f"{wanted.name} {version} does not satisfy {wanted.specifier}"


_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({"version": torch.__version__, "built": torch.version.cuda,
    "gpus": [[g.name, g.total_memory, torch.cuda.mem_get_info(i)[0]] for i, g in enumerate(gpus)]}))
"""


def torch(timeout: float = 120) -> Finding:
    """The version of torch and the GPUs that it sees, asked in a child process that ends again."""
    try:
        child = subprocess.run([sys.executable, "-c", _TORCH], capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Finding("torch", "wrong", f"no import within {timeout:.0f} s", "Look at the GPU driver: nvidia-smi.")
    if child.returncode:
        last = child.stderr.strip().splitlines()[-1:] or ["no reason given"]
        return Finding("torch", "wrong", last[0], "Install it: make install, or pip install torch.")
    told = json.loads(child.stdout.strip().splitlines()[-1])
    if told["gpus"]:
        cards = [f"{name}, {total / GIB:.0f} GiB, {free / GIB:.0f} free" for name, total, free in told["gpus"]]
        return Finding("torch", "good", f"{told['version']}, " + "; ".join(cards))
    if shutil.which("nvidia-smi"):
        why = "has no CUDA in it" if told["built"] is None else "sees none"
        remedy = "Install a CUDA build of torch that suits the driver, see pytorch.org."
        return Finding("torch", "note", f"{told['version']}: the machine has a GPU, torch {why}", remedy)
    return Finding("torch", "good", f"{told['version']}, no GPU: runs use the CPU")


def machine() -> Finding:
    import psutil

    free = psutil.virtual_memory()
    found = f"{os.cpu_count()} cores, {free.total / GIB:.0f} GiB memory, {free.available / GIB:.1f} GiB free"
    if free.available < 2 * GIB:
        return Finding("machine", "note", found, "Under 2 GiB are free: close programs before training.")
    return Finding("machine", "good", found)


def jobs_at_once() -> Finding:
    """How many jobs the dispatcher would start on each device."""
    from core.jobs.devices import list_devices

    try:
        found = ", ".join(f"{device.name} {device.slots}" for device in list_devices())
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("jobs at once", "wrong", str(error), "Look at the GPU driver: nvidia-smi.")
    return Finding("jobs at once", "good", f"at most: {found} (TESSERA_GPU_JOBS, TESSERA_CPU_JOBS)")


def home_folder(home: Home) -> Iterator[Finding]:
    """Can it be written, is there room, and does it lie on a disk of this machine?"""
    probe = home.root / f".doctor-{os.getpid()}"
    try:
        probe.write_text("", encoding="utf-8")
        probe.unlink()
        yield Finding("home", "good", str(home.root))
    except OSError as error:
        yield Finding("home", "wrong", f"{home.root}: {error.strerror}", "Choose another with --home or TESSERA_HOME.")
    free = shutil.disk_usage(home.root).free
    short = free < 2 * GIB
    yield Finding(
        "disk",
        "note" if short else "good",
        f"{free / GIB:.1f} GiB free",
        "Delete runs or data sets, or move the home." if short else "",
    )
    kind = file_system(home.root)
    if kind in NETWORK_FILE_SYSTEMS and home.database_url.startswith("sqlite"):
        yield Finding(
            "file system",
            "wrong",
            f"the home lies on {kind}, where SQLite's locks do not hold",
            "Move the home to a local disk, or set TESSERA_DATABASE_URL to a PostgreSQL database.",
        )


def file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> str | None:
    """The kind of file system that holds ``folder``; None where the machine does not tell."""
    if not mounts.is_file():
        return None
    best, kind = -1, None
    for line in mounts.read_text("utf-8", errors="replace").splitlines():
        fields = line.split()
        point = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), fields[1]))
        if folder.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


def _asked(name: str, question: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "good", question())
    except StudioError as error:
        return Finding(name, "wrong", error.message, error.hint)


def bundled_base() -> Finding:
    missing = [name for name in ("config.json", "tokenizer.json") if not (BUNDLED_BASE_FOLDER / name).is_file()]
    if not any(BUNDLED_BASE_FOLDER.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        return Finding("bundled base", "wrong", f"lacks {', '.join(missing)}", "Restore assets/base.")
    size = sum(path.stat().st_size for path in BUNDLED_BASE_FOLDER.iterdir())
    return Finding("bundled base", "good", f"{size / MIB:.0f} MiB in {BUNDLED_BASE_FOLDER}")


def hugging_face() -> Finding:
    """Offline is not an error: the bundled base, local folders and what is cached work without the Hub."""
    if hub.reachable():
        token = "with a token" if os.environ.get("HF_TOKEN") else "without a token"
        return Finding("Hub", "good", f"{masked(hub.endpoint())} answers, {token}")
    why = "HF_HUB_OFFLINE is set" if hub.offline() else f"{masked(hub.endpoint())} does not answer"
    return Finding("Hub", "note", f"{why}: only local models and data")
