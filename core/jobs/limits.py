"""How long a dispatcher waits for what, and how much it takes."""

from __future__ import annotations

from dataclasses import dataclass

from core.jobs.worker_log import LIMIT


@dataclass(frozen=True)
class Limits:
    """Seconds, and how often a job may lose its worker without reaching a new checkpoint before it is failed."""

    poll: float = 0.5
    read: float = 1.0  # between two readings of what a living worker says
    cancel_grace: float = 30.0
    term_grace: float = 10.0
    finish_grace: float = 60.0
    nameless_grace: float = 3.0
    beat: float = 5.0
    device_refresh: float = 60.0
    device_retry: float = 10.0
    retry: float = 2.0
    complaint: float = 60.0
    memory_refresh: float = 5.0
    idle: float | None = 300.0
    lost_attempts: int = 3
    log_bytes: int = LIMIT
    pass_bytes: int = 8 << 20
