"""The Runs page: what trains, waits and is done; one run with its curves, scores and log, and what to do with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.handouts import PRESS, handed
from app.pages import run_curves, run_look, run_views
from app.pages.run_list import STATES, Filters
from app.ui import components as ui
from core.errors import ConfigurationError, StudioError
from core.studio import Studio

if TYPE_CHECKING:
    from storage.changes import Version

LEAD = "What is training now, how far it is, and how it goes."
FILTERS = ("search", "state", "method", "tag", "dataset", "seeds", "page")
OWN_TASKS = "its own tasks"
ADDRESS = """(...given) => {
  const names = ['run', 'curve', 'search', 'state', 'method', 'tag', 'dataset', 'seeds', 'page'];
  const plain = { curve: 'loss', seeds: 'false', page: '1' }, query = new URLSearchParams();
  names.forEach((name, i) => {
    const value = String(given[i] ?? '');
    if (value && value !== plain[name]) query.set(name, value);
  });
  history.replaceState(null, '', location.pathname + (query.size ? '?' + query : ''));
}"""


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill ``page``; one timer redraws what changed, for the run of this tab."""
    ui.page_head("Runs", LEAD)
    c = SimpleNamespace(empty=ui.text(run_views.nothing(), visible=False))
    with gr.Column(elem_id="runs-main") as c.main:
        _filters(c)
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=350):
                c.list = ui.drawn("runlist", elem_id="runs-list")
            with gr.Column(scale=7, min_width=440):
                _detail(c)
    _wire(studio, page, c)


def _filters(c: SimpleNamespace) -> None:
    with gr.Row(elem_classes="controls"):
        c.search = gr.Textbox(label="Search", placeholder="id, name, method, notes", scale=2, min_width=180)
        c.state = gr.Dropdown([("any", ""), *((s, s) for s in STATES)], value="", label="State", min_width=110)
        c.method = gr.Dropdown([("any", "")], value="", label="Method", min_width=110)
        c.tag = gr.Dropdown([("any", "")], value="", label="Tag", min_width=110)
        c.dataset = gr.Dropdown([("any", "")], value="", label="Data set", min_width=130)
        c.seeds = gr.Checkbox(label="Group seeds", scale=0, min_width=140, elem_id="group-seeds")
    with gr.Row(elem_classes="unseen"):
        c.page, c.chosen = gr.Textbox("1"), gr.Textbox("", elem_id="runs-chosen")
    c.seen, c.asking = gr.State({}), gr.State("")


def _detail(c: SimpleNamespace) -> None:
    c.head = ui.text("", "panel", "run-head")
    c.links = ui.text("")
    with gr.Row(elem_classes="actions"):
        c.move_to_front = gr.Button("Move to front", size="md", interactive=False, min_width=120)
        c.cancel = gr.Button("Cancel…", size="md", interactive=False, min_width=90)
        c.resume = gr.Button("Resume", size="md", interactive=False, min_width=90)
        c.export = gr.Button("Export adapter", size="md", interactive=False, min_width=130)
        c.bundle = gr.Button("Download bundle", size="md", interactive=False, min_width=140)
        c.delete = gr.Button("Delete…", size="md", interactive=False, min_width=90)
        c.file = gr.DownloadButton("Save the file", elem_classes="unseen", elem_id="runs-file")
    with gr.Row(visible=False, elem_classes="ask") as c.ask:
        c.question = ui.text("")
        c.yes = gr.Button("Yes", variant="stop", size="md", scale=0, min_width=150)
        c.no = gr.Button("No, keep it", size="md", scale=0, min_width=110)
    with gr.Column(visible=False) as c.alarmed:
        c.alarms = ui.text("")
        with gr.Row(elem_classes="actions"):
            c.go_on = gr.Button("Go on", size="md", min_width=110)
            c.stop_now = gr.Button("Stop it", variant="stop", size="md", min_width=110)
    c.failure = ui.text("")
    # What is chosen goes to the server as text: the choices are another run's while a new one is on its way.
    c.family = gr.Textbox("loss", elem_classes="unseen")
    c.menu = gr.Radio(run_curves.CHOICES, value="loss", show_label=False, container=False, elem_classes="curve-choice")
    c.curve = ui.live_curve(elem_id="runs-curve")
    c.scores = ui.text("", "panel", "run-scores")
    c.facts = ui.text("", "panel", "run-facts")
    with gr.Accordion("Clone and change one thing", open=False) as c.cloning, gr.Row(elem_classes="controls"):
        c.setting = gr.Dropdown([], label="Setting", scale=2, filterable=True, min_width=200)
        c.value = gr.Textbox(label="New value", scale=2, min_width=140)
        c.clone = gr.Button("Queue the clone", size="md", scale=0, min_width=150)
    with gr.Accordion("Score on another data set", open=False), gr.Row(elem_classes="controls"):
        c.on = gr.Dropdown([OWN_TASKS], value=OWN_TASKS, label="Data set", scale=2, min_width=200)
        c.split = gr.Dropdown(["test", "validation", "train"], value="test", label="Split", min_width=120)
        c.score = gr.Button("Queue the scoring", size="md", scale=0, min_width=150)
    with gr.Accordion("Name, tags and notes", open=False):
        with gr.Row():
            c.name = gr.Textbox(label="Name", max_length=120, scale=3, elem_id="run-name")
            c.tags = gr.Textbox(label="Tags, with commas between", scale=2)
        c.notes = gr.Textbox(label="Notes", lines=3, max_length=20_000)
        c.save = gr.Button("Save", size="md", scale=0, min_width=110)
    c.said = ui.text("", "log", "said")


def _wire(studio: Studio, page: gr.Blocks, c: SimpleNamespace) -> None:
    asked = [c.chosen, c.family, *(getattr(c, name) for name in FILTERS), c.seen]
    drawn = [*(getattr(c, name) for name in run_look.PARTS), c.seen]
    form = [c.name, c.tags, c.notes, c.setting, c.value]
    hidden = [c.ask, c.asking]
    redraw = {"inputs": asked, "outputs": drawn, **ui.QUIET}

    def draw(chosen: str, family: str, *rest: Any) -> list[Any]:
        *values, seen = rest
        return shown(studio, chosen, family, Filters.of(dict(zip(FILTERS, values, strict=True))), seen)

    def tick(chosen: str, *rest: Any) -> list[Any]:
        if early(chosen, rest[-1]):
            return _skips(drawn)
        family, *values, seen = rest
        filters = Filters.of(dict(zip(FILTERS, values, strict=True)))
        return shown(studio, chosen, family, filters, seen, studio.watch.changes.recent())

    # Event data are recognised by annotation among named parameters, so the filters are spelt out.
    def choose(
        family: str, search: str, state: str, method: str, tag: str, dataset: str, seeds: bool, number: str, now: str,
        seen: dict[str, str], event: gr.EventData,
    ) -> list[Any]:  # fmt: skip
        """A click in the list: another run, or another page of the list."""
        wanted, to = getattr(event, "run", None), getattr(event, "page", None)
        values = (search, state, method, tag, dataset, seeds, to or number)
        filters = Filters.of(dict(zip(FILTERS, values, strict=True)))
        chosen = str(wanted)[:80] if wanted else now
        answer = shown(studio, chosen, family, filters, seen)
        moved = chosen != now
        answer[0] = chosen
        return [*answer, str(filters.page), *(fields(studio, chosen) if moved else _skips(form)), *_rest(moved)]

    def opened(request: gr.Request) -> list[Any]:
        query = dict(request.query_params)
        filters, family = Filters.of(query), run_curves.family(query.get("curve"))
        answer = shown(studio, str(query.get("run") or "")[:80], family, filters, {})
        chosen = str(query.get("run") or "")[:80] or (answer[0] if isinstance(answer[0], str) else "")
        answer[0] = chosen
        return [*answer, family, *choices(studio, filters), *fields(studio, chosen)]

    filter_inputs = [getattr(c, name) for name in FILTERS]
    page.load(opened, None, [*drawn, c.family, *filter_inputs, c.on, *form], **ui.QUIET)
    gr.Timer(1.0).tick(tick, trigger_mode="once", preprocess=False, **redraw)  # ``Filters`` reads them as they come
    c.menu.input(None, c.menu, c.family, js="one => one", **ui.QUIET)
    c.family.change(draw, trigger_mode="always_last", **redraw)
    narrowing = [c.search.input, c.state.input, c.method.input, c.tag.input, c.dataset.input, c.seeds.input]
    gr.on(narrowing, _from_first(draw), asked, [*drawn, c.page], trigger_mode="always_last", **ui.QUIET)
    c.list.select(choose, [c.family, *filter_inputs, c.chosen, c.seen], [*drawn, c.page, *form, *hidden], **ui.QUIET)
    addressed = [c.chosen, c.family, *filter_inputs]
    gr.on([one.change for one in addressed], None, addressed, None, js=ADDRESS, **ui.QUIET)
    _wire_actions(studio, c, asked, drawn, draw, form)
    _wire_forms(studio, c, asked, drawn, draw, form)


def _wire_actions(
    studio: Studio, c: SimpleNamespace, asked: list[Any], drawn: list[Any], draw: Callable, form: list[Any]
) -> None:
    hidden = [c.ask, c.asking]
    asking = [c.ask, c.asking, c.question, c.yes]
    c.cancel.click(lambda run: question(studio, "cancel", run), c.chosen, asking, **ui.QUIET)
    c.delete.click(lambda run: question(studio, "delete", run), c.chosen, asking, **ui.QUIET)
    c.no.click(lambda: [gr.update(visible=False), ""], None, hidden, **ui.QUIET)

    def yes(asking: str, chosen: str, *rest: Any) -> list[Any]:
        left = confirmed(studio, asking, chosen)
        answer = draw(left, *rest)
        now = answer[0] if isinstance(answer[0], str) else left
        return [*answer, *(_skips(form) if now == chosen else fields(studio, now)), gr.update(visible=False), ""]

    c.yes.click(yes, [c.asking, *asked], [*drawn, *form, *hidden], **ui.QUIET)

    def move_to_front(chosen: str, *rest: Any) -> list[Any]:
        acted(lambda: studio.move_to_front(chosen), f"{chosen} starts next.")
        return draw(chosen, *rest)

    c.move_to_front.click(move_to_front, asked, drawn, **ui.QUIET)

    def resume(chosen: str, *rest: Any) -> list[Any]:
        acted(lambda: studio.resume(chosen), f"{chosen} is queued again, from its last checkpoint.")
        return draw(chosen, *rest)

    c.resume.click(resume, asked, drawn, **ui.QUIET)

    def go_on(chosen: str, *rest: Any) -> list[Any]:
        acted(lambda: studio.go_on(chosen), f"{chosen} goes on.")
        return draw(chosen, *rest)

    def stop_now(chosen: str, *rest: Any) -> list[Any]:
        acted(lambda: studio.cancel(chosen), f"{chosen} was asked to stop.")
        return draw(chosen, *rest)

    c.go_on.click(go_on, asked, drawn, **ui.QUIET)
    c.stop_now.click(stop_now, asked, drawn, **ui.QUIET)
    press = PRESS % "runs-file"
    for button, kind in ((c.bundle, "bundle"), (c.export, "adapter")):
        made = button.click(lambda run, kind=kind: packed(studio, kind, run), c.chosen, c.file, **ui.QUIET)
        made.success(None, None, None, js=press, **ui.QUIET)


def _wire_forms(
    studio: Studio, c: SimpleNamespace, asked: list[Any], drawn: list[Any], draw: Callable, form: list[Any]
) -> None:
    def clone(setting: str, value: str, chosen: str, *rest: Any) -> list[Any]:
        new = cloned(studio, chosen, setting, value) or chosen
        answer = draw(new, *rest)
        answer[0] = new
        return [*answer, *(fields(studio, new) if new != chosen else _skips(form))]

    c.clone.click(clone, [c.setting, c.value, *asked], [*drawn, *form], **ui.QUIET)
    c.setting.input(lambda run, name: current(studio, run, name), [c.chosen, c.setting], c.value, **ui.QUIET)

    def score(dataset: str, split: str, chosen: str, *rest: Any) -> list[Any]:
        wanted = None if dataset == OWN_TASKS else [str(dataset)]
        acted(
            lambda: studio.score(chosen, datasets=wanted, split=split),
            f"{chosen} will be scored on {dataset}, {split}.",
        )
        return draw(chosen, *rest)

    c.score.click(score, [c.on, c.split, *asked], drawn, **ui.QUIET)

    def save(name: str, tags: str, notes: str, chosen: str, *rest: Any) -> list[Any]:
        listed = [tag.strip()[:60] for tag in (tags or "").split(",") if tag.strip()]
        called = (name or "").strip()
        acted(lambda: studio.annotate(chosen, name=called, tags=listed, notes=notes), f"{chosen} is saved.")
        return draw(chosen, *rest)

    c.save.click(save, [c.name, c.tags, c.notes, *asked], drawn, **ui.QUIET)


def shown(
    studio: Studio,
    chosen: str,
    family: str,
    filters: Filters,
    seen: dict[str, str] | None,
    version: Version | None = None,
) -> list[Any]:
    """One value for each part of the page, ``gr.skip()`` for what looks as this tab drew it; last what is seen."""
    fresh, now = run_look.look(studio, chosen or "", family, filters, seen or {}, version)
    values = [fresh.get(name, gr.skip()) for name in run_look.PARTS]
    return [*values, now if fresh else gr.skip()]


def early(chosen: str, seen: dict[str, str]) -> bool:
    """Whether a tick left the browser before the run that its address names arrived there: it must not choose one."""
    return not seen or (not chosen and bool(seen.get("chosen")))


def _from_first(draw: Callable) -> Callable:
    """A changed filter begins on the list's first page."""

    def drawn(*values: Any) -> list[Any]:
        place = 2 + FILTERS.index("page")
        return [*draw(*values[:place], "1", *values[place + 1 :]), "1"]

    return drawn


def _skips(components: list[Any]) -> list[Any]:
    return [gr.skip() for _ in components]


def _rest(moved: bool) -> list[Any]:
    """A question about another run is withdrawn."""
    return [gr.update(visible=False), ""] if moved else [gr.skip(), gr.skip()]


def choices(studio: Studio, filters: Filters) -> list[Any]:
    """The filters with what they can be set to, and the data sets to score on."""
    facets, sets = studio.watch.facets(), studio.datasets()
    names = [one["name"] for one in sets]
    any_of = [("any", "")]
    return [
        filters.search,
        filters.state,
        gr.update(choices=any_of + [(m, m) for m in facets["methods"]], value=filters.method),
        gr.update(choices=any_of + [(t, t) for t in facets["tags"]], value=filters.tag),
        gr.update(choices=any_of + [(one["name"], one["id"]) for one in sets], value=filters.dataset),
        filters.seeds,
        str(filters.page),
        gr.update(choices=[OWN_TASKS, *names]),
    ]


def fields(studio: Studio, chosen: str) -> list[Any]:
    """Name, tags and notes as stored; the settings that a clone can change."""
    try:
        run = studio.run(chosen)
    except StudioError:
        return ["", "", "", gr.update(choices=[], value=None), ""]
    names = list(flat(run["spec"]))
    return [run["name"], ", ".join(run["tags"]), run["notes"], gr.update(choices=names, value="train.learning_rate"),
            str(flat(run["spec"])["train.learning_rate"])]  # fmt: skip


def flat(spec: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value for the settings of a clone; the tasks' order and data are the form's business."""
    found: dict[str, Any] = {}
    for name, value in spec.items():
        if not prefix and name in ("name", "tags", "notes", "origin", "tasks"):
            continue
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            found[f"{prefix}{name}"] = value
    return found


def current(studio: Studio, chosen: str, setting: str) -> str:
    try:
        value = flat(studio.run(chosen)["spec"]).get(setting)
    except StudioError:
        return ""
    return "" if value is None else str(value)


def question(studio: Studio, kind: str, chosen: str) -> list[Any]:
    """The row that asks before something is lost: visible, what is asked, its words, its button."""
    try:
        run = studio.run(chosen)
        size = studio.watch.size(run["id"]) / 1e6
    except StudioError as error:
        gr.Warning(ui.escape(error))
        return [gr.update(visible=False), "", "", gr.skip()]
    named = f"<b>{ui.escape(run['id'])}</b> {ui.escape(run['name'])}"
    if kind == "cancel":
        words = f"Cancel {named}? It stops at its next step and can be resumed from its last checkpoint."
        return [gr.update(visible=True), f"cancel {run['id']}", words, gr.update(value=f"Cancel {run['id']}")]
    words = (
        f"Delete {named} for good? Its settings, curves, scores, routing, predictions, checkpoints and adapter go: "
        f"{size:,.1f} MB. Data sets and other runs stay."
    )
    return [gr.update(visible=True), f"delete {run['id']}", words, gr.update(value=f"Delete {run['id']}")]


def confirmed(studio: Studio, asking: str, chosen: str) -> str:
    """Do what was asked about, if the page still shows that run; returns the run that is shown from now on."""
    kind, _, run = asking.partition(" ")
    if not run or run != chosen:
        gr.Warning("The question was about another run: nothing was done.")
        return chosen
    if kind == "cancel":
        acted(lambda: studio.cancel(run), f"{run} was asked to stop.")
    elif kind == "delete" and acted(lambda: studio.delete(run), f"{run} is deleted."):
        return ""
    return chosen


def acted(work: Callable[[], Any], done: str) -> bool:
    """Say what was done, or why not."""
    try:
        work()
    except StudioError as error:
        gr.Warning(ui.escape(error))
        return False
    gr.Info(ui.escape(done))
    return True


def cloned(studio: Studio, chosen: str, setting: str, value: str) -> str | None:
    """Queue a copy with one setting changed; returns its id."""
    try:
        if setting not in flat(studio.run(chosen)["spec"]):
            raise ConfigurationError(f"{setting!r} is not a setting of {chosen}.", "Choose one of the list.")
        new = studio.clone(chosen, changes=[f"{setting}={value}"])
    except StudioError as error:
        gr.Warning(ui.escape(error))
        return None
    gr.Info(ui.escape(f"{new} is queued: {chosen} with {setting} = {value}."))
    return new


def packed(studio: Studio, kind: str, chosen: str) -> str:
    """A zip of the run with this id, ready to be downloaded."""
    try:
        run = studio.run(chosen)["id"]
        if kind == "adapter":
            gr.Info(ui.escape(f"The adapter of {run} is packed; that takes some seconds."))
        make: dict[str, Callable[[str, Path], Path]] = {"bundle": studio.watch.bundle, "adapter": studio.watch.adapter}
        return handed(f"{run}-{kind}.zip", lambda path: make[kind](run, path))
    except StudioError as error:
        raise gr.Error(ui.escape(error), print_exception=False) from error
