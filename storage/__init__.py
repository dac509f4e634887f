"""Runs, jobs, curves, routing and scores in one database."""

from storage.database import Database
from storage.errors import MissingError, StorageError

__all__ = ["Database", "MissingError", "StorageError"]
