"""Files of the visible routing for papers and for further work."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.handouts import PRESS, handed
from app.pages.routing_choice import ALL, Choice, settle
from app.ui import components as ui
from core.errors import StudioError
from core.studio import Studio

KINDS = {
    "PDF": ("png", ".pdf", "The heatmaps as a vector figure, drawn by matplotlib."),
    "PNG": ("png", ".png", "The heatmaps as a picture of print quality, drawn by matplotlib."),
    "Plotly page": ("html", ".html", "The heatmaps as one page that opens without a network."),
    "CSV": ("csv", ".csv", "Every figure of this moment: one line for each role, task, site and expert."),
}
HIDDEN = "routing-file"


def build() -> list[tuple[gr.Button, str]]:
    """One button for each kind of file; ``wire`` tells them what is shown."""
    buttons = []
    ui.text(
        "<p>Save these heatmaps for a paper, or their numbers. Each picture saves itself: its upper right corner.</p>"
    )
    with gr.Row(elem_classes="controls"):
        for kind in KINDS:
            buttons.append((gr.Button(kind, size="md", scale=1, min_width=120), kind))
    return buttons


def wire(studio: Studio, buttons: list[tuple[gr.Button, str]], controls: list[Any], choice_of: Any) -> None:
    told = ui.text("", elem_id="routing-export-told")
    hidden = gr.DownloadButton("file", elem_id=HIDDEN, elem_classes="unseen")
    busy = {**ui.QUIET, "show_progress": "minimal", "show_progress_on": told}
    for button, kind in buttons:

        def make(*given: Any, kind: str = kind) -> tuple[Any, str]:
            return write(studio, choice_of(*given), kind)

        pressed = button.click(make, controls, [hidden, told], trigger_mode="once", **busy)
        pressed.success(None, None, None, js=PRESS % HIDDEN)


def write(studio: Studio, choice: Choice, kind: str) -> tuple[Any, str]:
    """The file for the hidden button, and what went wrong where there is none."""
    argument, suffix, _ = KINDS[kind]
    try:
        choice = settle(studio, choice)
        chosen: dict[str, Any] = {"figure": choice.figure, "role": choice.role}
        if choice.projection != ALL:
            chosen["projections"] = [choice.projection]
        name = f"{choice.run}-{choice.figure}-{choice.moment}-{choice.role}{suffix}"
        make = lambda path: studio.routing_files(choice.run, choice.moment, **{argument: path}, **chosen)  # noqa: E731
        return handed(name, make), ""
    except StudioError as error:
        return gr.skip(), ui.problem(error)
