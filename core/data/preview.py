"""What the model sees: prompts with the loss mask, token lengths, classes, duplicates and overlap. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from core.data.canonical import Row, column, rows_at, to_rows
from core.data.checks import Duplicates, Overlap, class_balance, duplicates, keys_of, overlap
from core.data.kinds import OPTION_KINDS, TaskInfo
from core.data.prepare import FileReport, Prepared
from core.data.templates import Encoded, PromptTemplate, TextEncoder

MEASURED = 2000  # rows per split whose tokens are counted
_SHOWN_LABELS = 100
_BINS = 32


class Segment(BaseModel):
    """A piece of the text that the model reads; ``loss``: it is trained to write it."""

    text: str
    role: Literal["prompt", "cut", "answer", "end"]
    loss: bool = False


class RowPreview(BaseModel):
    split: str
    index: int
    segments: list[Segment] = Field(default_factory=list)
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cut: int = Field(0, description="Prompt tokens left out to fit the length.")
    row: dict[str, Any] = Field(default_factory=dict)


class Lengths(BaseModel):
    """Token counts of one split; each of ``prompt``, ``answer`` and ``total`` has mean, median, p95 and max."""

    measured: int = Field(0, description="Rows that were counted: evenly spaced ones, 2,000 at most.")
    prompt: dict[str, float] = Field(default_factory=dict)
    answer: dict[str, float] = Field(default_factory=dict)
    total: dict[str, float] = Field(default_factory=dict)
    histogram: list[int] = Field(default_factory=list, description="Rows per bin of ``bin_width`` tokens in total.")
    bin_width: int = 1
    truncated: int = 0
    truncated_share: float = 0.0


class TaskPreview(BaseModel):
    info: TaskInfo
    rows: list[RowPreview] = Field(default_factory=list)
    lengths: dict[str, Lengths] = Field(default_factory=dict)
    balance: dict[str, dict[str, int]] = Field(default_factory=dict, description="Split -> label -> rows.")
    duplicates: dict[str, Duplicates] = Field(default_factory=dict)
    overlap: dict[str, Overlap] = Field(default_factory=dict, description="Split -> rows also in train.")


class Preview(BaseModel):
    name: str
    files: list[FileReport] = Field(default_factory=list)
    tasks: dict[str, TaskPreview] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)


def inspect(
    ready: Prepared, encoder: TextEncoder | None, template: PromptTemplate, max_length: int | None, rows: int = 3
) -> Preview:
    """Facts of all tasks; without an encoder there are no tokens. ``rows``: examples per split."""
    tasks = {
        name: _task(info, ready.tables[name], encoder, template, max_length, rows)
        for name, info in ready.info.tasks.items()
    }
    return Preview(name=ready.info.name, files=ready.files, tasks=tasks, notes=ready.info.notes)


def _task(
    info: TaskInfo,
    tables: dict[str, pa.Table],
    encoder: TextEncoder | None,
    template: PromptTemplate,
    max_length: int | None,
    rows: int,
) -> TaskPreview:
    counts = {split: len(table) for split, table in tables.items()}
    found = TaskPreview(info=info.model_copy(update={"counts": counts}))
    keys = {split: keys_of(table) for split, table in tables.items()}
    for split, table in tables.items():
        for index, row in enumerate(_filled(info, to_rows(table.slice(0, rows)))):
            found.rows.append(preview_row(row, info, encoder, template, max_length, split, index))
        if encoder is not None:
            found.lengths[split] = _lengths(info, table, encoder, template, max_length)
        if info.kind == "classification":
            found.balance[split] = dict(list(class_balance(column(table, "output")).items())[:_SHOWN_LABELS])
        elif info.kind in OPTION_KINDS:
            found.balance[split] = _positions(table)
        found.duplicates[split] = duplicates(table, keys[split])
        if split != "train" and "train" in tables:
            found.overlap[split] = overlap(keys["train"], table, keys[split])
    return found


def preview_row(
    row: Row,
    info: TaskInfo,
    encoder: TextEncoder | None,
    template: PromptTemplate,
    max_length: int | None,
    split: str = "train",
    index: int = 0,
) -> RowPreview:
    """One row as the model sees it; ``row`` has its instruction filled in."""
    shown = RowPreview(split=split, index=index, row=row)
    if encoder is None:
        return shown
    encoded = encoder.encode(row, _style(info, template), max_length)
    shown.segments = segments(encoded, encoder)
    shown.prompt_tokens, shown.answer_tokens, shown.cut = len(encoded.prompt), len(encoded.answer), encoded.cut
    return shown


def segments(encoded: Encoded, encoder: TextEncoder) -> list[Segment]:
    """The decoded token ids: prompt (with the place where its middle was cut), answer, end of sequence."""
    parts = [Segment(text=encoder.decode(encoded.prompt, keep_special=True), role="prompt")]
    if encoded.cut:
        head = len(encoded.prompt) // 2
        texts = [encoder.decode(ids, keep_special=True) for ids in (encoded.prompt[:head], encoded.prompt[head:])]
        middle = Segment(text=f"[{encoded.cut} tokens cut]", role="cut")
        parts = [Segment(text=texts[0], role="prompt"), middle, Segment(text=texts[1], role="prompt")]
    answer, end = encoded.answer, []
    if answer and answer[-1] == encoder.eos_id:
        answer, end = answer[:-1], answer[-1:]
    parts.append(Segment(text=encoder.decode(answer, keep_special=True), role="answer", loss=True))
    if end:
        parts.append(Segment(text=encoder.decode(end, keep_special=True), role="end", loss=True))
    return parts


def _lengths(
    info: TaskInfo, table: pa.Table, encoder: TextEncoder, template: PromptTemplate, max_length: int | None
) -> Lengths:
    places = np.unique(np.linspace(0, len(table) - 1, min(len(table), MEASURED)).astype(np.int64))
    style = _style(info, template)
    prompt, answer = [], []
    for row in _filled(info, rows_at(table, places)):
        encoded = encoder.encode(row, style)
        prompt.append(len(encoded.prompt))
        answer.append(len(encoded.answer))
    total = np.add(prompt, answer)
    too_long = int((total > max_length).sum()) if max_length else 0
    width = -(-int(total.max() + 1) // _BINS)
    return Lengths(
        measured=len(places),
        histogram=np.bincount(total // width).tolist(),
        bin_width=width,
        prompt=_summary(np.array(prompt)),
        answer=_summary(np.array(answer)),
        total=_summary(total),
        truncated=too_long,
        truncated_share=too_long / max(len(places), 1),
    )


def _summary(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": round(float(values.mean()), 1),
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "max": float(values.max()),
    }


def _positions(table: pa.Table) -> dict[str, int]:
    """How often the right choice stands first, second, ..."""
    pairs = zip(column(table, "choices"), column(table, "output"), strict=True)
    places = class_balance(f"choice {choices.index(output) + 1}" for choices, output in pairs if output in choices)
    return dict(sorted(places.items(), key=lambda item: int(item[0].split()[1])))


def _filled(info: TaskInfo, rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        row["instruction"] = row["instruction"] or info.instruction
        yield row


def _style(info: TaskInfo, template: PromptTemplate) -> PromptTemplate:
    return template.model_copy(update={"style": "none"}) if info.kind == "sentence" else template
