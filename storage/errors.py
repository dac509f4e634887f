"""What storage raises: a reason and what to do about it."""

from __future__ import annotations


class StorageError(Exception):
    """The database cannot do what was asked; ``message`` says what is wrong, ``hint`` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ReplacedError(StorageError):
    """The database file was removed or replaced while it was open; only a new process may open what is there now."""


class MissingError(StorageError):
    """A run, job, data set or study that the database does not hold."""


class ConflictError(StorageError):
    """A change that the present state does not allow, such as resuming a job that runs."""
