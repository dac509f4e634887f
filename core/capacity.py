"""What the devices of this machine hold at most, and the refusal of what certainly needs more. Imports no torch."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import psutil

from core.errors import OutOfMemoryError
from core.jobs.devices import Device, list_devices, requests_for
from core.units import GIB, size

DEVICES_SECONDS = 30
ROUNDED = GIB // 20  # the memory of a GPU is known to a tenth of a GiB
CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

CPU = Device("cpu", "CPU", visible="")
Place = tuple[Device, int]  # and the bytes that it has in all


def devices() -> list[Device]:
    """The machine's devices, asked for at most twice a minute: forms look at every change."""
    return list(_devices(int(time.monotonic() // DEVICES_SECONDS)))


@lru_cache(maxsize=1)
def _devices(_: int) -> tuple[Device, ...]:
    try:
        return tuple(list_devices())
    except (OSError, subprocess.SubprocessError):
        return ()


def device_for(wish: str) -> Device | None:
    """The device that a run would get: the first GPU where there is one; None where the machine does not say."""
    found = {device.name: device for device in devices()}
    gpus = [device for name, device in found.items() if name != "cpu"]
    if wish in found:
        return found[wish]
    return gpus[0] if gpus else found.get("cpu") if wish == "auto" else None


def on_gpu(device: Device | None) -> bool:
    return device is not None and device.name != "cpu"


def capacity_of(device: Device | None, swap: bool = False) -> int | None:
    """Bytes that a device has in all, the CPU with or without ``swap``; None where nobody knows."""
    if device is None:
        return None
    if device.name == "cpu":
        return host_memory(psutil.swap_memory().total if swap else 0)
    return None if device.memory_gib is None else int(device.memory_gib * GIB)


def host_memory(swap: int = 0) -> int:
    """Bytes of memory, and of so much swap, that this process can have: the machine's, or less in a container."""
    return min([psutil.virtual_memory().total + swap, *_limits(swap)])


def _limits(swap: int) -> Iterator[int]:
    """Of every control group that this process is in, of both versions."""
    for number, controllers, path in _memberships():
        if number == "0" and not controllers:
            for group in _groups(CGROUPS, path):
                memory, more = _number(group / "memory.max"), _number(group / "memory.swap.max")
                if memory is not None:
                    yield memory + (swap if more is None else min(swap, more))
        elif "memory" in controllers.split(","):
            for group in _groups(CGROUPS / "memory", path):
                memory, both = (_number(group / f"memory.{name}limit_in_bytes") for name in ("", "memsw."))
                yield from [both] if both is not None else []
                yield from [memory + swap] if memory is not None else []


def _memberships() -> Iterator[list[str]]:
    try:
        lines = MEMBERSHIP.read_text("utf-8").splitlines()
    except OSError:  # no Linux
        return
    yield from (parts for line in lines if len(parts := line.split(":", 2)) == 3)


def _groups(root: Path, path: str) -> list[Path]:
    """A group and all above it; in a container its own may be the root, whatever the path says."""
    parts = [part for part in path.split("/") if part]
    return [root, *(root.joinpath(*parts[:count]) for count in range(1, len(parts) + 1) if ".." not in parts)]


def _number(path: Path) -> int | None:
    """None without a limit."""
    try:
        text = path.read_text("utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def largest(wish: str) -> Place | None:
    """Of the devices that a job with this wish can get, the one with the most memory, and its bytes with all swap.

    None where one of them does not tell its memory, or nobody knows the devices.
    """
    known = devices()
    able = [place_of(device) for device in known if wish in requests_for(device, known)]
    places = [place for place in able if place is not None]
    return max(places, key=lambda place: place[1]) if places and len(places) == len(able) else None


def place_of(device: Device) -> Place | None:
    """A device and its bytes with all swap; None where it does not tell."""
    capacity = capacity_of(device, swap=True)
    return None if capacity is None else (device, capacity)


def refusal(
    parts: Mapping[str, int], place: Place | None, what: str, remedies: Sequence[str]
) -> OutOfMemoryError | None:
    """Why ``parts``, bytes by name that are held at one time, cannot be; None where they may fit.

    ``place``: as from ``largest``. ``remedies``: what would help, any of them.
    """
    need = sum(parts.values())
    if place is None or need <= place[1] + (ROUNDED if on_gpu(place[0]) else 0):
        return None
    device, capacity = place
    told = ", ".join(f"{name} {size(number)}" for name, number in parts.items() if number)
    where = f"{device.title} ({device.name})" if on_gpu(device) else "the machine"
    return OutOfMemoryError(
        f"{what} takes at least {size(need)} of memory ({told}), but {where} has {size(capacity)} in all.",
        f"Choose {', '.join(remedies[:-1])} or {remedies[-1]}." if len(remedies) > 1 else f"Choose {remedies[0]}.",
    )
