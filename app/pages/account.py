"""The Account page: one's own password and tokens, signing out, and for admins the users."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gradio as gr

from app.pages import account_views as views
from app.ui import components as ui
from core.access import LOCAL, ROLES, acting
from core.errors import ConfigurationError, StudioError
from core.studio import Studio

LEAD = "Who you are here, what you may do, and your keys for programs."
# What every handler shows anew.
PARTS = ("told", "who", "mine", "tokens", "revoked", "first", "people", "table", "whom")


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill ``page``."""
    ui.page_head("Account", LEAD)
    c = SimpleNamespace(told=ui.text("", elem_id="account-told"), who=ui.text("", "panel", elem_id="account-who"))
    with gr.Column(visible=False, elem_id="account-first") as c.first:
        c.first_form = _form("first", "The first admin", "Name", "Password", "Password again", button="Add the admin")
    with gr.Row(visible=False, equal_height=False) as c.mine:
        with gr.Column(min_width=340):
            _own(c)
        with gr.Column(min_width=340):
            _tokens(c)
    with gr.Column(visible=False, elem_id="account-people") as c.people:
        _people(c)
    _wire(studio, page, c)
    _wire_people(studio, c)


def _form(name: str, title: str, *labels: str, button: str) -> SimpleNamespace:
    """A heading, a row of text fields (hidden letters for passwords) and a button."""
    ui.text(f"<h3>{title}</h3>")
    with gr.Row(elem_classes="controls"):
        fields = [
            gr.Textbox(label=label, type="password" if "assword" in label else "text", max_length=1000, min_width=140)
            for label in labels
        ]
    return SimpleNamespace(
        fields=fields, button=gr.Button(button, size="md", scale=0, min_width=170, elem_id=f"account-{name}-button")
    )


def _own(c: SimpleNamespace) -> None:
    c.password = _form(
        "password", "Password", "Present password", "New password", "New password again", button="Change the password"
    )
    ui.text("<p>Every session of yours ends with it, this one too.</p>")
    c.everywhere = gr.Button("Sign out everywhere", size="md", scale=0, min_width=170, elem_id="account-everywhere")


def _tokens(c: SimpleNamespace) -> None:
    ui.text("<h3>Tokens for programs</h3><p>For the command line on another machine, and for the API.</p>")
    c.tokens = ui.text("", elem_id="account-tokens")
    c.key = ui.text("", elem_id="account-key")
    with gr.Row(elem_classes="controls"):
        c.label = gr.Textbox(label="What it is for", placeholder="laptop", max_length=100, min_width=140, scale=2)
        c.days = gr.Number(90, label="Days (0: no end)", precision=0, minimum=0, maximum=3650, min_width=110)
        c.make = gr.Button("Make a token", size="md", scale=0, min_width=140, elem_id="account-make")
    with gr.Row(elem_classes="controls"):
        c.revoked = gr.Dropdown([], label="Token", min_width=140, scale=2)
        c.revoke = gr.Button("Revoke it", size="md", scale=0, min_width=140, elem_id="account-revoke")


def _people(c: SimpleNamespace) -> None:
    ui.text("<h2>Users</h2>" + views.roles())
    c.table = ui.text("", "panel", elem_id="account-users")
    with gr.Row(equal_height=False):
        with gr.Column(min_width=340):
            ui.text("<h3>Another user</h3>")
            with gr.Row(elem_classes="controls"):
                c.name = gr.Textbox(label="Name", max_length=40, min_width=140)
                c.new = gr.Textbox(label="Password", type="password", max_length=1000, min_width=140)
            c.role = gr.Dropdown(list(ROLES), value="viewer", label="Role", elem_id="account-role")
            c.inherit = gr.Checkbox(
                label="Inherit what somebody left who had this name and was removed", container=False
            )
            c.add = gr.Button("Add the user", variant="primary", size="md", scale=0, min_width=140, elem_id="add-user")
        with gr.Column(min_width=340):
            ui.text("<h3>Change a user</h3>")
            c.whom = gr.Dropdown([], label="User", elem_id="account-whom")
            with gr.Row(elem_classes="controls"):
                c.becomes = gr.Dropdown(list(ROLES), value="viewer", label="New role", min_width=140, scale=2)
                c.set_role = gr.Button("Set the role", size="md", scale=0, min_width=150, elem_id="set-role")
            with gr.Row(elem_classes="controls"):
                c.other = gr.Textbox(label="New password", type="password", max_length=1000, min_width=140, scale=2)
                c.set_password = gr.Button("Set the password", size="md", scale=0, min_width=150)
            with gr.Row(elem_classes="controls"):
                c.shut = gr.Button("Shut out", size="md", min_width=110, elem_id="shut-out")
                c.let = gr.Button("Let in again", size="md", min_width=110)
                c.out = gr.Button("Sign out everywhere", size="md", min_width=150)


def _on(studio: Studio, c: SimpleNamespace) -> Callable[..., None]:
    """What ties a button to what it does."""
    parts = [getattr(c, name) for name in PARTS]

    def on(button: gr.Button, fields: list[Any], clears: list[Any], act: Callable[..., str]) -> None:
        """Do something with the fields, say what was done or why not, show all anew; ``clears`` are emptied."""

        def handler(*given: Any) -> list[Any]:
            try:
                texts = ("" if one is None else one for one in given)
                return [*shown(studio, views.done(act(*texts))), *("" for _ in clears)]
            except StudioError as error:
                return [*shown(studio, ui.problem(error)), *(gr.skip() for _ in clears)]

        button.click(handler, fields, [*parts, *clears], trigger_mode="once", **ui.QUIET)

    return on


def _wire(studio: Studio, page: gr.Blocks, c: SimpleNamespace) -> None:
    """One's own password, sessions and tokens, and the first account of a home."""
    on, users, parts = _on(studio, c), studio.users, [getattr(c, name) for name in PARTS]

    def first(name: str, password: str, again: str) -> str:
        added = users.add(name, "admin", same(password, again))
        return f"{added.name} is the first admin. Sign in now."

    def own(current: str, new: str, again: str) -> str:
        users.set_password(_me(), same(new, again), current)
        return "The password is changed. Sign in again."

    def everywhere() -> str:
        users.end_sessions(_me())
        return "You are signed out everywhere."

    on(c.first_form.button, c.first_form.fields, c.first_form.fields, first)
    on(c.password.button, c.password.fields, c.password.fields, own)
    on(c.everywhere, [], [], everywhere)
    on(c.revoke, [c.revoked], [c.key], lambda token: f"Token {users.revoke_token(_whole(token)).id} is revoked.")

    def make(label: str, days: Any) -> list[Any]:
        try:
            key, _ = users.add_token(_me(), label or "", _whole(days) or None)
            return [*shown(studio, ""), views.key(key), ""]
        except StudioError as error:
            return [*shown(studio, ui.problem(error)), "", gr.skip()]

    c.make.click(make, [c.label, c.days], [*parts, c.key, c.label], trigger_mode="once", **ui.QUIET)
    page.load(lambda: shown(studio, ""), None, parts, **ui.QUIET)


def _wire_people(studio: Studio, c: SimpleNamespace) -> None:
    """Everybody's accounts, for admins."""
    on, users = _on(studio, c), studio.users

    def add(name: str, password: str, role: Any, inherit: Any) -> str:
        added = users.add(name, role, password, inherit=inherit is True)
        return f"{added.name} may sign in, as {added.role}."

    def set_role(name: str, role: Any) -> str:
        return f"{users.set_role(name, role).name} is {role} now."

    def set_password(name: str, new: str) -> str:
        return f"{users.set_password(name, new).name} has another password."

    def sign_out(name: str) -> str:
        users.end_sessions(name)
        return f"{name} is signed out everywhere."

    on(c.add, [c.name, c.new, c.role, c.inherit], [c.name, c.new, c.inherit], add)
    on(c.set_role, [c.whom, c.becomes], [], set_role)
    on(c.set_password, [c.whom, c.other], [c.other], set_password)
    on(c.shut, [c.whom], [], lambda name: f"{users.disable(name).name} is shut out.")
    on(c.let, [c.whom], [], lambda name: f"{users.disable(name, False).name} may sign in again.")
    on(c.out, [c.whom], [], sign_out)


def shown(studio: Studio, told: str) -> list[Any]:
    """The parts of the page for whoever acts."""
    actor, users = acting(), studio.users
    here, admin = actor != LOCAL, actor.may("admin") and actor != LOCAL
    tokens = users.tokens(actor.name) if actor.name is not None else []
    people = users.list() if admin else []
    return [
        told,
        views.who(actor),
        gr.update(visible=here),
        views.tokens(tokens),
        gr.update(choices=[(f"{token.id}: {token.label}", token.id) for token in tokens], value=None),
        gr.update(visible=not here and not users.any()),
        gr.update(visible=admin),
        views.users(people),
        gr.update(choices=[one.name for one in people]),
    ]


def same(password: str, again: str) -> str:
    if password != again:
        raise ConfigurationError("The two passwords differ.", "Type the new one twice.")
    return password


def _whole(value: Any) -> int:
    """A whole number as a browser sent it; 0 where it is none."""
    try:
        return max(0, min(int(float(value or 0)), 2**31))
    except (TypeError, ValueError, OverflowError):
        return 0


def _me() -> str:
    return acting().name or ""
