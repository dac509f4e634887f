"""The Data page: put data in, see it as the model does, mend how it is read, store it; look at what is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import gradio as gr

from app import uploads
from app.pages import data_form, data_names, data_views
from app.ui import components as ui
from app.waiting import sentences
from core.errors import ConfigurationError, StudioError
from core.home import ASSETS
from core.studio import Studio, Told

PAGE = 20
DEMO = "demo"
# The browser holds no gr.State, and a parameter called page belongs to Gradio.
ADDRESS = """(...given) => { const [, task, split, part] = given, query = new URLSearchParams(location.search);
  if (query.get('dataset')) { query.set('task', task); query.set('split', split); query.set('part', part);
    history.replaceState(null, '', location.pathname + '?' + query); } return given; }"""


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill ``page``: the list with the place to add data, or one data set where the address names it."""
    roles = studio.drafts.settings()["columns"]
    ui.page_head("Data", "The tasks that the experts share: add files, see each prompt as the model does, store it.")
    with gr.Column(elem_id="data-list") as listing:
        adding = _adding(roles)
        with gr.Row(elem_classes="controls"):
            ui.text("<h2>Stored data sets</h2>")
            search = gr.Textbox(
                placeholder="Search names and tasks", show_label=False, container=False, scale=0, min_width=260
            )
        table = ui.text("", "sheet", elem_id="stored")
        _wire_adding(studio, roles, adding, table)
    with gr.Column(visible=False, elem_id="data-detail") as details:
        shown = _detail(studio)

    def opened(request: gr.Request) -> list[Any]:
        wanted = request.query_params.get("dataset") or ""
        view = detail_view(studio, wanted, dict(request.query_params)) if wanted else nothing()
        return [gr.update(visible=not wanted), gr.update(visible=bool(wanted)), stored(studio, ""), *view]

    page.load(opened, None, [listing, details, table, *shown], **ui.QUIET)
    search.input(lambda text: stored(studio, text), search, table, trigger_mode="always_last", **ui.QUIET)


def _adding(roles: Any) -> SimpleNamespace:
    """The place to add data: files or a source, the form that mends, the preview, the button that stores."""
    c = SimpleNamespace()
    with gr.Row(equal_height=True):
        c.files = gr.File(
            label="Drop files here: csv, tsv, json, jsonl, parquet, each also with .gz", file_count="multiple",
            height=150, scale=3, elem_id="files",
        )  # fmt: skip
        with gr.Column(scale=2, min_width=300):
            c.typed = gr.Textbox(
                label="or a folder here, or a data set of the Hub", placeholder="~/data/reviews or owner/name",
                elem_id="typed",
            )  # fmt: skip
            with gr.Row():
                c.demo = gr.Button("Use the demo tasks", size="md", min_width=120)
                c.look = gr.Button("Preview", variant="primary", size="md", min_width=120, elem_id="preview")
    c.told = ui.text(elem_id="told")
    with gr.Column(visible=False, elem_id="previewed") as c.area:
        c.form = ui.settings(data_form.empty(roles), elem_id="mend")
        with gr.Row(elem_classes="controls"):
            c.name = gr.Textbox(
                label="Name", placeholder="found out from the files", max_length=120, scale=3, elem_id="set-name"
            )
            c.again = gr.Button("Preview again", size="md", min_width=140, scale=0, elem_id="again")
            c.store = gr.Button("Store", variant="primary", size="md", min_width=140, scale=0, elem_id="store")
        c.seen = ui.text("", "seen", elem_id="seen")
    return c


def _wire_adding(studio: Studio, roles: Any, c: SimpleNamespace, table: gr.HTML) -> None:
    """``table`` shows what is stored."""

    def preview(paths: Any, text: str, called: str, value: Any) -> Iterator[list[Any]]:
        yield from sentences(
            lambda told: preview_view(studio, roles, paths, text, called, value, told),
            lambda said: [reading(said), *[gr.skip()] * 3],
        )

    def fresh(paths: Any, text: str) -> Iterator[list[Any]]:
        if not paths and not text:
            yield closed()
            return
        yield from preview(paths, text, "", None)

    def keep(paths: Any, text: str, called: str, value: Any) -> Iterator[list[Any]]:
        yield from sentences(
            lambda told: [*store_view(studio, roles, paths, text, called, value, told), stored(studio, "")],
            lambda said: [reading(said), gr.skip(), gr.skip()],
        )

    def demo() -> list[Any]:
        return [*store_demo(studio), stored(studio, "")]

    given, source = [c.files, c.typed, c.name, c.form], [c.files, c.typed]
    seen, kept = [c.told, c.area, c.form, c.seen], [c.told, c.area, table]
    busy = {**ui.QUIET, "show_progress": "minimal", "show_progress_on": c.told}
    c.files.change(fresh, source, seen, **busy)
    gr.on([c.look.click, c.typed.submit], fresh, source, seen, **busy)
    c.again.click(preview, given, seen, **busy)
    c.store.click(keep, given, kept, trigger_mode="once", **busy)
    c.demo.click(demo, None, kept, trigger_mode="once", **busy)


def _detail(studio: Studio) -> list[Any]:
    """One stored data set: facts, rows in pages, prompts, deletion that asks first."""
    facts = ui.text("", "sheet", elem_id="facts")
    with gr.Column() as body:
        with gr.Row(elem_classes="controls"):
            task = gr.Dropdown([], label="Task", scale=3)
            split = gr.Dropdown([], label="Split", scale=2)
            place = gr.Number(1, label="Page", precision=0, minimum=1, scale=1, min_width=90)
            before = gr.Button("Earlier", size="md", scale=0, min_width=90)
            after = gr.Button("Later", size="md", scale=0, min_width=90)
        told = ui.text()
        rows = ui.text("", "sheet", "rows-view", elem_id="rows")
        prompts = gr.Button("Show what the model sees", size="md", scale=0, elem_id="prompts")
        seen = ui.text("", "seen")
        with gr.Row():
            delete = gr.Button("Delete…", size="md", scale=0, min_width=120, elem_id="delete")
            sure = gr.Button("Delete it for good", variant="stop", size="md", scale=0, visible=False, elem_id="sure")
            keep = gr.Button("Keep it", size="md", scale=0, min_width=100, visible=False)
        refused = ui.text("", elem_id="delete-refused")
    chosen = gr.State("")

    def turn(dataset: str, name: str, part: str, number: float) -> list[Any]:
        return rows_view(studio, dataset, name, part, number)

    choice, view = [chosen, task, split, place], [task, split, place, told, rows]
    gr.on([task.input, split.input], lambda d, t, s: turn(d, t, s, 1), choice[:3], view, **ui.QUIET)
    place.change(turn, choice, view, trigger_mode="always_last", js=ADDRESS, **ui.QUIET)
    rows.change(None, choice, None, js=f"(...given) => {{ ({ADDRESS})(...given); }}")
    before.click(lambda d, t, s, n: turn(d, t, s, (n or 1) - 1), choice, view, **ui.QUIET)
    after.click(lambda d, t, s, n: turn(d, t, s, (n or 1) + 1), choice, view, **ui.QUIET)
    prompts.click(
        lambda dataset: stored_preview(studio, dataset), chosen, seen, **{**ui.QUIET, "show_progress": "minimal"}
    )
    calm = [gr.update(visible=True), gr.update(visible=False), gr.update(visible=False)]
    delete.click(lambda d: ask(studio, d), chosen, [delete, sure, keep], **ui.QUIET)
    keep.click(lambda: calm, None, [delete, sure, keep], **ui.QUIET)
    gone = [refused, facts, body, delete, sure, keep]
    sure.click(lambda d: [*delete_view(studio, d), *calm], chosen, gone, **ui.QUIET)
    return [facts, body, chosen, *view, seen]


def sources(studio: Studio, paths: Any, text: str, name: str) -> Any:
    """What is to be read: the uploaded files, else what was typed."""
    found = uploads.received(paths)
    return [str(path) for path in uploads.together(found, name)] if found else studio.drafts.typed_source(text or "")


def closed(message: str = "") -> list[Any]:
    return [message, gr.update(visible=False), gr.skip(), ""]


def reading(said: str) -> str:
    """How far a large file is read."""
    return f'<div class="note" role="status">{ui.escape(said)}</div>'


def preview_view(
    studio: Studio, roles: Any, paths: Any, text: str, name: str, value: Any, told: Told | None = None
) -> list[Any]:
    """[message, area, form, preview]: what would be stored; or why not, with the columns to choose from."""
    try:
        source = sources(studio, paths, text, name)
    except StudioError as error:
        return closed(ui.problem(error))
    try:
        options = data_form.upload_options(roles, value)
        shown = data_form.preview_options(value)
        found = studio.preview(source, name=name or None, told=told, **options, **shown)
    except StudioError as error:
        return refused(studio, roles, source, value, error)
    columns = list(dict.fromkeys(column for file in found.files for column in file.columns))
    mapping = found.files[0].mapping if found.files else {}
    form = data_form.filled(roles, columns, [file.name for file in found.files], mapping, value)
    form["given"] = data_form.given_roles(roles, value)
    return ["", gr.update(visible=True), form, data_views.preview(found)]


def refused(studio: Studio, roles: Any, source: Any, value: Any, error: StudioError) -> list[Any]:
    """What is wrong, beside the files as they are and the form to mend how they are read."""
    try:
        header = data_form.upload_options(roles, value).get("header")
    except StudioError:
        header = None
    try:
        found = studio.drafts.look(source, header=header)
    except StudioError:
        return closed(ui.problem(error))
    columns = list(dict.fromkeys(column for one in found for column in one["columns"]))
    if not columns:  # nothing could be read, so there is nothing to map
        return closed(ui.problem(error))
    form = data_form.filled(roles, columns, [one["name"] for one in found], {}, value)
    return [ui.problem(error), gr.update(visible=True), form, data_views.glimpses(found)]


def store_view(
    studio: Studio, roles: Any, paths: Any, text: str, name: str, value: Any, told: Told | None = None
) -> list[Any]:
    """[message, area]: stored, with where to go next; or what is wrong."""
    try:
        source = sources(studio, paths, text, name)
        data = studio.upload(source, name=name or None, told=told, **data_form.upload_options(roles, value))
    except StudioError as error:
        return [ui.problem(error), gr.skip()]
    return [kept(data, name), gr.update(visible=False)]


def store_demo(studio: Studio) -> list[Any]:
    try:
        return [kept(studio.upload(ASSETS / "demo", name=DEMO), DEMO), gr.update(visible=False)]
    except StudioError as error:
        return [ui.problem(error), gr.skip()]


def kept(data: Mapping[str, Any], name: str) -> str:
    """What was stored and where to go next."""
    shown = name if name in data["aliases"] else data["name"]
    link = ui.escape(data_views.link(shown))
    use = link.replace("/data?", "/experiment?")
    rows = ", ".join(f"{count:,} {split}" for split, count in data["counts"].items())
    tasks = f"{len(data['tasks'])} {'task' if len(data['tasks']) == 1 else 'tasks'}"
    return (
        f'<div class="note">Stored as <a href="{link}"><b>{ui.escape(shown)}</b></a>: {tasks}, {rows} rows. '
        f'<a href="{use}">Use it in an experiment</a></div>'
    )


def stored(studio: Studio, search: str) -> str:
    try:
        return data_views.stored(studio.datasets(), str(search or "")[:200])
    except StudioError as error:
        return ui.problem(error)


def nothing() -> list[Any]:
    return ["", gr.update(visible=False), "", gr.skip(), gr.skip(), gr.skip(), "", "", ""]


def detail_view(studio: Studio, name: str, asked: Mapping[str, str]) -> list[Any]:
    """The outputs of the detail for the data set that the address names."""
    try:
        data = studio.dataset(name)
    except StudioError as error:
        missing = f'<p><a href="/data">← all data sets</a></p>{ui.problem(error)}'
        return [missing, gr.update(visible=False), "", gr.skip(), gr.skip(), gr.skip(), "", "", ""]
    rows = rows_view(studio, data["id"], asked.get("task", ""), asked.get("split", ""), asked.get("part", "1"))
    shown = data_names.shown(data, data_names.meant(studio.datasets()))
    return [data_views.detail(data, shown), gr.update(visible=True), data["id"], *rows, ""]


def rows_view(studio: Studio, dataset: str, task: str, split: str, number: Any) -> list[Any]:
    """[task, split, page, message, rows], each brought to what exists."""
    try:
        data = studio.dataset(dataset)
        tasks = list(data["tasks"])
        task = task if task in tasks else tasks[0]
        counts = data["tasks"][task]["counts"]
        split = split if split in counts else next(iter(counts))
        pages = max(1, -(-counts[split] // PAGE))
        place = min(max(1, int(float(number or 1))), pages)
        rows = studio.rows(data["id"], task, split, (place - 1) * PAGE, PAGE)
    except (ValueError, OverflowError):
        return rows_view(studio, dataset, task, split, 1)
    except StudioError as error:
        return [gr.skip(), gr.skip(), gr.skip(), ui.problem(error), ""]
    first = (place - 1) * PAGE
    span = f"rows {first:,} to {first + len(rows) - 1:,} of {counts[split]:,}"
    said = f'<p class="num">{span}, page {place:,} of {pages:,}</p>'
    splits = [(f"{name} ({count:,} rows)", name) for name, count in counts.items()]
    return [
        gr.update(choices=tasks, value=task),
        gr.update(choices=splits, value=split),
        gr.update(value=place, maximum=pages),
        said,
        data_views.rows(rows, first),
    ]


def stored_preview(studio: Studio, dataset: str) -> str:
    try:
        return data_views.preview(studio.preview_stored(dataset))
    except StudioError as error:
        return ui.problem(error)


def ask(studio: Studio, dataset: str) -> list[Any]:
    """The buttons that delete or keep, with the name of what would go."""
    try:
        named = f"Delete {studio.dataset(dataset)['name'][:60]} for good"
    except StudioError:
        named = "Delete it for good"
    return [gr.update(visible=False), gr.update(visible=True, value=named), gr.update(visible=True)]


def delete_view(studio: Studio, dataset: str) -> list[Any]:
    """[message, facts, body] after a deletion, or why it was refused."""
    try:
        if not dataset:
            raise ConfigurationError("No data set is open.", "Open one from the list.")
        name = studio.dataset(dataset)["name"]
        studio.delete_dataset(dataset)
    except StudioError as error:
        return [ui.problem(error), gr.skip(), gr.skip()]
    gone = f'<div class="note">{ui.escape(name)} was deleted. <a href="/data">← all data sets</a></div>'
    return ["", gone, gr.update(visible=False)]
