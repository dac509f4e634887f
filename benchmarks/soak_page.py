"""The figures of a soak as text: what is printed, and the block of docs/reliability.md."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.soak_watch import PROMISED
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
        parts += [_checks(kills), _settled(kills), _others(kills), _numbers(kills)]
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
    """How long pages may be wrong: by the clock, and while there is a web server to ask."""
    whole, served = kills["settled"], kills["served"]
    served = served if "all" in served else {"all": served}
    lines = [
        _sentence(whole["all"], served["all"], kills["outages"]),
        "",
        "| seconds until every page is right again | events | by the clock: median | 95 % | most "
        "| with a web server: median | 95 % | most |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for kind in [*(kind for kind in whole if kind != "all"), "all"]:
        name = "**all events**" if kind == "all" else kind
        lines.append(f"{_row(name, whole[kind])} {_cells(served.get(kind, {}))} |")
    return "\n".join(lines)


def _sentence(whole: Mapping[str, Any], served: Mapping[str, Any], outages: Mapping[str, Any]) -> str:
    return (
        f"Whatever died, with a web server every page was right again within {_number(served['p95'])} s (95 %), at "
        f"most {_number(served['most'])} s; {PROMISED:.0f} are promised. By the clock, from the kill on, it took up to "
        f"{_number(whole['most'])} s, since nobody sees a page while there is no web server: {outages['count']} times, "
        f"{_number(outages['median'])} s each (median), at most {_number(outages['most'])} s."
    )


def _others(kills: Mapping[str, Any]) -> str:
    rows = {f"page {page} is right again, by the clock": found for page, found in kills["pages"].items()}
    rows |= {"a web server is away": kills["outages"], "a dispatcher is away": kills["without_dispatcher"]}
    if chat := kills.get("chat"):
        rows |= {f"a question is answered again after: {kind}": found for kind, found in chat["again"].items()}
        rows |= {"a question is answered": chat["answers"]}
    head = ["| other times, in seconds | count | median | 95 % | most |", "|---|---:|---:|---:|---:|"]
    return "\n".join([*head, *(_row(name, found) for name, found in rows.items())])


def _row(name: str, found: Mapping[str, Any]) -> str:
    return f"| {name} | {found['count']} | {_cells(found)} |"


def _cells(found: Mapping[str, Any]) -> str:
    return " | ".join(_number(found.get(key)) for key in ("median", "p95", "most"))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _numbers(kills: Mapping[str, Any]) -> str:
    said = lambda found: ", ".join(f"{count} {name}" for name, count in found.items()) or "none"  # noqa: E731
    longest, chat = max(kills["untrue"].values(), default=0.0), kills.get("chat")
    talk = f"{chat['asked']} questions were put, {chat['answered']} of them answered whole. " if chat else ""
    return (
        f"Seed {kills['seed']}: {kills['kills']} kills of {kills['processes']} processes and {kills['pauses']} pauses. "
        f"People: {said(kills['people'])}. Runs: {said(kills['runs'])}. Attempts: {said(kills['attempts'])}. "
        f"{talk}The pages were compared with the processes {kills['polls']} times; the longest that one of them said "
        f"anything untrue was {longest:.1f} s."
    )


def _load(load: Mapping[str, Any]) -> str:
    """What the load part says of itself, else its figures by name."""
    if isinstance(load.get("text"), str):
        return load["text"]
    rows = [(name, value) for name, value in load.items() if isinstance(value, int | float | str)]
    return "\n".join(["| load | figure |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)])
