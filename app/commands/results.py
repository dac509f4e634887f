"""What runs found: scores, routing, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.commands.common import Home, Json, Run, Runs, session, table


def register(app: typer.Typer) -> None:
    for command in (scores, routing, compare):
        app.command()(command)


def scores(
    context: typer.Context,
    run: Run,
    every: Annotated[bool, typer.Option("--all", help="All metrics, not the primary one alone.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Scores of a run, task by task, with standard errors."""
    here = session(context, home, as_json)
    frame = here.studio.scores(run, primary=not every)
    columns = {name: name for name in ("task", "split", "model", "metric", "value", "stderr", "chance", "rows", "job")}
    here.answer(frame, lambda: table(_records(frame), columns, "No scores yet."))


def routing(
    context: typer.Context,
    run: Run,
    moment: Annotated[str, typer.Option(help="end, or step-<n>.")] = "end",
    figure: Annotated[
        str, typer.Option(help="mean_gate, relative_gate, selection_share, top1_share, entropy or load_cv.")
    ] = "mean_gate",
    role: Annotated[str, typer.Option(help="Tokens of the prompt, of the answer, or all.")] = "answer",
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the heatmap as a page.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write the heatmap as a picture.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every figure as a long table.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Which expert spoke for which task, layer and projection."""
    here = session(context, home, as_json)
    written = here.studio.routing_files(run, moment, figure=figure, role=role, task=task, html=html, png=png, csv=csv)
    summary = here.studio.routing_table(run, moment, figure=figure, role=role, task=task)

    def text() -> str:
        columns = {name: name for name in summary.columns}
        why = here.studio.run(run)["unrouted"] or "None was recorded while it trained."
        lines = [table(_records(summary), columns, f"{run} has no routing. {why}")]
        lines += [summary.attrs["note"]] if "note" in summary.attrs else []
        return "\n".join(lines + [f"Wrote {path}." for path in written])

    here.answer({"moments": here.studio.moments(run), "files": written, "table": summary}, text)


def compare(
    context: typer.Context,
    run: Runs,
    baseline: Annotated[str | None, typer.Option(help="Differences to this run, with paired errors.")] = None,
    form: Annotated[str, typer.Option("--format", help="text, markdown, csv or latex.")] = "text",
    seeds: Annotated[bool, typer.Option("--seeds/--no-seeds", help="Group seeds of one setting.")] = True,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Runs side by side: task by run, with errors, and the settings that differ."""
    here = session(context, home, as_json)
    found = here.studio.compare(run, baseline=baseline, group_seeds=seeds)
    here.answer(found, lambda: found.render(form))


def _records(frame: Any) -> list[dict[str, Any]]:
    return frame.to_dict(orient="records")
