"""The figures of a soak as text: what is printed, and the block of docs/reliability.md."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.home import PROJECT, write_text

PAGE = PROJECT / "docs" / "reliability.md"
BLOCK = re.compile(r"(<!-- (\w+): written by python -m benchmarks\.soak --page -->\n).*?(<!-- end -->)", re.S)
SHOWN = 3  # of what is wrong


def write(measured: Path, page: Path = PAGE) -> Path:
    """Fill the page's block from the measured figures."""
    text = table(json.loads(measured.read_text("utf-8"))) if measured.is_file() else "Not measured yet."
    filled = BLOCK.sub(lambda match: f"{match[1]}{text}\n{match[3]}", page.read_text("utf-8"))
    write_text(page, filled)
    return page


def table(report: Mapping[str, Any]) -> str:
    parts = [_head(report)]
    if kills := report.get("kills"):
        parts += [_checks(kills), _settled(kills), _numbers(kills)]
    if load := report.get("load"):
        parts.append(_load(load))
    return "\n\n".join(parts)


def _head(report: Mapping[str, Any]) -> str:
    machine = report["machine"]
    parts = [f"{name} {report[name]['took']} s" for name in ("kills", "load") if name in report]
    return (
        f"{machine['day']}, {machine['cores']} cores, Python {machine['python']}, "
        f"{machine['system']}: {', '.join(parts)}; load of the machine before: {machine['load']}."
    )


def _checks(kills: Mapping[str, Any]) -> str:
    lines = ["| promise | looked at | broken |", "|---|---:|---|"]
    for one in kills["checks"]:
        wrong = "; ".join(text.replace("|", "/") for text in one["wrong"][:SHOWN])
        more = f" and {len(one['wrong']) - SHOWN} more" if len(one["wrong"]) > SHOWN else ""
        lines.append(f"| {one['promise']} | {one['looked_at']:,} | {f'**{wrong}{more}**' if wrong else 'no'} |")
    return "\n".join(lines)


def _settled(kills: Mapping[str, Any]) -> str:
    lines = ["| seconds until every page is right again | events | median | 95th percentile | most |"]
    lines.append("|---|---:|---:|---:|---:|")
    own = {kind: found for kind, found in kills["settled"].items() if kind != "all"}
    rows = {**own, "**all events**": kills["settled"]["all"]}
    rows |= {"all events, without the time in which no web server lives": kills["served"]}
    rows |= {f"page {page}, kills alone": found for page, found in kills["pages"].items()}
    rows |= {"web server away": kills["outages"], "dispatcher away": kills["without_dispatcher"]}
    lines += [_row(name, found) for name, found in rows.items()]
    return "\n".join(lines)


def _row(name: str, found: Mapping[str, Any]) -> str:
    cells = ("–" if found[key] is None else f"{found[key]:.1f}" for key in ("median", "p95", "most"))
    return f"| {name} | {found['count']} | {' | '.join(cells)} |"


def _numbers(kills: Mapping[str, Any]) -> str:
    said = lambda found: ", ".join(f"{count} {name}" for name, count in found.items()) or "none"  # noqa: E731
    longest = max(kills["untrue"].values(), default=0.0)
    return (
        f"Seed {kills['seed']}: {kills['kills']} kills of {kills['processes']} processes and {kills['pauses']} pauses. "
        f"People: {said(kills['people'])}. Runs: {said(kills['runs'])}. Attempts: {said(kills['attempts'])}. "
        f"The pages were compared with the processes {kills['polls']} times; the longest that one of them said "
        f"anything untrue was {longest:.1f} s."
    )


def _load(load: Mapping[str, Any]) -> str:
    """What the load part says of itself, else its figures by name."""
    if isinstance(load.get("text"), str):
        return load["text"]
    rows = [(name, value) for name, value in load.items() if isinstance(value, int | float | str)]
    return "\n".join(["| load | figure |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)])
