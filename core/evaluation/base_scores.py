"""The untouched base answers the same rows the same way in every run, so its answers are kept and shared."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from core.errors import StudioError
from core.evaluation.predictions import Predictions, read_predictions
from core.units import MIB

WHOLE = 64 * MIB  # files up to this size are hashed whole, larger ones at both ends
END = MIB


class BaseScores:
    """Predictions of one base under ``root``, by the key of rows, prompts and scoring options.

    ``settings`` is what else the answers depend on: length limit, dtype, device.
    """

    def __init__(self, root: Path, base: Path, settings: dict[str, Any]) -> None:
        self.root = root
        self._base = _hash([fingerprint(base), settings])

    def path(self, key: str) -> Path:
        return self.root / self._base / f"{key}.jsonl"

    def find(self, key: str) -> Predictions | None:
        """The kept answers, if there are any that can be read."""
        try:
            return read_predictions(self.path(key))
        except StudioError:
            return None  # they are made again


def fingerprint(folder: Path) -> str:
    """A hash over a base's configuration, tokenizer, chat template and weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".jinja", ".model"):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                if size <= WHOLE:
                    digest.update(file.read())
                else:
                    digest.update(file.read(END))
                    file.seek(-END, 2)
                    digest.update(file.read())
    return digest.hexdigest()[:16]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
