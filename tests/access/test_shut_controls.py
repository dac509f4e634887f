"""What is refused to somebody looks like it: everything on every page is pressed as a viewer and as a researcher.

Pages are opened as browsers do, with their load handlers, and what people type is filled in so that nothing but the
role speaks against it. Then every handler that a person sets off is called, and who is refused is compared with what
is marked. What a researcher may do is not done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio.blocks import BlockFunction
from sqlalchemy import update

from app import shell
from app.shell import HOME, PAGES
from core.access import Actor, act_as
from core.errors import ConfigurationError, NotAllowedError, StudioError
from core.studio import Studio
from storage import models
from storage.queries import chats
from tests.input.hostile import Visit
from tests.support import seed

VERA, BEN, ADA = Actor("vera", "viewer"), Actor("ben", "researcher"), Actor("ada", "admin")
BY_ITSELF = {"load", "tick", "unload", "focus", "select"}  # a select moves within its page
ASKS = "…"  # at the end of what stands on a button: it asks first
QUERY = {"run": "run-1", "dataset": "reviews", "clone": "run-1"}
# What people would have typed or chosen before they press, by what stands on the control or by its id.
TYPED = {
    "budget-methods": ["lora"],
    "chat-box": "Hello?",
    "inspect-text": "Hello?",
    "typed": "somewhere",
    "Name": "somebody",
    "User": "ada",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """All pages over runs and a data set of Ben's and a conversation of everybody's."""
    studio = Studio(tmp_path_factory.mktemp("shut") / "home")
    with act_as(BEN):
        seeded = seed.few(studio.home.root)
        fused = seed.fused(studio, seeded.dataset, seeded.done[:2], method="task_arithmetic")
    with studio.records.write() as session:
        session.execute(update(models.Run).values(owner="ben"))
        talks = {
            actor: chats.start(session, title="a", models=["base"], owner=actor.name).id for actor in (VERA, BEN, ADA)
        }
    studio.chats.inference.connect = no_worker
    studio.fusion_spec = lambda *_, **__: seed.spec(seeded.dataset)  # the weights of these runs are not there
    yield SimpleNamespace(studio=studio, demo=shell.blocks(studio), fused=fused, talks=talks)
    if (studio.home.dispatcher / "pid").is_file():  # where a refusal that these tests are about is missing
        studio.dispatcher("stop")
    studio.close()


def no_worker(*_: object) -> None:
    raise ConfigurationError("No model is loaded in these tests.")


def stands_on(block: Any) -> str:
    return str((block.value if isinstance(block, gr.Button) else getattr(block, "label", None)) or "")


def marks(block: Any) -> set[str]:
    """The roles that a control, or what it lies in, is marked with."""
    found: set[str] = set()
    while block is not None:
        found |= {one.removeprefix("needs-") for one in block.elem_classes if one.startswith("needs-")}
        block = block.parent
    return found


def set_off_by(demo: gr.Blocks, fn: BlockFunction) -> list[Any]:
    """The controls with which a person sets a handler off; of one that follows another, those of the first."""
    while fn.trigger_after is not None:
        fn = demo.fns[fn.trigger_after]
    return [demo.blocks[number] for number, event in fn.targets if number is not None and event not in BY_ITSELF]


def within(block: Any) -> Iterator[Any]:
    yield block
    for child in getattr(block, "children", ()):
        yield from within(child)


class Pressing:
    """One page as one person has it open; presses and says which roles were missing."""

    def __init__(self, made: SimpleNamespace, path: str, actor: Actor, **query: str) -> None:
        self.demo = made.demo
        self.visit = Visit(made.demo, path, QUERY | {"conversation": str(made.talks[actor])} | query)
        self.handlers = [fn for fn in self.visit.fns if set_off_by(self.demo, fn)]

    def value(self, component: Any) -> Any:
        if getattr(component, "type", "") == "password":
            return "long enough"
        typed = TYPED.get(component.elem_id or "", TYPED.get(stands_on(component)))
        return self.visit.value(component) if typed is None else typed

    def press(self, fn: Any, take: bool = False) -> set[str]:
        """The roles that were missing; ``take``: the page shows what is answered, else it stays as it was opened."""
        missing: set[str] = set()
        raised = NotAllowedError.__init__

        def noting(error: NotAllowedError, message: str, *rest: Any) -> None:
            missing.add(message.rstrip(".").split()[-1])
            raised(error, message, *rest)

        with pytest.MonkeyPatch.context() as patch, suppress(StudioError, gr.Error):
            patch.setattr(NotAllowedError, "__init__", noting)
            answer = self.visit.call(fn, [self.value(one) for one in fn.inputs], {"run": "run-1"})
            if take:
                self.visit.take(fn, answer)
        return missing

    def asked_first(self, fn: Any) -> None:
        """Press what asks before this is done, where something does: all that can bring this button into sight."""
        for other in self.handlers:
            controls = set_off_by(self.demo, other)
            if any(stands_on(one).endswith(ASKS) for one in controls) and set(fn.inputs) & set(other.outputs):
                self.press(other, take=True)

    def all(self, skipped: set[str]) -> Iterator[tuple[Any, set[str]]]:
        """(control, roles that were missing) for each control that is not marked with ``skipped``."""
        for fn in self.handlers:
            controls = [one for one in set_off_by(self.demo, fn) if not marks(one) & skipped]
            if controls:
                self.asked_first(fn)
                missing = self.press(fn)
                yield from ((control, missing) for control in controls)

    def asks(self, control: Any) -> set[str]:
        """The marks of what a control brings into sight."""
        handlers = [fn for fn in self.handlers if control in set_off_by(self.demo, fn)]
        return {mark for fn in handlers for out in fn.outputs for one in within(out) for mark in marks(one)}


PATHS = [page.path for page in (HOME, *PAGES)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("actor", [VERA, BEN], ids=lambda actor: actor.role)
def test_what_is_refused_is_marked_and_nothing_else(made: SimpleNamespace, path: str, actor: Actor):
    theirs = {role for role in ("viewer", "researcher", "admin") if actor.may(role)}
    missing: dict[Any, set[str]] = {}
    pages = [{"run": made.fused}, {"run": "", "runs": "run-1,run-2"}] if path == "/fusion" else [{}]
    with act_as(actor):
        for query in pages:
            for control, roles_ in Pressing(made, path, actor, **query).all(skipped=theirs):
                missing.setdefault(control, set()).update(roles_)
    assert missing or path in ("/methods", "/compare")
    for control, roles_ in missing.items():
        name = f"{stands_on(control) or control.elem_id} on {path}"
        asks = Pressing(made, path, actor).asks(control) if stands_on(control).endswith(ASKS) else set()
        assert (roles_ or asks) == marks(control), f"{name}: name it in app/roles.py, or not"
