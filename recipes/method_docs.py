"""Fills what code knows into the pages about methods: options, formulas, counts and figures.

python -m recipes.method_docs           # writes docs/methods.md, docs/methods/*.md and docs/figures/methods/*.svg
python -m recipes.method_docs --check   # names what is stale; exit code 1 when anything is
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from core import catalog, method_pages
from core.home import PROJECT
from recipes.method_figures import figure

DOCS = PROJECT / "docs"
FIGURES = DOCS / "figures" / "methods"


def made() -> dict[Path, str]:
    """Every file with its content as it should be."""
    methods = catalog.methods()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        for method in methods:
            name = method["name"]
            page = DOCS / "methods" / f"{name}.md"
            found[page] = method_pages.filled(method_pages.source(name), method_pages.blocks(method, cache))
            found[FIGURES / f"{name}.svg"] = figure(name, cache)
        tables = {
            "overview": method_pages.overview(methods),
            "counts": method_pages.count_table(methods, cache),
            "published": method_pages.published_table(methods),
        }
    page = DOCS / "methods.md"
    found[page] = method_pages.filled(page.read_text("utf-8"), tables)
    return found


def stale() -> list[Path]:
    return [path for path, text in made().items() if not path.is_file() or path.read_text("utf-8") != text]


def main() -> None:
    if "--check" in sys.argv[1:]:
        found = stale()
        for path in found:
            print(f"{path.relative_to(PROJECT)} is stale: python -m recipes.method_docs")
        sys.exit(1 if found else 0)
    FIGURES.mkdir(parents=True, exist_ok=True)
    for path, text in made().items():
        path.write_text(text, "utf-8")
        print(f"Wrote {path.relative_to(PROJECT)}.")


if __name__ == "__main__":
    main()
