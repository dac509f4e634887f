"""Figures as files that work offline."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.figures.style import LOOKS
from core.home import write_text

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ margin: 0 auto; padding: 24px; max-width: 1360px; background: {paper}; color: {ink}; font-family: sans-serif }}
</style>
</head><body>
{body}
</body></html>
"""


def write_html(figures: Any | Sequence[Any], path: str | Path, *, title: str = "Tessera") -> Path:
    """One page with one or several Plotly figures; plotly.js stands in it once, so it opens without a network."""
    import plotly.io as pio

    figures = list(figures) if isinstance(figures, (list, tuple)) else [figures]
    picture = {"format": "svg", "filename": "tessera"}
    config = {"displaylogo": False, "responsive": True, "toImageButtonOptions": picture}
    config["modeBarButtonsToRemove"] = ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"]
    parts = [
        pio.to_html(figure, full_html=False, include_plotlyjs=index == 0, config=config, default_width="100%")
        for index, figure in enumerate(figures)
    ]
    look = LOOKS["light"]
    page = PAGE.format(title=html.escape(title), paper=look.paper, ink=look.ink, body="\n".join(parts))
    write_text(Path(path), page)
    Path(path).chmod(0o644)  # a page to hand on, unlike what else a home holds
    return Path(path)
