"""What the Data page shows, as HTML from plain data; everything that comes from data is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from app import uploads
from app.pages import data_names
from app.ui import components as ui

SPLITS = ("train", "validation", "test")
SHOWN_TASKS = 30
SHOWN_SETS = 50
SHOWN_LABELS = 14
LONG = 1200  # characters of a cell
SHORT = 30  # characters up to which several values stand on one line
ROW_COLUMNS = ("system", "instruction", "history", "input", "output", "references", "choices")
_SPECIAL = re.compile(r"&lt;(?:\|[^|\s]{1,40}\||/?s|bos|eos|pad|unk)&gt;|\[/?INST\]")


def link(dataset: str) -> str:
    return f"/data?dataset={quote(dataset)}"


def table(heads: Iterable[str], body: Iterable[str], classes: str = "") -> str:
    """A table; a head that begins with # stands over numbers."""
    cells = "".join(f"<th class=num>{h[1:]}</th>" if h.startswith("#") else f"<th>{h}</th>" for h in heads)
    inside = f"<thead><tr>{cells}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="scroll {classes}"><table class="grid">{inside}</table></div>'


def line(*cells: str | tuple[str, str]) -> str:
    """A row of a table from HTML; ("num", html) is a number, ("wrap", html) may take several lines."""
    return f"<tr>{''.join(map(_td, cells))}</tr>"


def _td(cell: str | tuple[str, str]) -> str:
    return f"<td>{cell}</td>" if isinstance(cell, str) else f"<td class={cell[0]}>{cell[1]}</td>"


def stored(datasets: Sequence[Mapping[str, Any]], search: str = "") -> str:
    """The stored data sets as a table; ``search`` looks at names and tasks."""
    if not datasets:
        return ui.empty(
            "No data is stored yet",
            "Drop a file above, name a folder or a Hub data set, or begin with the four small tasks of the demo.",
        )
    wanted = search.strip().lower()
    found = [d for d in datasets if wanted in " ".join([d["name"], *d["aliases"], *d["tasks"]]).lower()]
    if not found:
        return ui.empty("Nothing matches", f"No data set or task is called like {search.strip()!r}.")
    heads = ["data set", "tasks", "kinds", *(f"#{split}" for split in SPLITS), "metric", "#chance", "stored"]
    more = len(found) - SHOWN_SETS
    note = f"<p>{more:,} more; search for a name to see them.</p>" if more > 0 else ""
    known = data_names.meant(datasets)
    return table(heads, [_stored_row(data, data_names.shown(data, known)) for data in found[:SHOWN_SETS]]) + note


def _stored_row(data: Mapping[str, Any], name: str) -> str:
    tasks = list(data["tasks"].values())
    names = ", ".join(task["name"] for task in tasks[:5]) + (f" and {len(tasks) - 5} more" if len(tasks) > 5 else "")
    return line(
        f'<a href="{ui.escape(link(name))}"><b>{ui.escape(data["name"])}</b></a>{_earlier(data, name)}',
        ("wrap", ui.escape(names)),
        ui.escape(", ".join(dict.fromkeys(task["kind"] for task in tasks))),
        *_counts(data["counts"]),
        ui.escape(", ".join(dict.fromkeys(task["metric"] for task in tasks))),
        ("num", _chance(tasks)),
        ui.escape(data["created"][:10]),
    )


def _earlier(data: Mapping[str, Any], name: str) -> str:
    """A mark where a later data set bears the same name."""
    return "" if name == data["name"] else f" <small>earlier version {ui.escape(data['id'][:6])}</small>"


def _chance(tasks: Sequence[Mapping[str, Any]]) -> str:
    values = sorted({round(task["chance"], 3) for task in tasks})
    return f"{values[0]:.3f}" if len(values) == 1 else f"{values[0]:.3f}–{values[-1]:.3f}" if values else "–"


def _counts(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    return [("num", f"{counts[split]:,}" if counts.get(split) else "–") for split in SPLITS]


def detail(data: Mapping[str, Any], name: str) -> str:
    """Facts of one stored data set and of each of its tasks; ``name`` leads to it."""
    known = f" · also called {', '.join(data['aliases'])}" if data["aliases"] else ""
    facts = (
        f"{data['id']} · {uploads.shown(data['source'])} · stored {data['created'].replace('T', ' ')[:16]} UTC{known}"
    )
    use = ui.escape(f"/experiment?dataset={quote(name)}")
    heads = ["task", "kind", *(f"#{split}" for split in SPLITS), "metric", "#chance", "#trivial", "instruction"]
    title = ui.escape(data["name"]) + _earlier(data, name)
    return (
        f'<p><a href="/data">← all data sets</a></p><div class="titled"><h2>{title}</h2>'
        f'<a class="button" href="{use}">Use in an experiment</a></div>'
        f'<p class="facts">{ui.escape(facts)}</p>'
        + table(heads, map(_task_row, list(data["tasks"].values())[:500]), "tall")
        + _notes(data["notes"])
        + "<p><small>chance: score of guessing evenly; trivial: best score that needs no understanding.</small></p>"
    )


def _task_row(task: Mapping[str, Any]) -> str:
    return line(
        f"<b>{ui.escape(task['name'])}</b>",
        ui.escape(task["kind"]),
        *_counts(task["counts"]),
        ui.escape(task["metric"]),
        ("num", ui.number(float(task["chance"]))),
        ("num", ui.number(task["trivial"])),
        ("wrap", ui.escape(task["instruction"][:200])),
    )


def rows(found: Sequence[Mapping[str, Any]], start: int) -> str:
    """Canonical rows as a table, only with the columns that say something."""
    columns = [c for c in ROW_COLUMNS if c in ("input", "output") or any(row[c] for row in found)]
    body = [
        line(("num", f"{start + i:,}"), *(("wrap", f"<div>{_cell(row[column])}</div>") for column in columns))
        for i, row in enumerate(found)
    ]
    return table(["#row", *columns], body, "rows")


def _cell(value: Any) -> str:
    if isinstance(value, list):
        texts = [f"{v['role']}: {v['content']}" if isinstance(v, dict) else str(v) for v in value]
        value = ("\n" if any("\n" in text or len(text) > SHORT for text in texts) else " · ").join(texts)
    text = str(value)
    return ui.escape(text if len(text) <= LONG else text[: LONG - 1] + "…")


def preview(found: Any) -> str:
    """All that a preview found out: files, notes, and each task as the model sees it."""
    tasks = list(found.tasks.values())
    shown = "".join(task_preview(task, i == 0) for i, task in enumerate(tasks[:SHOWN_TASKS]))
    more = f"<p>{len(tasks) - SHOWN_TASKS} more tasks are not shown here.</p>" if len(tasks) > SHOWN_TASKS else ""
    return files(found.files) + _notes(found.notes) + shown + more


def files(reports: Sequence[Any]) -> str:
    if not reports:
        return ""
    body = [
        line(
            f"<b>{ui.escape(f.name)}</b>",
            ui.escape(f.format),
            ui.escape(f.encoding or "–"),
            ("num", f"{f.rows:,}"),
            ui.escape(f.task),
            ui.escape(f.split or "drawn"),
            ("wrap", _mapping(f.mapping)),
        )
        for f in reports[:200]
    ]
    return table(["file", "format", "encoding", "#rows", "task", "split", "role ← column"], body, "tall")


def _mapping(mapping: Mapping[str, Any]) -> str:
    parts = []
    for role, value in mapping.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        parts.append(f"{ui.escape(role)} ← <code>{ui.escape(text)}</code>")
    return "; ".join(parts)


def _notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{ui.escape(note)}</li>" for note in list(notes)[:40])
    return f'<div class="note"><ul>{items}</ul></div>' if items else ""


LEGEND = (
    '<p class="legend"><span class="learnt">learnt</span> the loss runs over this · '
    '<span class="special">special tokens</span> · the rest is read, not learnt</p>'
)


def task_preview(task: Any, opened: bool) -> str:
    """One task: an example of each split with its loss mask, lengths, classes, repeated rows."""
    info = task.info
    counts = " · ".join(f"{info.counts[split]:,} {split}" for split in SPLITS if split in info.counts)
    about = f"{ui.escape(info.kind)} · {counts} rows · {ui.escape(info.metric)}, chance {info.chance:.3f}"
    shown: dict[str, int] = {}
    examples = []
    for row in task.rows:
        shown[row.split] = shown.get(row.split, 0) + 1
        if row.segments and shown[row.split] <= (3 if row.split == "train" else 1):
            examples.append(example(row))
    facts = [lengths(task.lengths), balance(task.balance), repeated(task.duplicates, task.overlap)]
    return (
        f'<details class="task"{" open" if opened else ""}><summary><b>{ui.escape(info.name)}</b> '
        f'<span>{about}</span></summary><div class="split-view"><div class="examples">{LEGEND}{"".join(examples)}</div>'
        f'<div class="facts-list">{"".join(facts)}</div></div></details>'
    )


def example(row: Any) -> str:
    """One prompt as the model sees it; what is learnt is marked."""
    parts = "".join(map(_segment, row.segments))
    cut = f" · {row.cut:,} cut" if row.cut else ""
    return (
        f'<article><h4>{ui.escape(row.split)} row {row.index} <span class="num">{row.prompt_tokens:,} prompt + '
        f'{row.answer_tokens:,} answer tokens{cut}</span></h4><div class="prompt">{parts}</div></article>'
    )


def _segment(segment: Any) -> str:
    text = _SPECIAL.sub(lambda found: f'<span class="special">{found[0]}</span>', ui.escape(segment.text))
    if segment.role == "cut":
        return f'<span class="cut">{text}</span>'
    return f'<span class="learnt">{text}</span>' if segment.loss else text


def lengths(found: Mapping[str, Any]) -> str:
    """Token counts: a histogram of the training rows, and the figures of each split."""
    if not found:
        return ""
    first = found.get("train") or next(iter(found.values()))
    wide, top = first.bin_width, max(first.histogram or [1])
    bars = "".join(
        f'<i style="height:{100 * n / top:.0f}%" title="{i * wide} to {(i + 1) * wide - 1} tokens: {n:,} rows"></i>'
        for i, n in enumerate(first.histogram)
    )
    body = [
        line(
            ui.escape(split),
            *(("num", f"{one.total.get(key, 0):.0f}") for key in ("median", "p95", "max")),
            ("num", f"<b{WARN if one.truncated else ''}>{one.truncated_share:.1%}</b>"),
        )
        for split, one in found.items()
    ]
    return (
        '<section><h4>Tokens per row</h4><div class="hist" role="img" aria-label="Histogram of tokens per row">'
        f'{bars}</div><div class="hist-axis num"><span>0</span><span>{len(first.histogram) * wide} tokens</span></div>'
        + table(["", "#median", "#95 %", "#longest", "#cut"], body)
        + "</section>"
    )


WARN = ' class="warn"'


def balance(found: Mapping[str, Mapping[str, int]]) -> str:
    """How often each label (or each place of the right choice) occurs in the first split."""
    if not found:
        return ""
    split, counts = next(iter(found.items()))
    total, top = sum(counts.values()) or 1, max(counts.values(), default=1)
    bars = "".join(
        f'<div><span title="{ui.escape(label)}">{ui.escape(label)}</span><i style="width:{100 * n / top:.0f}%"></i>'
        f'<em class="num">{n:,} · {n / total:.0%}</em></div>'
        for label, n in list(counts.items())[:SHOWN_LABELS]
    )
    more = f"<p>{len(counts) - SHOWN_LABELS} more labels</p>" if len(counts) > SHOWN_LABELS else ""
    return f'<section><h4>Classes <span>{ui.escape(split)}</span></h4><div class="dist">{bars}</div>{more}</section>'


NONE_REPEATED = "<p>No input comes twice or on both sides of a split.</p>"


def repeated(duplicates: Mapping[str, Any], overlap: Mapping[str, Any]) -> str:
    """Rows that come twice, and scored rows that are also trained on."""
    found = []
    for split, one in duplicates.items():
        if one.rows:
            against = f", {one.conflicts:,} with another answer" if one.conflicts else ""
            found.append((f"{one.rows:,} {split} rows repeat an earlier input{against}", one.examples))
    for split, one in overlap.items():
        if one.rows:
            found.append((f"{one.rows:,} {split} rows ({one.share:.1%}) are also trained on", one.examples))
    items = "".join(
        f'<details class="repeat"><summary>{ui.escape(text)}</summary>'
        f"<ul>{''.join(f'<li>{ui.escape(shown)}</li>' for shown in examples)}</ul></details>"
        for text, examples in found
    )
    return f"<section><h4>Repeated rows</h4>{items or NONE_REPEATED}</section>"


def glimpses(found: Sequence[Mapping[str, Any]]) -> str:
    """The first rows of files as they are, for choosing what their columns mean."""
    parts = []
    for one in found[:6]:
        body = [line(*(("wrap", ui.escape(cell)) for cell in row)) for row in one["rows"]]
        facts = " · ".join(filter(None, (one["format"], one["encoding"])))
        inside = ui.escape(one["problem"]) or table((f" {ui.escape(column)}" for column in one["columns"]), body)
        parts.append(f"<h4>{ui.escape(one['name'])} <span>{ui.escape(facts)}</span></h4>{inside}")
    return f'<div class="glimpses">{"".join(parts)}</div>' if parts else ""
