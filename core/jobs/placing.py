"""Which job starts next, and where: in the order of the queue, beside other jobs where the device's memory allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.jobs.devices import Device, requests_for
from core.jobs.needs import memory_key, memory_need
from storage.models import Run
from storage.queries import attempts, jobs

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

ROUNDING = 1e-6


@dataclass(frozen=True)
class Start:
    """A job that may start now with a share of a device; ``key`` names the jobs that take the same memory."""

    job: int
    device: Device
    share: float
    key: str


def room(session: Session, devices: Sequence[Device]) -> dict[str, float]:
    """Device -> the share that nobody holds, for the devices on which a job could start."""
    taken = attempts.leased_shares(session)
    free = {device.name: 1.0 - taken.get(device.name, 0.0) for device in devices}
    return {device.name: free[device.name] for device in devices if free[device.name] >= device.share - ROUNDING}


def fits(device: Device, share: float, free: float) -> bool:
    """Whether nobody holds the share and, beside other jobs, its memory is free: other programs take some as well."""
    if share > free + ROUNDING:
        return False
    if device.name == "cpu" or free >= 1.0 - ROUNDING:
        return True
    return device.free_gib is not None and device.free_gib >= share * (device.memory_gib or 0.0) - ROUNDING


def next_start(session: Session, devices: list[Device]) -> Start | None:
    """The first job of the queue that may start now.

    No job overtakes another on a device: one that fits nowhere keeps the device with the most room, which runs empty
    until it fits.
    """
    free = room(session, devices)
    open_ones = [device for device in devices if device.name in free]
    passed_over: list[int] = []
    while open_ones:
        grants = {device.name: requests_for(device, devices) for device in open_ones}
        wishes = sorted({wish for granted in grants.values() for wish in granted})
        job = jobs.next_ready(session, requests=wishes, passed_over=passed_over)
        if job is None:
            return None
        run = session.get_one(Run, job.run_id)
        key = memory_key(run.spec, job.kind, job.arguments)
        need = memory_need(session, job, run, key)
        able = [device for device in open_ones if job.device in grants[device.name]]
        able.sort(key=lambda device: free[device.name], reverse=True)
        for device in able:
            share = 1.0 if job.alone else device.share_for(need)
            if fits(device, share, free[device.name]):
                return Start(job.id, device, share, key)
        open_ones.remove(able[0])
        passed_over.append(job.id)
    return None
