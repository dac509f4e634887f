"""The Compare page: chosen runs task by task with errors, their curves on each other, cost, and what they differ in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import gradio as gr

from app.handouts import PRESS, handed
from app.pages import compare_views, run_curves
from app.ui import components as ui
from core.errors import StudioError
from core.home import write_text
from core.studio import Studio

LEAD = "Scores task by task with their errors, curves on each other, and what the runs differ in."
MOST = 24
LISTED = 500
FORMS = {"csv": "csv", "markdown": "md", "latex": "tex"}
FIELDS = ("runs", "baseline", "metric", "seeds", "curve", "x", "every")
PARTS = ("table", "curves", "cost", "settings")
ADDRESS = """(...given) => {
  const names = ['runs', 'baseline', 'metric', 'seeds', 'curve', 'x', 'every'], query = new URLSearchParams();
  const plain = { seeds: 'true', curve: 'loss', x: 'step', every: 'false' };
  names.forEach((name, i) => {
    const value = Array.isArray(given[i]) ? given[i].join(',') : String(given[i] ?? '');
    if (value && value !== plain[name]) query.set(name, value);
  });
  history.replaceState(null, '', location.pathname + (query.size ? '?' + query.toString().replaceAll('%2C', ',') : ''));
}"""


@dataclass(frozen=True)
class Choice:
    """What is compared and how; every field stands in the address."""

    runs: tuple[str, ...] = ()
    baseline: str = ""
    metric: str = ""
    seeds: bool = True
    curve: str = "loss"
    x: str = "step"
    every: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Choice:
        """From an address or from inputs; what makes no sense falls back to the plain view."""
        runs = values.get("runs") or ()
        named = runs.split(",") if isinstance(runs, str) else [str(run) for run in runs]
        text = {name: str(values.get(name) or "")[:120] for name in ("baseline", "metric")}
        return cls(
            runs=tuple(dict.fromkeys(run.strip()[:80] for run in named if run.strip()))[:MOST],
            **text,
            seeds=values.get("seeds", True) not in (False, "false", "False", "0"),
            curve=str(values.get("curve") or "loss")[:200],
            x="rows" if values.get("x") == "rows" else "step",
            every=values.get("every") in (True, "true", "True", "1"),
        )


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill ``page``; the timer redraws while one of the compared runs still works."""
    ui.page_head("Compare", LEAD)
    c = SimpleNamespace()
    c.runs = gr.Dropdown([], multiselect=True, max_choices=MOST, label="Runs", filterable=True, elem_id="compare-runs")
    with gr.Row(elem_classes="controls"):
        c.baseline = gr.Dropdown([("none", "")], value="", label="Difference to", min_width=160)
        c.metric = gr.Dropdown([("each task's own", "")], value="", label="Metric", min_width=150)
        c.seeds = gr.Checkbox(True, label="Group seeds", min_width=130)
        labels = {"csv": "CSV", "markdown": "Markdown", "latex": "LaTeX"}
        with gr.Column(scale=0, min_width=344), gr.Row():
            c.forms = {form: gr.Button(label, size="md", scale=1, min_width=96) for form, label in labels.items()}
        c.file = gr.DownloadButton("Save the file", elem_classes="unseen", elem_id="compare-file")
    c.table = ui.text("", "panel", "compared", elem_id="compare-table")
    with gr.Column(elem_id="compare-figures", visible=False) as c.figures:
        with gr.Row(equal_height=False):
            with gr.Column(min_width=440):
                with gr.Row(elem_classes="controls"):
                    c.curve = gr.Dropdown(["loss"], value="loss", label="Curve", min_width=160)
                    c.x = gr.Radio(
                        [("steps", "step"), ("training rows", "rows")], value="step", label="Over", min_width=180
                    )
                c.curves = ui.live_curve(elem_id="compare-curves")
            with gr.Column(min_width=440):
                ui.text("<h3>Score against what is trained</h3>", "beside-controls")
                c.cost = ui.drawn("figure", {"html": ""}, elem_id="compare-cost", elem_classes=["cost"])
        c.every = gr.Checkbox(False, label="All settings, not only those that differ", container=False)
        c.settings = ui.text("", "panel")
    c.seen = gr.State("")
    _wire(studio, page, c)


def _wire(studio: Studio, page: gr.Blocks, c: SimpleNamespace) -> None:
    inputs = [getattr(c, name) for name in FIELDS]
    parts = [getattr(c, name) for name in PARTS]
    drawn = [*parts, c.figures, c.seen]
    menus = [c.baseline, c.metric, c.curve]

    def chosen(values: Sequence[Any]) -> Choice:
        return Choice.of(dict(zip(FIELDS, values, strict=True)))

    def redraw(*values: Any) -> list[Any]:
        return view(studio, chosen(values))

    def rechosen(*values: Any) -> list[Any]:
        """Other runs bring other baselines, metrics and curves."""
        choice = chosen(values)
        return [*view(studio, choice), *offered(studio, choice)]

    def tick(*values: Any) -> list[Any]:
        *fields, seen = values
        choice = chosen(fields)
        return [gr.skip()] * len(drawn) if unchanged(studio, choice, seen) else view(studio, choice)

    def opened(request: gr.Request) -> list[Any]:
        choice = Choice.of(dict(request.query_params))
        menu = gr.update(choices=runs_menu(studio, choice), value=list(choice.runs))
        plain = [choice.seeds, choice.x, choice.every]
        return [*view(studio, choice), *offered(studio, choice), menu, *plain]

    page.load(opened, None, [*drawn, *menus, c.runs, c.seeds, c.x, c.every], **ui.QUIET)
    again = {"inputs": inputs, "outputs": drawn, "trigger_mode": "always_last", **ui.QUIET}
    gr.on([c.runs.input, c.seeds.input], rechosen, inputs, [*drawn, *menus], trigger_mode="always_last", **ui.QUIET)
    gr.on([one.input for one in (c.baseline, c.metric, c.curve, c.x, c.every)], redraw, **again)
    gr.on([one.change for one in inputs], None, inputs, None, js=ADDRESS, **ui.QUIET)
    gr.Timer(3.0).tick(tick, [*inputs, c.seen], drawn, trigger_mode="once", **ui.QUIET)
    for form, button in c.forms.items():
        made = button.click(lambda *v, form=form: exported(studio, chosen(v), form), inputs, c.file, **ui.QUIET)
        made.success(None, None, None, js=PRESS % "compare-file", **ui.QUIET)


def view(studio: Studio, choice: Choice) -> list[Any]:
    """Table, curves, cost and settings; then whether there are figures, and what was seen."""
    if not choice.runs:
        return [nothing(studio), *[gr.skip()] * 3, gr.update(visible=False), ""]
    try:
        runs = studio.watch.several(choice.runs)
        found = compared(studio, choice)
        names = {run["id"]: run["name"] for run in runs}
        table = compare_views.table(found, names) if found.rows else unscored(choice)
        table += compare_views.onward(choice.runs)
        cost = {"html": compare_views.cost(found), "name": "score-against-parameters"}
        settings = compare_views.settings(found, choice.every)
        return [table, curves(studio, choice, runs), cost, settings, gr.update(visible=True), state(choice, runs)]
    except StudioError as error:
        return [ui.problem(error), *[gr.skip()] * 3, gr.update(visible=False), ""]


def compared(studio: Studio, choice: Choice) -> Any:
    return studio.compare(
        choice.runs,
        baseline=choice.baseline or None,
        metric=choice.metric or None,
        group_seeds=choice.seeds,
        every_setting=choice.every,
    )


def unchanged(studio: Studio, choice: Choice, seen: str) -> bool:
    def now() -> str:
        try:
            return state(choice, studio.watch.several(choice.runs))
        except StudioError:
            return ""  # a run has gone: said once

    watch = studio.watch
    return not choice.runs or watch.shared.of(("compared", choice), watch.changes.now(), now) == seen


def state(choice: Choice, runs: Sequence[Mapping[str, Any]]) -> str:
    """Changes when a compared run goes on, ends or is scored."""
    told = [
        (run["id"], run["state"], run["job"] and [run["job"][name] for name in ("id", "state", "step")]) for run in runs
    ]
    return hashlib.sha256(repr((choice, told)).encode()).hexdigest()[:16]


def curves(studio: Studio, choice: Choice, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One curve of every run; the seeds of one setting in one colour when they are grouped."""
    found = studio.watch.compared_curves([run["id"] for run in runs], choice.curve)
    hues: dict[str, int] = {}
    series = []
    for run in runs:
        hue = hues.setdefault(run["setting"] if choice.seeds else run["id"], len(hues))
        if run["id"] in found and not (choice.x == "rows" and run["spec"].get("sources")):  # it saw no training rows
            train = run["spec"]["train"]
            scale = train["batch_size"] * train["gradient_accumulation"] if choice.x == "rows" else 1
            points = [[step * scale, value] for step, value in found[run["id"]]]
            series.append({"name": f"{run['id']} {run['method']}", "points": points, "colour": hue})
    return {
        "name": f"{choice.curve.replace('/', '-')}-of-{len(series)}-runs",
        "series": series,
        "xmax": 0,
        "x": "training rows seen" if choice.x == "rows" else "step",
        "y": run_curves.unit(choice.curve),
        "empty": f"None of these runs recorded {choice.curve}.",
    }


def offered(studio: Studio, choice: Choice) -> list[Any]:
    """Baselines, metrics and curves that the chosen runs have."""
    try:
        found = compared(studio, Choice(choice.runs, seeds=choice.seeds)) if choice.runs else None
        names = sorted({name for run in choice.runs for name in studio.watch.curve_names(run)})
    except StudioError:
        found, names = None, []
    columns = found.columns if found else []
    baselines = [
        ("none", ""),
        *((c.label if c.runs else "untouched base", c.runs[0] if c.runs else "base") for c in columns),
    ]
    metrics = [("each task's own", ""), *((m.replace("_", " "), m) for m in (found.metrics if found else []))]
    return [
        gr.update(choices=_with(baselines, choice.baseline), value=choice.baseline),
        gr.update(choices=_with(metrics, choice.metric), value=choice.metric),
        gr.update(
            choices=sorted({*names, choice.curve}, key=lambda n: (n.split("/")[0] != "loss", n)), value=choice.curve
        ),
    ]


def _with(choices: list[tuple[str, str]], value: str) -> list[tuple[str, str]]:
    """A value from the address stays choosable, so that the page can say what is wrong with it."""
    return choices if value in {one for _, one in choices} else [*choices, (value, value)]


def runs_menu(studio: Studio, choice: Choice) -> list[tuple[str, str]]:
    """Every run that can be chosen, newest first; older ones can still be named in the address."""
    menu = [(run_label(run), run["id"]) for run in studio.watch.menu(limit=LISTED)]
    known = {run for _, run in menu}
    return [*menu, *((run, run) for run in choice.runs if run not in known)]


def run_label(run: Mapping[str, Any]) -> str:
    state = "" if run["state"] == "done" else f" · {run['state']}"
    return f"{run['id']} · {run['name']} · seed {run['seed']}{state}"


def nothing(studio: Studio) -> str:
    """What to do on a page without runs: choose, or make some."""
    try:
        done = [run["id"] for run in studio.watch.listing(state="done", limit=4)["rows"]]
    except StudioError as error:
        return ui.problem(error)
    if len(done) > 1:
        link = f"/compare?runs={','.join(done)}"
        return ui.empty("Choose runs above", "Two or more; search by name, method or id.", link, "The newest runs")
    return ui.empty(
        "There is nothing to compare yet", "The demo trains three methods on the same tasks.", "/", "Start the demo"
    )


def unscored(choice: Choice) -> str:
    which = "these runs have" if len(choice.runs) > 1 else "this run has"
    return ui.empty(
        "No scores yet",
        f"Scores come when training ends; {which} none.",
        f"/runs?run={choice.runs[0]}",
        "Watch the run",
    )


def exported(studio: Studio, choice: Choice, form: str) -> str:
    """The comparison as a file, in the form that was asked for."""
    try:
        text = compared(studio, choice).render(form)
        return handed(f"comparison-{len(choice.runs)}-runs.{FORMS[form]}", lambda path: write_text(path, text + "\n"))
    except StudioError as error:
        raise gr.Error(ui.escape(error), print_exception=False) from error
