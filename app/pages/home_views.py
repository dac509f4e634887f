"""What the Home page says, as HTML from plain data; whatever comes from data is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from app.ui import components as ui
from core.units import GIB, KIB, MIB, TIB

BROKEN = ("failed", "lost", "cancelled")
BUSY = 85  # percent from which a meter warns
KINDS = {
    "datasets": "Data sets",
    "runs": "Runs: adapters, scores, routing, logs",
    "checkpoints": "Checkpoints",
    "caches": "Caches: scores of bases, shapes of models",
    "orphans": "Folders of no run",
    "database": "Database and its backups",
}
CLEANABLE = {"Checkpoints of finished runs": "checkpoints", "Caches": "caches", "Folders of no run": "orphans"}


def welcome() -> str:
    """What a newcomer reads first, above the button of the demo."""
    return (
        '<div class="welcome"><h2>See it work first</h2>'
        "<p>The demo trains three methods (LoRA, MoLoRA, MoSLD) on four small language tasks with a model that comes "
        "along. It needs no GPU and no network, and takes a few minutes on two CPU cores. You get scores against the "
        "untouched model, the routing of every expert, and three models to talk to.</p></div>"
    )


def other_ways() -> str:
    return (
        '<p class="ways">Or <a href="/data">bring your own data</a> (CSV, JSON lines, Parquet, a Hub id), then '
        '<a href="/experiment">set up an experiment</a>.</p>'
    )


def counts(found: Mapping[str, int]) -> str:
    """Numbers that lead to the pages behind them."""
    links = {"data sets": "/data", "runs": "/runs", "running": "/runs?state=running", "queued": "/runs?state=queued"}
    cells = "".join(
        f'<a href="{links.get(name, "/runs")}"><b class="num">{number:,}</b><span>{ui.escape(name)}</span></a>'
        for name, number in found.items()
    )
    return f'<div class="counts">{cells}</div>'


def demo(runs: Sequence[Mapping[str, Any]]) -> str:
    """The demo's runs while they work, and where to look when they are done; empty without any."""
    if not runs:
        return ""
    done = all(run["state"] == "done" for run in runs)
    broken = [run for run in runs if run["state"] in BROKEN]
    rows = "".join(map(_progress, runs))
    if done:
        title, foot = "The demo is done", _results(runs)
    elif broken:
        title = "The demo did not finish"
        links = ", ".join(f'<a href="{run_link(run["id"])}">{ui.escape(run["id"])}</a>' for run in broken)
        foot = f"<p>Read what happened to {links}; running the demo again trains only what is missing.</p>"
    else:
        title = "The demo is at work"
        foot = "<p>You may close this page: the runs go on. Results appear here when all three are done.</p>"
    return f'<div class="demo-card"><h2>{title}</h2>{rows}{foot}</div>'


def preparing(runs: Sequence[Mapping[str, Any]]) -> str:
    """While the demo is being queued."""
    rows = "".join(map(_progress, runs))
    return f'<div class="demo-card"><h2>Preparing the demo …</h2>{rows}<p>Its data is stored and checked.</p></div>'


def _results(runs: Sequence[Mapping[str, Any]]) -> str:
    ids = ",".join(run["id"] for run in runs)
    mixture = runs[-1]["id"]
    links = (
        (address("/compare", runs=ids), "Compare the three"),
        (address("/routing", run=mixture), "See which expert speaks for which task"),
        (address("/chat", runs=ids), "Talk to them"),
    )
    return "<p>" + " · ".join(f'<a href="{ui.escape(link)}">{text}</a>' for link, text in links) + "</p>"


def _progress(run: Mapping[str, Any]) -> str:
    job = run["job"] or {}
    share = 1.0 if run["state"] == "done" else (job.get("step") or 0) / (job.get("total") or 1)
    return (
        f'<div class="line"><a href="{run_link(run["id"])}">{ui.escape(run["name"])}</a>{state(run)}'
        f'<span class="track"><i style="width:{100 * min(share, 1.0):.0f}%"></i></span>'
        f'<span class="num said">{ui.escape(run["progress"])}</span></div>'
    )


def state(run: Mapping[str, Any]) -> str:
    name = ui.escape(run["state"])
    return f'<i class="state {name}">{name}</i>'


def recent(runs: Sequence[Mapping[str, Any]]) -> str:
    """The newest runs, each a link."""
    heads = "<th>Run</th><th>Name</th><th>Method</th><th>State</th><th>Progress</th><th class='num'>Trainable</th>"
    rows = "".join(map(_row, runs))
    return (
        f'<h2>Recent runs</h2><div class="scroll"><table class="grid"><thead><tr>{heads}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><p class="ways"><a href="/runs">All runs</a></p>'
    )


def _row(run: Mapping[str, Any]) -> str:
    link = f'<a href="{run_link(run["id"])}">{ui.escape(run["id"])}</a>'
    name = f'<td class="name" title="{ui.escape(run["name"])}">{ui.escape(run["name"])}</td>'
    cells = f"<td>{link}</td>{name}<td>{ui.escape(run['method'])}{ui.badge(run.get('badge'))}</td><td>{state(run)}</td>"
    return f"<tr>{cells}<td>{ui.escape(run['progress'])}</td><td class='num'>{ui.short(run['trainable'])}</td></tr>"


def run_link(run: str) -> str:
    return ui.escape(address("/runs", run=run))


def address(path: str, **query: str) -> str:
    return f"{path}?{urlencode(query, safe=',')}"


def machine(found: Mapping[str, Any]) -> str:
    """Meters, who holds which device, what waits, and the dispatcher."""
    meters, holders = found["meters"], found["holders"]
    lines = ["<h2>Machine</h2>"]
    if meters is None:
        lines.append('<p class="measuring">measuring …</p>')
    else:
        lines += _meters(meters, holders)
    return "".join(lines) + _waiting(found["waiting"], found["dispatcher"])


def _meters(meters: Mapping[str, Any], holders: Mapping[str, Any]) -> list[str]:
    cpu, memory = meters["cpu"], meters["memory"]
    share = 100 * memory["used"] / (memory["total"] or 1)
    lines = [
        _meter(f"CPU, {cpu['cores']} cores", cpu["percent"], f"{cpu['percent']:.0f} %", holders.get("cpu")),
        _meter("Memory", share, f"{size(memory['used'])} of {size(memory['total'])}"),
    ]
    for gpu in meters["gpus"]:
        used = None if gpu["used"] is None else 100 * gpu["used"] / (gpu["total"] or 1)
        busy = "" if gpu["percent"] is None else f", {gpu['percent']:.0f} % busy"
        told = f"{size(gpu['used'])} of {size(gpu['total'])}{busy}"
        lines.append(_meter(f"{gpu['device']}, {gpu['title']}", used, told, holders.get(gpu["device"]) or []))
    if not meters["gpus"]:
        lines.append('<div class="meter"><span>GPU</span><span class="said">none: runs use the CPU</span></div>')
    return lines


def _meter(name: str, percent: float | None, told: str, holders: Sequence[Mapping[str, Any]] | None = None) -> str:
    share = max(0.0, min(100.0, percent or 0.0))
    full = ' class="full"' if share >= BUSY else ""
    held = "" if holders is None else f'<span class="held">{_held(holders)}</span>'
    return (
        f'<div class="meter"><span>{ui.escape(name)}</span>'
        f'<span class="track"><i{full} style="width:{share:.0f}%"></i></span>'
        f'<span class="num said">{ui.escape(told)}</span>{held}</div>'
    )


def _held(holders: Sequence[Mapping[str, Any]]) -> str:
    return "held by " + ", ".join(map(_holder, holders)) if holders else "free"


def _holder(one: Mapping[str, Any]) -> str:
    if one["run"]:
        share = "" if one["share"] == 1 else f", {one['share']:.0%}"
        return f'<a href="{run_link(one["run"])}">{ui.escape(one["run"])}</a> ({ui.escape(one["title"])}{share})'
    return ui.escape(one["title"])


def _waiting(waiting: Sequence[Mapping[str, Any]], dispatcher: Mapping[str, Any]) -> str:
    shown = ", ".join(
        f'<a href="{run_link(job["run"])}">{ui.escape(job["run"])}</a> ({ui.escape(job["title"])}, '
        f"{ui.escape(job['device'])})"
        for job in waiting[:6]
    )
    more = f" and {len(waiting) - 6:,} more" if len(waiting) > 6 else ""
    queue = f"Waiting, in this order: {shown}{more}." if waiting else "Nothing waits."
    if dispatcher["alive"]:
        process = f"The dispatcher is at work as process {dispatcher['pid']}."
    elif waiting:
        process = '<b class="warn">No dispatcher is alive, so what waits does not start.</b>'
    else:
        process = "The dispatcher rests; it starts with the next run."
    return f'<p class="queue">{queue} {process}</p>'


def disk(found: Mapping[str, Any] | None) -> str:
    """Sizes by kind, and what of them may go."""
    if found is None:
        return '<h2>Disk</h2><p class="measuring">counting …</p>'
    total = sum(found["kinds"].values())
    rows = "".join(
        f"<tr><td>{KINDS[kind]}</td><td class='num'>{size(taken)}</td>"
        f"<td class='num'>{size(found['removable'][kind]) if found['removable'].get(kind) else '–'}</td></tr>"
        for kind, taken in found["kinds"].items()
    )
    used = 100 * (1 - found["free"] / (found["total"] or 1))
    meter = _meter("Disk", used, f"{size(found['free'])} of {size(found['total'])} free")
    heads = '<th>Kind</th><th class="num">Takes</th><th class="num">Can go</th>'
    last = f'<tr class="mean"><td>Together</td><td class="num">{size(total)}</td><td></td></tr>'
    table = f'<table class="grid"><thead><tr>{heads}</tr></thead><tbody>{rows}{last}</tbody></table>'
    return f"<h2>Disk</h2>{meter}{table}"


def freed(found: Mapping[str, int]) -> str:
    return f'<div class="note">{size(sum(found.values()))} freed.</div>'


def size(count: float | None) -> str:
    """Bytes as people read them."""
    if count is None:
        return "–"
    for unit, letter in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {letter}"
    return f"{count:.0f} B"
