"""Whether anything was committed since one last looked, without reading anything."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import suppress

from storage.database import Database

Version = tuple[int, int]


class Changes:
    """Numbers that are others after every commit, whichever process made it.

    SQLite tells them by itself; for other servers they are others every ``seconds``.
    """

    def __init__(self, database: Database, seconds: float = 0.5) -> None:
        self._path, self._seconds = database.path, seconds
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._number: Version = (0, 0)
        self._file, self._looked = 0, float("-inf")

    def now(self) -> Version:
        """The numbers at this moment."""
        with self._lock:
            return self._look()

    def recent(self) -> Version:
        """The numbers as they were at most ``seconds`` ago: what follows from them is made no more often than that."""
        with self._lock:
            late = time.monotonic() - self._looked > self._seconds
            return self._look() if late else self._number

    def close(self) -> None:
        with self._lock:
            self._close()

    def _look(self) -> Version:
        self._looked = time.monotonic()
        if self._path is None:
            self._number = (0, int(self._looked / self._seconds))
            return self._number
        with suppress(sqlite3.Error, OSError):  # whoever reads next is told what is wrong
            self._connect(os.stat(self._path).st_ino)
            self._number = (self._file, self._connection.execute("PRAGMA data_version").fetchone()[0])
        return self._number

    def _connect(self, file: int) -> None:
        """Watch the file that stands there now; a restored copy is another one."""
        if self._connection is None or file != self._file:
            self._close()
            self._connection, self._file = sqlite3.connect(self._path, check_same_thread=False), file

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
