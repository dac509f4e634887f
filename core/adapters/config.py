"""The PEFT config of a mixture: plain JSON, so that a saved folder says all that loading needs."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig, PolyConfig

from .cells import Cell


class TesseraType(str, enum.Enum):  # noqa: UP042 - PEFT looks its own str enums up by value
    """PEFT's own enum cannot be extended; its mappings accept any string that compares and hashes alike."""

    TESSERA = "TESSERA"


@dataclass
class MixtureConfig(PeftConfig):
    method: str = field(default="split", metadata={"help": "The preset that the cells came from, for display."})
    options: dict[str, Any] = field(default_factory=dict, metadata={"help": "The preset's options, for display."})
    cells: list[dict[str, Any]] = field(default_factory=list, metadata={"help": "Cells; the first match wins."})
    tasks: list[str] = field(default_factory=list, metadata={"help": "Names of the tasks, in the order of task_index."})
    target_modules: list[str] | None = field(
        default=None, metadata={"help": "Unused: the cells say which modules are adapted."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = TesseraType.TESSERA

    def parsed_cells(self) -> list[Cell]:
        return [Cell.model_validate(cell) for cell in self.cells]


def needs_task(config: PeftConfig) -> bool:
    """Whether an adapter works only where every sample says its task."""
    if isinstance(config, MixtureConfig):
        return any(cell.needs_task for cell in config.parsed_cells())
    return isinstance(config, PolyConfig)
