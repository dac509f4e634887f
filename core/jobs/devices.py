"""What jobs can run on, found without torch and without touching CUDA in this process."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from core.units import GIB

QUERY_SECONDS = 20
GPU_JOBS = 4


@dataclass(frozen=True)
class Device:
    """``cuda:<number as nvidia-smi counts>`` or ``cpu``; at most ``slots`` jobs work on it at once.

    ``visible`` is what its jobs get as ``CUDA_VISIBLE_DEVICES``; ``argument`` is the device as the worker names it.
    """

    name: str
    title: str
    visible: str
    slots: int = 1
    memory_gib: float | None = None
    free_gib: float | None = None

    @property
    def argument(self) -> str:
        return "cpu" if self.name == "cpu" else "cuda"

    @property
    def share(self) -> float:
        """The least that a job gets of it."""
        return 1.0 / self.slots

    def share_for(self, need: int | None) -> float:
        """What a job gets that needs so many bytes: at least a slot's share, and all of a GPU where nobody knows.

        On the CPU slots count, not memory.
        """
        if self.name == "cpu":
            return self.share
        if need is None or self.memory_gib is None:
            return 1.0
        return min(1.0, max(self.share, need / (self.memory_gib * GIB)))


def list_devices() -> list[Device]:
    """GPUs as nvidia-smi names them, within ``CUDA_VISIBLE_DEVICES``; then the CPU.

    ``TESSERA_GPU_JOBS`` and ``TESSERA_CPU_JOBS`` say how many jobs work on one at once. A GPU that does not tell its
    memory has one. Raises ``OSError`` or ``subprocess.SubprocessError`` when nvidia-smi is there but does not answer.
    """
    return [*_gpus(), Device("cpu", "CPU", visible="", slots=cpu_slots())]


def cpu_slots() -> int:
    return _jobs("TESSERA_CPU_JOBS", 1)


def gpu_slots() -> int:
    """Four, or fewer on machines of few cores: a worker keeps about two of them busy."""
    return _jobs("TESSERA_GPU_JOBS", max(1, min(GPU_JOBS, (os.cpu_count() or 1) // 2)))


def _jobs(variable: str, default: int) -> int:
    try:
        return max(1, int(os.environ[variable]))
    except (KeyError, ValueError):
        return default


def requests_for(device: Device, devices: list[Device]) -> list[str]:
    """The wishes that a device can grant; ``auto`` means a GPU where the machine has any."""
    has_gpu = any(one.name != "cpu" for one in devices)
    if device.name == "cpu":
        return ["cpu"] if has_gpu else ["cpu", "auto"]
    return ["auto", "cuda", device.name]


def all_requests(devices: list[Device]) -> list[str]:
    """Every wish that some device of this machine can grant."""
    return sorted({request for device in devices for request in requests_for(device, devices)})


def _gpus() -> list[Device]:
    program = shutil.which("nvidia-smi")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if program is None or visible is not None and visible.strip() in ("", "-1"):
        return []
    fields = "index,uuid,name,memory.total,memory.free"
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_SECONDS, check=True)
    found = [_gpu(line) for line in done.stdout.splitlines() if line.count(",") >= 4]
    if visible is None:
        return [device for _, device in found]
    wanted = [name.strip() for name in visible.split(",") if name.strip()]
    if any(name.startswith("MIG-") for name in wanted):
        return [Device(f"cuda:{place}", name, visible=name) for place, name in enumerate(wanted)]
    return [device for uuid, device in found if device.visible in wanted or any(uuid.startswith(w) for w in wanted)]


def _gpu(line: str) -> tuple[str, Device]:
    index, uuid, title, total, free = (part.strip() for part in line.split(",", 4))
    memory = _gib(total)
    return uuid, Device(f"cuda:{index}", title, index, gpu_slots() if memory else 1, memory, _gib(free))


def _gib(mebibytes: str) -> float | None:
    try:
        return round(float(mebibytes) / 1024, 1)
    except ValueError:
        return None
