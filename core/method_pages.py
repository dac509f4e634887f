"""The pages of ``docs/methods``: text that people wrote around blocks that the code fills. Imports no torch.

A block stands between ``<!-- NAME: written by python -m recipes.method_docs -->`` and ``<!-- end -->``. The studio
shows the same files without their blocks, which it draws itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import method_counts
from core.errors import NotFoundError
from core.home import PROJECT
from core.method_counts import PUBLISHED, TASKS

FOLDER = PROJECT / "docs" / "methods"
WRITTEN_BY = "written by python -m recipes.method_docs"
BLOCK = re.compile(rf"<!-- (\w+): {WRITTEN_BY} -->\n.*?<!-- end -->", re.S)
PICTURE = re.compile(r"^!\[[^\]]*\]\([^)]*\)\n?", re.M)
INTERPRETATION = (
    "**interpretation**: the paper was not, or not fully, read. What is computed follows the section on what is known, "
    "and no number of the paper is claimed."
)


@dataclass(frozen=True)
class Page:
    """A page as the studio shows it: its sections by heading, without blocks and pictures, links to methods adapted."""

    name: str
    title: str
    sections: dict[str, str]


def page(name: str) -> Page:
    """The page of a method; NotFoundError where nobody wrote one."""
    text = PICTURE.sub("", BLOCK.sub("", source(name)))
    title, *parts = re.split(r"^#{1,2} (.+)$\n", text, flags=re.M)[1:]
    bodies = dict(zip(parts[1::2], parts[2::2], strict=True))
    return Page(name, title, {heading: _linked(body.strip()) for heading, body in bodies.items() if body.strip()})


def source(name: str) -> str:
    path = FOLDER / f"{name}.md"
    if not re.fullmatch(r"[\w-]+", name) or not path.is_file():
        raise NotFoundError(f"There is no page about {name}.", f"Write {path.relative_to(PROJECT)}.")
    return path.read_text("utf-8")


def _linked(text: str) -> str:
    """Links between methods lead to their pages in the studio; other pages are named, since the studio has them not."""
    text = re.sub(r"\]\(([\w-]+)\.md\)", r"](/methods?method=\1)", text)
    return re.sub(r"\[([^\]]+)\]\((?!/methods|https?:)[^)]*\)", r"\1", text)


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """A page with its blocks written anew; KeyError names a block that nothing fills."""
    return BLOCK.sub(lambda match: block(match[1], blocks[match[1]]), text)


def block(name: str, content: str) -> str:
    return f"<!-- {name}: {WRITTEN_BY} -->\n{content.strip()}\n<!-- end -->"


def blocks(method: Mapping[str, Any], cache: Path) -> dict[str, str]:
    """The blocks of one method's page, from the catalogue's description of it."""
    return {"facts": facts(method), "options": options(method["options"]), "parameters": parameters(method, cache)}


def facts(method: Mapping[str, Any]) -> str:
    rows = [("name", f"`{method['name']}`"), ("source", method["source"])] if method["source"] else []
    if method["parts"]:
        rows.append(("words", ", ".join(f"{part} `{word}`" for part, word in method["parts"].items())))
        rows.append(("one decision covers", UNITS[method["unit"]]))
        rows.append(("tasks", NEEDS[method["tasks"]]))
    lines = [method["summary"], ""]
    lines += [INTERPRETATION, ""] if method["badge"] else []
    return "\n".join([*lines, *grid(["", ""], rows)]) if rows else method["summary"]


UNITS = {"token": "a token", "sample": "a sample", "none": "nothing is decided"}
NEEDS = {
    "never": "need not be known",
    "training": "must be named while training; an answer does not need to know its task",
    "always": "every sample must say its task, in answers too",
}


def options(described: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (f"`{one['name']}`", one["default_text"], cell(one["range"]), one["unit"] or "", cell(one["help"]))
        for one in described
    ]
    return "\n".join(grid(["option", "default", "range", "unit", "meaning"], rows))


def parameters(method: Mapping[str, Any], cache: Path) -> str:
    """Formula, counts with the defaults, and settings of papers."""
    lines = []
    if method["formula"]:
        symbols = [f"`{name}`: {told}" for name, told in method["symbols"].items()]
        told = "; ".join(symbols) + (f". By default {method['defaults']}." if method["defaults"] else ".")
        lines += ["Of one adapted projection:", "", "```text", method["formula"], "```", "", told, ""]
    counted = method_counts.counts(method["name"], cache)
    per_task = method["tasks"] in ("training", "always") or method["formula"] is None
    which = "The example above" if method["formula"] is None else "With these defaults"
    lines += [f"{which}{f' and {TASKS} tasks' if per_task else ''}:", ""]
    lines += grid(list(counted), [[number(count) for count in counted.values()]], right=True)
    published = [one for one in PUBLISHED if one.method == method["name"]]
    if published:
        lines += ["", "Settings of papers; without a printed number, the count follows from the paper's formula:", ""]
        rows = [(one.setting, one.base, number(one.counted()), one.printed or "not read") for one in published]
        lines += grid(["setting", "base", "trainable", "printed"], rows)
    return "\n".join(lines)


def number(count: int | None) -> str:
    return "no such projections" if count is None else f"{count:,}"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]], right: bool = False) -> list[str]:
    """Lines of a Markdown table."""
    rule = "|" + ("---:|" if right else "---|") * len(heads)
    return ["| " + " | ".join(heads) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)]


def overview(methods: Sequence[Mapping[str, Any]]) -> str:
    """One line for each method: its words, gate, tasks and badge."""
    rows = []
    for one in methods:
        parts = one["parts"] or dict.fromkeys(("down", "gate", "up"), "as painted")
        words = [parts["down"], parts["gate"], parts["up"]]
        link = f"[{one['title']}](methods/{one['name']}.md)"
        rows.append(
            (link, *words, one["unit"] or "", one["tasks"] or "as its cells", one["badge"] or "", one["summary"])
        )
    return "\n".join(grid(["method", "down", "gate", "up", "unit", "tasks", "badge", "in a sentence"], rows))


def count_table(methods: Sequence[Mapping[str, Any]], cache: Path) -> str:
    """Trainable parameters of every method with its defaults."""
    found = method_counts.table(cache)
    titles = {one["name"]: one["title"] for one in methods}
    rows = [(titles[name], *(number(count) for count in counted.values())) for name, counted in found.items()]
    head, rule, *lines = grid(["method", *method_counts.SHOWN], rows, right=True)
    return "\n".join([head, rule.replace("---:", "---", 1), *lines])


def published_table(methods: Sequence[Mapping[str, Any]]) -> str:
    titles = {one["name"]: one["title"] for one in methods}
    rows = [
        (titles[one.method], one.setting, one.base, number(one.counted()), one.printed or "not read")
        for one in PUBLISHED
    ]
    return "\n".join(grid(["method", "setting", "base", "trainable", "printed in the paper"], rows))
