"""The figure of each method as a file of its own: drawn and coloured as in the studio, light and dark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.pages.experiment_views import mixture
from app.pages.methods_views import main_kind
from app.ui.diagram import diagram
from core import method_counts
from core.home import ASSETS

SHEETS = ("tessera.css", "experiment.css")
RULE = re.compile(r"([^{}@]+)\{([^{}]*)\}")


def figure(name: str, cache: Path) -> str:
    """The split of a method with its defaults on the bundled base, as an SVG file."""
    found = method_counts.on_base(name, method_counts.BUNDLED, method_counts.TASKS, cache)
    return standalone(diagram(mixture(found, main_kind(found))))


def standalone(svg: str) -> str:
    """A drawing with the rules of the style sheets that it needs, on a ground of its own."""
    width, height = re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups()
    head, body = svg.split(">", 1)
    head = head.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" ')
    ground = f'<rect width="{width}" height="{height}" rx="10" style="fill:var(--panel)"/>'
    return f"{head}>\n<style>\n{style()}</style>\n{ground}{body}\n"


def style() -> str:
    """What the studio's style sheets say of figures, with the inks of day and night."""
    text = "".join((ASSETS / "ui" / sheet).read_text("utf-8") for sheet in SHEETS)
    found, night = ["text { font-family:ui-sans-serif, system-ui, sans-serif; }"], ""
    for selectors, body in RULE.findall(re.sub(r"/\*.*?\*/", "", text, flags=re.S)):
        declared = " ".join(body.split())
        if selectors.strip() == ":root":
            found.append(f"svg {{ {declared} }}")
        elif selectors.strip() == ".dark":
            night = f"@media (prefers-color-scheme:dark) {{ svg {{ {declared} }} }}"
        elif own := ", ".join(_own(selectors)):
            found.append(f"{own} {{ {declared} }}")
    return "\n".join([*found, night]) + "\n"


def _own(selectors: str) -> Iterator[Any]:
    """The selectors that speak of figures, as they are inside of one."""
    for selector in map(str.strip, selectors.split(",")):
        if re.fullmatch(r"\.word-\w+", selector):
            yield selector
        elif match := re.fullmatch(r"\.diagram (?:svg )?((?:path|circle|text|\.)[\w.-]*)", selector):
            yield match[1]
