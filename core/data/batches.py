"""Rows to tensors: the data set and the collator of training and scoring."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from core.data.encoded import EncodedRows
from core.data.tasks import Task
from core.data.templates import Encoded, TextEncoder

PAD, PROMPT, ANSWER = 0, 1, 2  # token roles
IGNORED = -100  # label of tokens without loss
SIDE = "side_"  # begins the names of side inputs, one tensor a row


class TaskDataset(Dataset):
    """The rows of several tasks behind one flat index (task by task), as ids.

    ``side`` holds what else goes with each row, (rows, ...) by name; batches have it as ``side_<name>``.
    """

    def __init__(self, tasks: Sequence[Task], encoder: TextEncoder, split: str, max_length: int | None = None) -> None:
        self.tasks = list(tasks)
        self.rows = [EncodedRows(task, encoder, split, max_length) for task in self.tasks]
        self.sizes = [len(rows) for rows in self.rows]
        self._ends = list(accumulate(self.sizes))
        self.side: dict[str, torch.Tensor] = {}

    @property
    def kept(self) -> bool:
        """Whether all ids are there already."""
        return all(rows.kept for rows in self.rows)

    def keep(self) -> None:
        """Encode all rows that are not, and keep them for later runs."""
        for rows in self.rows:
            rows.keep()

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row; encodes them all."""
        return np.concatenate([rows.lengths for rows in self.rows])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def locate(self, index: int) -> tuple[int, int]:
        """Place in ``tasks`` and row of a flat index."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = bisect_right(self._ends, index)
        return place, index - (self._ends[place] - self.sizes[place])

    def __getitem__(self, index: int) -> dict[str, Any]:
        place, row = self.locate(index)
        beside = {f"{SIDE}{name}": values[index] for name, values in self.side.items()}
        return as_item(self.rows[place][row], self.tasks[place].index) | beside


def as_item(encoded: Encoded, task_index: int) -> dict[str, Any]:
    """One sample for the collator; loss on the answer alone."""
    prompt, answer = encoded.prompt, encoded.answer
    return {
        "input_ids": encoded.ids,
        "labels": [IGNORED] * len(prompt) + answer,
        "token_role": [PROMPT] * len(prompt) + [ANSWER] * len(answer),
        "task_index": task_index,
    }


class Collator:
    """Pads samples to one length; ``side="left"`` is for generation, where every row must end with its last token."""

    def __init__(self, pad_id: int, side: Literal["right", "left"] = "right", multiple_of: int = 1) -> None:
        self.pad_id, self.side, self.multiple_of = pad_id, side, multiple_of

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """``input_ids``, ``attention_mask``, ``labels`` (B, T) long; ``token_role`` (B, T) int8; ``task_index`` (B,).

        Labels are -100 outside the answer; roles are 0 pad, 1 prompt, 2 answer.
        """
        longest = max(len(item["input_ids"]) for item in items)
        length = -(-longest // self.multiple_of) * self.multiple_of
        masks = [[1] * len(item["input_ids"]) for item in items]
        return {
            "input_ids": self._pad([item["input_ids"] for item in items], self.pad_id, length, torch.long),
            "attention_mask": self._pad(masks, 0, length, torch.long),
            "labels": self._pad([item["labels"] for item in items], IGNORED, length, torch.long),
            "token_role": self._pad([item["token_role"] for item in items], PAD, length, torch.int8),
            "task_index": torch.tensor([item["task_index"] for item in items], dtype=torch.long),
            **{name: torch.stack([item[name] for item in items]) for name in items[0] if name.startswith(SIDE)},
        }

    def _pad(self, sequences: list[Sequence[int]], value: int, length: int, dtype: torch.dtype) -> torch.Tensor:
        padded = torch.full((len(sequences), length), value, dtype=dtype)
        rows = padded.numpy()
        for row, ids in zip(rows, sequences, strict=True):
            row[length - len(ids) if self.side == "left" else 0 :][: len(ids)] = ids
        return padded
