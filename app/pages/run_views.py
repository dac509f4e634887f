"""One run as HTML: its head, what went wrong, its scores, its facts and what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.pages.fusion_choice import again
from app.pages.run_list import MIB, STATES, alarms_of, date, phase, place
from app.ui import components as ui
from core.studio import Studio

RUN = re.compile(r"run-\d+")
TAIL = 50
FAILURES = {
    "memory": "Out of memory",
    "disk": "Disk",
    "alarm": "Alarm",
    "data": "Data",
    "configuration": "Settings",
    "dependency": "Needs another step",
    "internal": "Unexpected error",
}
e = ui.escape


def head(run: Mapping[str, Any]) -> str:
    """Name, state, progress with time left, and whether the tab may be closed."""
    title = f'<h2><span class="num">{e(run["id"])}</span> {e(run["name"])}</h2>'
    state = f'<em class="state {e(run["state"])}">{e(run["state"])}</em>'
    tags = "".join(f'<span class="tag">{e(tag)}</span>' for tag in run["tags"])
    job = active(run)
    share, told = _progress(run, job)
    track = f'<div class="track"><i style="width:{share:.1%}"></i></div>'
    safe = "Safe to close this tab: it goes on without it." if job or run["state"] == "queued" else ""
    return (
        f'<div class="run-title">{title}{ui.badge(run["badge"])}{state}{tags}</div>{track}'
        f'<p class="num run-progress"><span>{e(told)}</span><span>{safe}</span></p>'
    )


def alarms(run: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    """Alarms that wait for an answer, the newest three, and what the answers do; empty without any."""
    if not run["alarms"]:
        return ""
    new = said["alarms"][-run["alarms"] :]
    told = "".join(f"<li>step {one['step'] or 0}: {e(one['message'])}</li>" for one in new[-3:])
    more = f"<li>and {len(new) - 3} before</li>" if len(new) > 3 else ""
    what = "It goes on until somebody stops it." if active(run) else "It has ended."
    if halted(run):
        what = "It stopped, as it was asked to. Going on leads past this alarm, from the step at which it stopped."
    return f'<div class="alarms"><h3>{alarms_of(run).capitalize()}</h3><ul>{told}{more}</ul><p>{what}</p></div>'


def halted(run: Mapping[str, Any]) -> bool:
    """Whether the run stopped at an alarm, and can go on past it."""
    return any(job["state"] == "failed" and job["failure"] == "alarm" for job in run["jobs"])


def active(run: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The job that works now."""
    return next((job for job in run["jobs"] if job["state"] in STATES["working"]), None)


def _progress(run: Mapping[str, Any], job: Mapping[str, Any] | None) -> tuple[float, str]:
    waiting = next((one for one in run["jobs"] if one["state"] == "queued"), None)
    if job is not None:
        left = "" if job["seconds_left"] is None else f"{ui.duration(job['seconds_left'])} left"
        on = f"on {job['leased']}" if job["leased"] else ""
        share = (job["step"] or 0) / job["total"] if job["total"] else 0.0
        return share, _joined(phase(job), _counted(job), left, on)
    if waiting is not None:
        what = "" if waiting["kind"] in ("train", "fuse") else f"{waiting['name']} "
        return (1.0 if run["state"] == "done" else 0.0), f"{what}{place(waiting['ahead'])}, device {waiting['device']}"
    took = f"took {ui.duration(_seconds(run))}" if run["started"] and run["finished"] else ""
    ended = f"{run['state']} {date(run['finished'])}" if run["finished"] else run["state"]
    last = run["jobs"][-1] if run["jobs"] else {}
    at = f"at step {last['step']:,}" if run["state"] not in ("done", "queued") and last.get("step") else ""
    return (1.0 if run["state"] == "done" else 0.0), _joined(ended, at, took)


def _counted(job: Mapping[str, Any]) -> str:
    """How far a job is: steps, rows that are scored, or MiB of a base that is downloaded."""
    if not job["total"]:
        return ""
    done, total = job["step"] or 0, job["total"]
    if (job["phase"] or "").endswith(MIB):
        return f"{done:,} of {total:,}{MIB}"
    rows = job["kind"] == "score" or job["phase"] in ("scoring", "embedding prompts")
    return f"{'row' if rows else 'step'} {done:,} of {total:,}"


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def _seconds(run: Mapping[str, Any]) -> float:
    return (run["finished"] - run["started"]).total_seconds()


def failure(run: Mapping[str, Any], output: Sequence[str]) -> str:
    """A card for each job that failed: its class, what to do, its last lines."""
    failed = [job for job in run["jobs"] if job["state"] in ("failed", "lost") and (job["message"] or job["failure"])]
    return "".join(_failure(job, output) for job in failed[-2:])


def _failure(job: Mapping[str, Any], output: Sequence[str]) -> str:
    kind = FAILURES.get(job["failure"] or "", "Lost" if job["state"] == "lost" else "Failed")
    lines = (job["tail"] or "\n".join(output)).splitlines()[-TAIL:]
    tail = f"<details open><summary>Last {len(lines)} lines</summary><pre>{e(chr(10).join(lines))}</pre></details>"
    hint = f"<p><b>What to do:</b> {e(job['hint'])}</p>" if job["hint"] else ""
    return (
        f'<article class="failure"><h3><span class="badge bad">{e(kind)}</span> {e(job["name"])}</h3>'
        f"<p>{e(job['message'] or 'It ended without a word.')}</p>{hint}{tail if lines else ''}</article>"
    )


def facts(run: Mapping[str, Any], seeds: Sequence[Mapping[str, Any]] = ()) -> str:
    """What was asked and what it cost, as a list of names and values."""
    spec = run["spec"]
    method = run["title"] if spec.get("sources") else run["method"]
    rows = [
        ("Method", f"<b>{e(method)}</b>{ui.badge(run['badge'])} {e(_options(spec['method']))}"),
        ("Sources", _sources(run)),
        ("Base", e(run["base"]) + _precision(spec["model"])),
        ("Tasks", ", ".join(_task(task) for task in spec["tasks"]) or "–"),
        *([] if spec.get("sources") else _trained(run)),
        ("Memory", e(run["memory"]["said"])),
        ("Seed", f"{run['seed']}" + _seeds(run, seeds)),
        ("Device", e(_device(run))),
        ("Created", e(date(run["created"]))),
        ("Owner", e(run["owner"] or "")),
        ("Comes from", _origin(run)),
        ("Jobs", "<br>".join(map(_job, run["jobs"]))),
    ]
    cells = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows if value)
    notes = f'<p class="notes">{e(run["notes"])}</p>' if run["notes"] else ""
    return f'<h3>Facts</h3><dl class="facts-list num">{cells}</dl>{notes}'


def _sources(run: Mapping[str, Any]) -> str:
    """The runs that were fused, each a link; an adapter of elsewhere has none."""
    found = []
    for name in run["spec"].get("sources") or ():
        head = name.partition(":")[0]
        known = RUN.fullmatch(head) is not None
        found.append(f'<a href="/runs?run={e(head)}">{e(name)}</a>' if known else e(name))
    return ", ".join(found)


def _trained(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What training took."""
    train = run["spec"]["train"]
    length = f"{train['steps']:,} steps" if train["steps"] else f"{train['epochs']:g} epochs"
    batch = f"batches of {train['batch_size']}"
    if train["gradient_accumulation"] > 1:
        batch += f" × {train['gradient_accumulation']}"
    return [
        ("Trainable", trainable(run)),
        ("Training", e(f"{length}, {batch}, learning rate {train['learning_rate']:g} ({train['schedule']})")),
    ]


def trainable(run: Mapping[str, Any]) -> str:
    count, total = run["trainable"], run["total"]
    if count is None:
        return "counted when it starts"
    share = f" <small>{count / (total - count):.2%} of the base</small>" if total and total > count else ""
    return f"{count:,}{share}"


def _options(method: Mapping[str, Any]) -> str:
    told = ", ".join(f"{name} {value}" for name, value in method["options"].items())
    return told or (f"{len(method['cells'])} cells" if method["cells"] else "")


def _precision(model: Mapping[str, Any]) -> str:
    parts = [model[name] for name, plain in (("dtype", "auto"), ("quantization", "none")) if model[name] != plain]
    return f" <small>{e(', '.join(parts))}</small>" if parts else ""


def _task(task: Mapping[str, Any]) -> str:
    name = task["task"] or task["dataset"]
    return f'<a href="/data?dataset={e(task["dataset"])}&amp;task={e(name)}">{e(name)}</a>'


def _seeds(run: Mapping[str, Any], seeds: Sequence[Mapping[str, Any]]) -> str:
    others = [one for one in seeds if one["id"] != run["id"]]
    if not others:
        return ""
    links = ", ".join(f'<a href="/runs?run={e(o["id"])}">{o["seed"]}</a>' for o in others[:12])
    return f" <small>other seeds: {links}</small>"


def _device(run: Mapping[str, Any]) -> str:
    held = next((job for job in run["jobs"] if job["leased"]), None)
    if held is None:
        return f"asked for {run['spec']['device']}"
    return f"holds {held['leased']}" if held["share"] == 1 else f"holds {held['share']:.0%} of {held['leased']}"


def _origin(run: Mapping[str, Any]) -> str:
    if run["parent"]:
        return f'<a href="/runs?run={e(run["parent"])}">{e(run["parent"])}</a>, cloned'
    if run["imported_from"]:
        return f"imported from {e(run['imported_from'])}"
    return ""


def _job(job: Mapping[str, Any]) -> str:
    tries = f" · attempt {job['attempt']}" if job["attempt"] > 1 else ""
    return f'{e(job["name"])} <em class="state {e(job["state"])}">{e(job["state"])}</em><small>{tries}</small>'


def scores(studio: Studio, run: Mapping[str, Any]) -> str:
    """Each task's primary score beside the base's, with paired differences."""
    found = studio.compare([run["id"]], baseline="base" if _base_scored(studio, run["id"]) else None)
    if not found.rows:
        return f"<h3>Scores</h3><p>{_no_scores(run)}</p>"
    lines = ""
    for row in found.rows:
        own, base = row.cells[0], row.cells[1] if len(row.cells) > 1 else None
        gain = own.difference if own else None
        told = "" if gain is None else f"<b>{gain.value:+.3f}</b><small>± {ui.number(gain.stderr)}</small>"
        about = f"{row.metric.replace('_', ' ')}, {row.rows:,} {row.split} rows"
        lines += (
            f"<tr><th>{e(row.task)}<small>{e(about)}</small></th>"
            f'<td class="num">{_value(own)}</td><td class="num">{_value(base)}</td><td class="num">{told}</td>'
            f'<td class="num">{ui.number(row.chance)}</td></tr>'
        )
    heads = ("score", "untouched base", "gain", "chance")
    head = "<th>task</th>" + "".join(f'<th class="num">{name}</th>' for name in heads)
    return (
        f'<h3>Scores</h3><div class="scroll"><table class="grid"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody>'
        "</table></div><p>± is one standard error over rows; the gain's is that of the same rows paired.</p>"
    )


def _no_scores(run: Mapping[str, Any]) -> str:
    """Why there are none, and what to do."""
    fused = bool(run["spec"].get("sources"))
    if run["state"] in ("queued", *STATES["working"]):
        return f"Each task is scored when the {'fused model stands' if fused else 'training has ended'}."
    if run["state"] == "done":
        return "Nothing was scored. Queue a scoring below."
    other = "fuse its sources again" if fused else "open it in the form"
    return f"It ended before it was scored. Resume it, or {other} and change what went wrong."


def _base_scored(studio: Studio, run: str) -> bool:
    return bool((studio.scores(run)["model"] == "base").any())


def _value(cell: Any) -> str:
    return "–" if cell is None else f"<b>{cell.value:.3f}</b><small>± {ui.number(cell.stderr)}</small>"


def log(said: Mapping[str, Any]) -> str:
    """Alarms first, then what the jobs said and the end of what the worker printed."""
    alarms = "".join(
        f"<li>{e(date(one['at']))} · step {one['step'] if one['step'] is not None else '–'}: {e(one['message'])}</li>"
        for one in said["alarms"][-10:]
    )
    lines = [f"{one['at'].astimezone():%H:%M:%S} {_level(one)}{one['message']}" for one in said["lines"]]
    text = "\n".join([*lines, *(["", "— worker —", *said["output"]] if said["output"] else [])])
    told = f"<pre tabindex='0' aria-label='Log'>{e(text)}</pre>" if text else "<p>Nothing was said yet.</p>"
    return (f'<div class="alarms"><h3>Alarms</h3><ul>{alarms}</ul></div>' if alarms else "") + f"<h3>Log</h3>{told}"


def _level(line: Mapping[str, Any]) -> str:
    return "" if line["level"] == "info" else f"{line['level']}: "


def links(run: Mapping[str, Any]) -> str:
    """Where one can go with this run."""
    found = [("Open in the form", f"/experiment?clone={run['id']}")]
    if run["spec"].get("sources"):
        found = [("How it was fused", f"/fusion?run={run['id']}"), ("Fuse again", again(run["spec"]))]
    routing = [] if run["unrouted"] else [("Routing", f"/routing?run={run['id']}")]
    if run["state"] == "done":
        found += [("Compare", f"/compare?runs={run['id']}"), *routing]
        found += [("Chat", f"/chat?runs={run['id']},base"), ("Fuse with others", f"/fusion?runs={run['id']}")]
    elif run["state"] in STATES["working"]:
        found += [("Routing so far", to) for _, to in routing]
    return '<nav class="links">' + "".join(f'<a href="{e(to)}">{e(name)}</a>' for name, to in found) + "</nav>"


def nothing() -> str:
    """An empty studio leads on."""
    return (
        '<div class="empty"><h3>No runs yet</h3><p>The demo trains three methods on tasks that come with the studio: '
        "four minutes on two CPU cores. Or describe a run of your own.</p>"
        '<p><a class="button" href="/">Start the demo</a> '
        '<a class="button quiet" href="/experiment">New experiment</a></p></div>'
    )
