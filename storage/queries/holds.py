"""Devices that a process outside the queue works on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from storage.models import DeviceHold, Lease


@dataclass(frozen=True)
class HoldRow:
    holder: str
    device: str
    title: str
    pid: int
    process_start: float
    boot: str
    since: datetime


def every(session: Session) -> list[HoldRow]:
    """Oldest first."""
    fields = HoldRow.__dataclass_fields__
    found = session.scalars(select(DeviceHold).order_by(DeviceHold.since, DeviceHold.holder))
    return [HoldRow(**{field: getattr(hold, field) for field in fields}) for hold in found]


def take(session: Session, *, holder: str, device: str, title: str, pid: int, process_start: float, boot: str) -> bool:
    """Hold a device on which no job and no other holder works; False where it is taken."""
    jobs = session.scalar(select(func.count()).select_from(Lease).where(Lease.device == device))
    query = select(func.count()).select_from(DeviceHold)
    others = session.scalar(query.where(DeviceHold.device == device, DeviceHold.holder != holder))
    if jobs or others:
        return False
    values = {"device": device, "title": title, "pid": pid, "process_start": process_start, "boot": boot}
    session.merge(DeviceHold(holder=holder, **values))
    session.flush()
    return True


def release(session: Session, *, holder: str, pid: int | None = None) -> None:
    """Give the device back; with ``pid``, only if that process still is the holder."""
    query = delete(DeviceHold).where(DeviceHold.holder == holder)
    session.execute(query if pid is None else query.where(DeviceHold.pid == pid))
