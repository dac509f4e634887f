"""The only exceptions that people see."""

from __future__ import annotations


class StudioError(Exception):
    """A problem that its reader can mend.

    ``message`` says what is wrong and where; ``hint`` says what to do about it. ``kind`` is the failure class that
    is stored with a job: ``data``, ``memory``, ``disk``, ``alarm``, ``configuration`` or ``internal``.
    """

    kind = "internal"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = _printable(message)
        self.hint = _printable(hint)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


def _printable(text: str) -> str:
    """Halves of surrogate pairs, as undecodable file names have them, as escapes: no terminal takes them."""
    return text.encode("utf-8", "backslashreplace").decode()


class DataError(StudioError):
    """A file, a row or a mapping that cannot be used."""

    kind = "data"


class ConfigurationError(StudioError):
    """Settings that are out of range, unknown or contradict one another."""

    kind = "configuration"


class OutOfMemoryError(StudioError):
    """The device or the machine has too little memory for the job."""

    kind = "memory"


class DiskError(StudioError):
    """A disk that is full, cannot be written or reports errors."""

    kind = "disk"


class AlarmError(StudioError):
    """A run stopped at an alarm, as it was asked to; it can be resumed past it."""

    kind = "alarm"


class NotFoundError(StudioError):
    """A run, data set, model or file that does not exist."""

    kind = "configuration"


class NotAllowedError(StudioError):
    """Who acts lacks the role for it, or it belongs to somebody else."""

    kind = "configuration"
