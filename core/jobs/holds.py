"""Devices held by inference workers: taken when free, given back to jobs that wait."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

from core.jobs.devices import Device, list_devices, requests_for
from core.jobs.processes import Process, alive
from storage.queries import attempts, holds, jobs

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from storage import Database
    from storage.queries.holds import HoldRow

log = logging.getLogger("tessera.holds")


def living(session: Session) -> list[HoldRow]:
    return [hold for hold in holds.every(session) if _lives(hold)]


def sweep(session: Session) -> list[HoldRow]:
    """Forget the holds of processes that are gone; returns those that stay."""
    kept = []
    for hold in holds.every(session):
        if _lives(hold):
            kept.append(hold)
        else:
            holds.release(session, holder=hold.holder)
    return kept


def ask_to_give_way(hold: HoldRow) -> None:
    """The worker finishes the answers that it is computing, then ends; asking again does nothing more."""
    if _lives(hold):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(hold.pid, signal.SIGTERM)


def give_way(database: Database, devices: list[Device]) -> None:
    """Have the holders of devices that jobs wait for leave; forget those that have left."""
    with database.session() as session:
        held = holds.every(session)
        named = {device.name: device for device in devices}
        wishes = {hold.device: requests_for(named[hold.device], devices) for hold in held if hold.device in named}
        wanted = {device for device, requests in wishes.items() if jobs.wanted(session, requests=requests)}
    if held:
        with database.write() as session:
            held = sweep(session)
    for hold in held:
        if hold.device in wanted:
            log.info("a job waits for %s: asking process %s to leave it", hold.device, hold.pid)
            ask_to_give_way(hold)


def gpus() -> list[Device]:
    """The GPUs of this machine; none where nvidia-smi does not answer."""
    try:
        return [device for device in list_devices() if device.name != "cpu"]
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the devices cannot be listed: %s", error)
        return []


def holder_of(session: Session, device: str) -> str:
    """Who works on a device, in words; empty where nobody does."""
    working = [f"{lease['run']}/{lease['name']}" for lease in attempts.leases(session) if lease["device"] == device]
    return ", ".join(working + [hold.title for hold in living(session) if hold.device == device])


def _lives(hold: HoldRow) -> bool:
    return alive(Process(hold.pid, hold.process_start, hold.boot))
