"""What Gradio renders as HTML of its own accord gets escaped text alone."""

from __future__ import annotations

import ast

from core.home import PROJECT

RENDERED = ("gr.Error", "gr.Warning", "gr.Info")


def test_messages_in_the_corner_hold_no_markup_of_data():
    """Gradio draws them as HTML: a text of ours, or one that was escaped."""
    found = []
    for path in sorted((PROJECT / "app").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in RENDERED:
                said = ast.unparse(node.args[0])
                ours = isinstance(node.args[0], ast.Constant) or said.isupper()
                if not ours and not said.startswith("ui.escape("):
                    found.append(f"{path.relative_to(PROJECT)}:{node.lineno} {said}")
    assert found == []
