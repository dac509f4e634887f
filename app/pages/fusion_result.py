"""What a fused run is worth: each task by the base, its own expert, the fused model and joint training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from app.pages.fusion_choice import again
from app.pages.fusion_method import as_text
from app.ui import components as ui
from core import sheets

if TYPE_CHECKING:
    from core.fusion_results import Fusion

MODELS_IN_CHAT = 4
TAB = "\t"
SOON = "Each task is scored when the fused model stands."
UNSCORED = {
    "done": "Nothing was scored: its tasks have no rows in the split that is scored.",
    **dict.fromkeys(("failed", "cancelled", "lost"), "It ended before it was scored."),
}
e = ui.escape
NOTE = (
    "<p>Lost: the fused model less the task's own expert, so below zero is a loss; ± is one standard error, that of "
    "the same rows paired where both answered them; coloured beyond two.</p>"
)


def table(found: Fusion) -> str:
    """Task by model, and what was lost; with the same as text to copy."""
    frame = found.table
    if not len(frame):
        return f"<h2>What was lost</h2><p>{UNSCORED.get(found.run['state'], SOON)}</p>"
    joint = bool(frame["joint"].notna().any())
    heads = ["untouched base", "own expert", "fused", *(["joint training"] if joint else []), "lost"]
    head = "<th>task</th>" + "".join(f'<th class="num">{name}</th>' for name in heads)
    rows = "".join(_row(row, joint) for row in frame.to_dict("records"))
    return (
        f'<h2>What was lost</h2><div class="scroll"><table class="grid"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{NOTE}{'' if joint else NO_JOINT}"
        f'<pre class="unseen" id="fusion-copied">{e(plain(frame, TAB))}</pre>'
    )


def _row(row: Mapping[str, Any], joint: bool) -> str:
    mean = row["task"] == "mean"
    metric = "" if _missing(row["metric"]) else str(row["metric"]).replace("_", " ")
    cells = [
        _score(row["base"]),
        _score(row["own"], row["own_run"]),
        _score(row["fused"], error=row["fused_stderr"], strong=True),
        *([_score(row["joint"], row["joint_run"])] if joint else []),
        _lost(row["lost"], row["lost_stderr"]),
    ]
    about = f"<small>{e(metric)}</small>" if metric else ""
    return f'<tr class="{"mean" if mean else ""}"><th>{e(row["task"])}{about}</th>{"".join(cells)}</tr>'


def _score(value: Any, run: Any = None, *, error: Any = None, strong: bool = False) -> str:
    if _missing(value):
        return '<td class="num">–</td>'
    told = "" if _missing(error) else f"<small>± {error:.3f}</small>"
    link = "" if _missing(run) or not run else f'<small><a href="/runs?run={e(run)}">{e(run)}</a></small>'
    return f'<td class="num{" fused" if strong else ""}"><b>{value:.3f}</b>{told}{link}</td>'


def _lost(value: Any, error: Any) -> str:
    if _missing(value):
        return '<td class="num">–</td>'
    sure = not _missing(error) and abs(value) > 2 * error
    css = ("down" if value < 0 else "up") if sure else ""
    told = "" if _missing(error) else f"<small>± {error:.3f}</small>"
    return f'<td class="num"><b class="lost {css}">{value:+.3f}</b>{told}</td>'


def _missing(value: Any) -> bool:
    return value is None or value != value


NO_JOINT = "<p>No finished run was trained on exactly these tasks together, so joint training is not shown.</p>"


def said(found: Fusion) -> str:
    """The result in a sentence, before the table."""
    frame = found.table
    if not len(frame):
        return ""
    last, tasks = frame.iloc[-1], max(1, len(frame) - 1)
    if _missing(last["fused"]):
        return ""
    base = "" if _missing(last["base"]) else f"; the untouched base has {last['base']:.3f}"
    over = f" over {tasks} tasks" if tasks > 1 else ""
    return f"<p>The fused model scores <b>{last['fused']:.3f}</b>{over}{_beside(last, tasks)}{base}.</p>"


def _beside(last: Any, tasks: int) -> str:
    if _missing(last["lost"]):
        return ""
    error = "" if _missing(last["lost_stderr"]) else f" ± {last['lost_stderr']:.3f}"
    whom = "one expert a task" if tasks > 1 else "its expert"
    if round(abs(last["lost"]), 3) == 0:
        return f", as much as {whom}"
    return f", <b>{abs(last['lost']):.3f}</b>{error} {'less' if last['lost'] < 0 else 'more'} than {whom}"


def plain(frame: pd.DataFrame, separator: str = ",") -> str:
    """The whole table as text, numbers unrounded."""
    rows = (["" if _missing(value) else value for value in row] for row in frame.itertuples(index=False))
    return sheets.text([frame.columns, *rows], separator)


def about(found: Fusion) -> str:
    """Method, what of it differs from its defaults, badge and sources."""
    method = found.method
    sources = ", ".join(map(_source, found.sources))
    told = "; ".join(f"{name} {as_text(value)}" for name, value in method["options"].items())
    options = f" <small>· {e(told)}</small>" if told else ""
    note = f'<p class="note">{e(method["note"])}</p>' if method["note"] else ""
    return f"<p><b>{e(method['title'])}</b> of {sources}{options}</p>{note}"


def _source(source: Mapping[str, Any]) -> str:
    """A link to the run, with its name; of one that was deleted, what it was called."""
    if source["run"] is None:
        return f"{e(source['name'])} (deleted)"
    run = source["run"]
    link = f'<a href="/runs?run={e(run["id"])}" title="{e(run["name"])}">{e(source["name"])}</a>'
    return f"{link} <small>{e(shortened(run['name']))}</small>"


def shortened(name: str, letters: int = 40) -> str:
    return name if len(name) <= letters else name[: letters - 1].rstrip() + "…"


def links(run: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> str:
    """Where one can go with a fused run."""
    own = [one["run"]["id"] for one in sources if one["run"]]
    found = [("The run", f"/runs?run={run['id']}")]
    if run["state"] == "done":
        found += [("Compare with its sources", f"/compare?runs={','.join([run['id'], *own])}&baseline={run['id']}")]
        models = ",".join([run["id"], *own][:MODELS_IN_CHAT])
        found += [("Chat with it and its sources", f"/chat?runs={models}")]
    if own:
        found += [("Fuse these again", again(run["spec"], [one["name"] for one in sources if not one["run"]]))]
    found += [("Fuse other runs", "/fusion")]
    return '<nav class="links">' + "".join(f'<a href="{e(to)}">{e(name)}</a>' for name, to in found) + "</nav>"
