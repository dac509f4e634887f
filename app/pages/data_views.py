"""What the Data page shows, as HTML from plain data; everything that comes from data is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from app.ui import components as ui

SPLITS = ("train", "validation", "test")
SHOWN_TASKS = 30
SHOWN_SETS = 50
SHOWN_LABELS = 14
LONG = 1200  # characters of a cell
_SPECIAL = re.compile(r"&lt;(?:\|[^|\s]{1,40}\||/?s|bos|eos|pad|unk)&gt;|\[/?INST\]")


def link(dataset: str) -> str:
    return f"/data?dataset={quote(dataset)}"


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
    heads = ["data set", "tasks", "kinds", *SPLITS, "metric", "chance", "stored"]
    numeric = {*SPLITS, "chance"}
    head = "".join(f'<th{" class=num" if name in numeric else ""}>{name}</th>' for name in heads)
    rows = "".join(map(_stored_row, found[:SHOWN_SETS]))
    more = len(found) - SHOWN_SETS
    note = f"<p>{more:,} more; search for a name to see them.</p>" if more > 0 else ""
    return f'<div class="scroll"><table class="grid"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}'


def _stored_row(data: Mapping[str, Any]) -> str:
    tasks = list(data["tasks"].values())
    names = ", ".join(task["name"] for task in tasks[:3]) + (f" and {len(tasks) - 3} more" if len(tasks) > 3 else "")
    kinds = ", ".join(dict.fromkeys(task["kind"] for task in tasks))
    metrics = ", ".join(dict.fromkeys(task["metric"] for task in tasks))
    counts = "".join(f"<td class=num>{_count(data['counts'].get(split))}</td>" for split in SPLITS)
    return (
        f'<tr><td><a href="{ui.escape(link(data["name"]))}"><b>{ui.escape(data["name"])}</b></a></td>'
        f"<td class=wrap>{ui.escape(names)}</td><td>{ui.escape(kinds)}</td>{counts}<td>{ui.escape(metrics)}</td>"
        f"<td class=num>{_chance(tasks)}</td><td>{ui.escape(data['created'][:10])}</td></tr>"
    )


def _chance(tasks: Sequence[Mapping[str, Any]]) -> str:
    values = sorted({round(task["chance"], 3) for task in tasks})
    return f"{values[0]:.3f}" if len(values) == 1 else f"{values[0]:.3f}–{values[-1]:.3f}" if values else "–"


def _count(number: int | None) -> str:
    return f"{number:,}" if number else "–"


def detail(data: Mapping[str, Any]) -> str:
    """Facts of one stored data set and of each of its tasks."""
    known = f" · also called {', '.join(data['aliases'])}" if data["aliases"] else ""
    facts = f"{data['id']} · {data['source']} · stored {data['created'].replace('T', ' ')[:16]} UTC{known}"
    use = f"/experiment?dataset={quote(data['name'])}"
    heads = ["task", "kind", *SPLITS, "metric", "chance", "trivial", "instruction"]
    numeric = {*SPLITS, "chance", "trivial"}
    head = "".join(f'<th{" class=num" if name in numeric else ""}>{name}</th>' for name in heads)
    rows = "".join(map(_task_row, list(data["tasks"].values())[:500]))
    notes = _notes(data["notes"])
    return (
        f'<p><a href="/data">← all data sets</a></p><div class="titled"><h2>{ui.escape(data["name"])}</h2>'
        f'<a class="button" href="{ui.escape(use)}">Use in an experiment</a></div><p class="facts">{ui.escape(facts)}</p>'
        f'<div class="scroll tall"><table class="grid"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f"{notes}<p><small>chance: score of guessing evenly; trivial: best score that needs no understanding.</small></p>"
    )


def _task_row(task: Mapping[str, Any]) -> str:
    counts = "".join(f"<td class=num>{_count(task['counts'].get(split))}</td>" for split in SPLITS)
    return (
        f"<tr><td><b>{ui.escape(task['name'])}</b></td><td>{ui.escape(task['kind'])}</td>{counts}"
        f"<td>{ui.escape(task['metric'])}</td><td class=num>{ui.number(float(task['chance']))}</td>"
        f"<td class=num>{ui.number(task['trivial'])}</td><td class=wrap>{ui.escape(task['instruction'][:200])}</td></tr>"
    )


def rows(found: Sequence[Mapping[str, Any]], start: int) -> str:
    """Canonical rows as a table, only with the columns that say something."""
    columns = [c for c in ("system", "instruction", "history", "input", "output", "references", "choices") if _any(found, c)]
    head = "".join(f"<th>{c}</th>" for c in columns)
    body = "".join(
        f"<tr><td class=num>{start + i:,}</td>{''.join(f'<td class=wrap><div>{_cell(row[c])}</div></td>' for c in columns)}</tr>"
        for i, row in enumerate(found)
    )
    return f'<div class="scroll rows"><table class="grid"><thead><tr><th class=num>row</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _any(found: Sequence[Mapping[str, Any]], column: str) -> bool:
    return column in ("input", "output") or any(row[column] for row in found)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        texts = [f"{v['role']}: {v['content']}" if isinstance(v, dict) else str(v) for v in value]
        value = "\n".join(texts)
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
    body = "".join(
        f"<tr><td><b>{ui.escape(f.name)}</b></td><td>{ui.escape(f.format)}</td><td>{ui.escape(f.encoding or '–')}</td>"
        f"<td class=num>{f.rows:,}</td><td>{ui.escape(f.task)}</td><td>{ui.escape(f.split or 'drawn')}</td>"
        f"<td class=wrap>{_mapping(f.mapping)}</td></tr>"
        for f in reports[:200]
    )
    heads = "<th>file</th><th>format</th><th>encoding</th><th class=num>rows</th><th>task</th><th>split</th><th>role ← column</th>"
    return f'<div class="scroll tall"><table class="grid"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _mapping(mapping: Mapping[str, Any]) -> str:
    parts = []
    for role, value in mapping.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        parts.append(f"{ui.escape(role)} ← <code>{ui.escape(text)}</code>")
    return "; ".join(parts)


def _notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{ui.escape(note)}</li>" for note in list(notes)[:40])
    return f'<div class="note"><ul>{items}</ul></div>' if items else ""


def task_preview(task: Any, opened: bool) -> str:
    """One task: an example of each split with its loss mask, lengths, classes, repeated rows."""
    info = task.info
    counts = " · ".join(f"{info.counts[split]:,} {split}" for split in SPLITS if split in info.counts)
    title = f"<b>{ui.escape(info.name)}</b> <span>{ui.escape(info.kind)} · {counts} rows · {ui.escape(info.metric)}, chance {info.chance:.3f}</span>"
    shown: dict[str, int] = {}
    examples = []
    for row in task.rows:
        shown[row.split] = shown.get(row.split, 0) + 1
        if row.segments and shown[row.split] <= (3 if row.split == "train" else 1):
            examples.append(example(row))
    facts = [lengths(task.lengths), balance(task.balance), repeated(task.duplicates, task.overlap)]
    return (
        f'<details class="task"{" open" if opened else ""}><summary>{title}</summary><div class="split-view">'
        f'<div class="examples">{LEGEND}{"".join(examples)}</div><div class="facts-list">{"".join(facts)}</div></div></details>'
    )


LEGEND = '<p class="legend"><span class="learnt">learnt</span> the loss runs over this · <span class="special">special tokens</span> · the rest is read, not learnt</p>'


def example(row: Any) -> str:
    """One prompt as the model sees it; what is learnt is marked."""
    parts = "".join(_segment(segment) for segment in row.segments)
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
    top = max(first.histogram or [1])
    bars = "".join(
        f'<i style="height:{100 * n / top:.0f}%" title="{i * first.bin_width}–{(i + 1) * first.bin_width - 1} tokens: {n:,} rows"></i>'
        for i, n in enumerate(first.histogram)
    )
    end = len(first.histogram) * first.bin_width
    body = "".join(
        f"<tr><td>{ui.escape(split)}</td><td class=num>{one.total.get('median', 0):.0f}</td><td class=num>{one.total.get('p95', 0):.0f}</td>"
        f"<td class=num>{one.total.get('max', 0):.0f}</td><td class=num{_warn(one.truncated)}>{one.truncated_share:.1%}</td></tr>"
        for split, one in found.items()
    )
    return (
        f'<section><h4>Tokens per row</h4><div class="hist" role="img" aria-label="Histogram of tokens per row">{bars}</div>'
        f'<div class="hist-axis num"><span>0</span><span>{end} tokens</span></div><table class="grid"><thead><tr><th></th>'
        f"<th class=num>median</th><th class=num>95 %</th><th class=num>longest</th><th class=num>cut</th></tr></thead>"
        f"<tbody>{body}</tbody></table></section>"
    )


def _warn(count: int) -> str:
    return ' style="color:var(--warn)"' if count else ""


def balance(found: Mapping[str, Mapping[str, int]]) -> str:
    """How often each label (or each place of the right choice) occurs in the first split."""
    if not found:
        return ""
    split, counts = next(iter(found.items()))
    total, top = sum(counts.values()) or 1, max(counts.values(), default=1)
    lines = "".join(
        f'<div><span title="{ui.escape(label)}">{ui.escape(label)}</span><i style="width:{100 * n / top:.0f}%"></i><em class="num">{n:,} · {n / total:.0%}</em></div>'
        for label, n in list(counts.items())[:SHOWN_LABELS]
    )
    more = f"<p>{len(counts) - SHOWN_LABELS} more labels</p>" if len(counts) > SHOWN_LABELS else ""
    return f'<section><h4>Classes <span>{ui.escape(split)}</span></h4><div class="dist">{lines}</div>{more}</section>'


def repeated(duplicates: Mapping[str, Any], overlap: Mapping[str, Any]) -> str:
    """Rows that come twice, and scored rows that are also trained on."""
    lines = []
    for split, one in duplicates.items():
        if one.rows:
            against = f", {one.conflicts:,} with another answer" if one.conflicts else ""
            lines.append((f"{one.rows:,} {split} rows repeat an earlier input{against}", one.examples))
    for split, one in overlap.items():
        if one.rows:
            lines.append((f"{one.rows:,} {split} rows ({one.share:.1%}) are also trained on", one.examples))
    if not lines:
        return "<section><h4>Repeated rows</h4><p>No repeated inputs, and none on both sides of a split.</p></section>"
    items = "".join(
        f'<details class="repeat"><summary>{ui.escape(text)}</summary><ul>{"".join(f"<li>{ui.escape(e)}</li>" for e in examples)}</ul></details>'
        for text, examples in lines
    )
    return f"<section><h4>Repeated rows</h4>{items}</section>"


def glimpses(found: Sequence[Mapping[str, Any]]) -> str:
    """The first rows of files as they are, for choosing what their columns mean."""
    parts = []
    for one in found[:6]:
        head = "".join(f"<th>{ui.escape(c)}</th>" for c in one["columns"])
        body = "".join(f"<tr>{''.join(f'<td class=wrap>{ui.escape(cell)}</td>' for cell in row)}</tr>" for row in one["rows"])
        facts = " · ".join(filter(None, (one["format"], one["encoding"])))
        table = f'<div class="scroll"><table class="grid"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        parts.append(f"<h4>{ui.escape(one['name'])} <span>{ui.escape(facts)}</span></h4>{ui.escape(one['problem']) or table}")
    return f'<div class="glimpses">{"".join(parts)}</div>' if parts else ""
