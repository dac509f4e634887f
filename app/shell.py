"""All pages in one application: each is built by one function of its own file."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import gradio as gr

from app import roles
from app.acting import protect
from app.auth import Access
from app.pages import account, chat, compare, data, experiment, fusion, home, methods, routing, runs
from app.sessions import Pages
from app.ui import first_paint
from core.studio import Studio


class Page(NamedTuple):
    """A page's name in the navigation, its path, and the module whose ``build(studio, page)`` fills it."""

    name: str
    path: str
    module: ModuleType


HOME = Page("Home", "/", home)
PAGES: tuple[Page, ...] = (
    Page("Data", "/data", data),
    Page("Methods", "/methods", methods),
    Page("Experiment", "/experiment", experiment),
    Page("Runs", "/runs", runs),
    Page("Compare", "/compare", compare),
    Page("Fusion", "/fusion", fusion),
    Page("Routing", "/routing", routing),
    Page("Chat", "/chat", chat),
    Page("Account", "/account", account),
)


def blocks(studio: Studio, access: Access | None = None, home: Page = HOME, pages: Sequence[Page] = PAGES) -> gr.Blocks:
    """The pages of one studio. Components of different pages cannot be wired: what they share is in the database.

    With ``access`` every handler runs as whoever sent its event; without it, for tests, as whoever runs the process.
    """
    demo = Pages(title="Tessera", fill_width=True, analytics_enabled=False, delete_cache=(3600, 86400))
    for page in pages:
        demo.route(page.name, page.path)
    with demo:  # once: each time that it is left, Gradio builds an application of everything that there is by then
        for page in (home, *pages):
            demo.current_page = page.path.strip("/")
            _fill(studio, demo, page, home)
    if access is not None:
        protect(demo.fns.values(), access)
    demo.queue(default_concurrency_limit=20)
    return demo


def _fill(studio: Studio, demo: gr.Blocks, page: Page, home: Page) -> None:
    """The current page: the navigation, what its module builds, and the word that it is filled."""
    before = set(demo.fns)
    gr.Navbar(main_page_name=home.name)
    page.module.build(studio, demo)
    roles.mark(demo.blocks.values(), page.path.strip("/"))
    first_paint.shown_when_filled(demo, before)
