"""Reads a routing snapshot's ``.npz`` as plain arrays and axes, whatever they are called."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import DataError
from core.paths import child


def read_arrays(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Axes (text, and what is not a floating-point array) and float arrays of a file in ``folder``.

    Raises ``ValueError`` that names the file: missing, outside the folder, or broken.
    """
    try:
        path = child(folder, name)
    except DataError as error:
        raise ValueError(f"{error.message} It should lie below the run's routing folder.") from error
    if not path.is_file():  # a pipe would be waited for
        raise ValueError(f"The routing file {name} is missing.")
    axes: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            for key in stored.files:
                array = stored[key]
                if array.dtype.kind == "f":
                    arrays[key] = array.astype(np.float32)
                else:
                    axes[key] = _plain(array)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"The routing file {name} cannot be read: {error}") from error
    return axes, arrays


def _plain(array: np.ndarray) -> Any:
    """Python values; a single text that is JSON is unpacked."""
    value = array.tolist()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
