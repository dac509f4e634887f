"""Which controls are of no use to whom: named in one place, dimmed by ``assets/ui/session.js``, refused by ``core``.

A control that looks, filters, designs, exports or leads elsewhere is not named. ``tests/access/test_shut_controls.py``
presses everything as a viewer and as a researcher and compares.
"""

from __future__ import annotations

from collections.abc import Iterable

from gradio.blocks import Block

from core.access import Role

# Page -> role that it takes -> controls, by what stands on them or by their id; a column stands for all in it.
NEEDS: dict[str, dict[Role, tuple[str, ...]]] = {
    "": {
        "researcher": ("Run the demo", "Start the dispatcher"),
        "admin": ("Stop the dispatcher", "clean-kinds", "Clean up…", "Delete it for good"),
    },
    "data": {
        "researcher": ("files", "typed", "Use the demo tasks", "Preview", "Preview again", "Store")
        + ("Delete…", "Delete it for good")
    },
    "experiment": {"researcher": ("Use the demo tasks", "Queue a run for each", "Start")},
    "runs": {
        "researcher": ("Move to front", "Cancel…", "Resume", "Delete…", "Yes", "Go on", "Stop it")
        + ("Queue the clone", "Queue the scoring", "Save")
    },
    "fusion": {"researcher": ("Fuse", "Cancel…", "Resume", "Yes")},
    "routing": {"researcher": ("inspect-row", "inspect-text", "Inspect")},
    "chat": {"researcher": ("chat-box", "Ask", "Delete…", "Yes, delete")},
    "account": {"admin": ("account-first", "account-people")},
}


def mark(blocks: Iterable[Block], page: str) -> None:
    """Give the controls of a page that are named here the class ``needs-<role>``; one that is not there is an error."""
    named = {name: role for role, names in NEEDS.get(page, {}).items() for name in names}
    found = set()
    for block in (one for one in blocks if one.page == page):
        if name := next((one for one in _names(block) if one in named), None):
            block.elem_classes = [*block.elem_classes, f"needs-{named[name]}"]
            found.add(name)
    if missing := named.keys() - found:
        raise LookupError(f"The page {page!r} has no {', '.join(sorted(missing))}.")


def _names(block: Block) -> tuple[str | None, str | None]:
    return block.elem_id, block.value if block.get_block_name() == "button" and isinstance(block.value, str) else None
