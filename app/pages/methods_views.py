"""What the Methods page shows of a method: head, figure, counts, options, text. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from app.pages.experiment_views import FROZEN, kind_of, mixture
from app.ui import components as ui
from app.ui.diagram import diagram

e = ui.escape
BEFORE = ("What is shared, what is each expert's own", "When to use it, and when not")
AFTER = ("What is known, what is interpretation", "Beside its neighbours", "Train it")
UNITS = {"token": "each token", "sample": "each sample", "none": "nothing: there is no gate", None: "what you paint"}
NEEDS = {
    "never": "need not be known",
    "training": "named while training; answers do not need theirs",
    "always": "every sample must say its task, in answers too",
    None: "as the cells that you paint",
}
INTERPRETATION = (
    "Its paper was not, or not fully, read. What is computed follows “What is known” below; no number of the paper is "
    "claimed."
)


def listed(methods: Sequence[Mapping[str, Any]], chosen: str) -> dict[str, Any]:
    """The value of the list component."""
    names = ("name", "title", "summary", "badge")
    found = [{name: one[name] for name in names} | {"words": _words(one)} for one in methods]
    return {"methods": found, "chosen": chosen}


def _words(method: Mapping[str, Any]) -> str:
    """What the filter looks at besides name, title and summary."""
    parts = method["parts"] or {}
    return " ".join([*parts.values(), method["unit"] or "", f"tasks {method['tasks']}", method["source"]])


def head(method: Mapping[str, Any]) -> str:
    """Title, badge, summary, source, facts and the way into an experiment."""
    chips = "".join(
        f'<span class="chip word-{e(word)}">{part} {e(word.replace("_", " "))}</span>'
        for part, word in (method["parts"] or {}).items()
    )
    told = f'<p class="note">{e(INTERPRETATION)}</p>' if method["badge"] else ""
    source = f"<p><small>{e(method['source'])}</small></p>" if method["source"] else ""
    link = f"/experiment?method={quote(method['name'])}"
    return (
        f'<div class="method-title"><h2>{e(method["title"])}{ui.badge(method["badge"])}</h2>'
        f'<a class="button" id="use-method" href="{link}">Use in an experiment</a></div>'
        f'<p class="summary">{e(method["summary"])}</p>{source}{told}'
        f'<p class="facts">{chips}<span>decides for <b>{e(UNITS[method["unit"]])}</b></span>'
        f"<span>tasks: <b>{e(NEEDS[method['tasks']])}</b></span></p>"
    )


def main_kind(found: Any) -> tuple[str, ...]:
    """The words that most of the adapted places have."""
    kinds = Counter(kind for place in found.places if (kind := kind_of(place)) and kind != FROZEN)
    return kinds.most_common(1)[0][0]


def figure(method: Mapping[str, Any], found: Any) -> dict[str, Any]:
    """The value of the figure panel."""
    return {"html": diagram(mixture(found, main_kind(found))), "name": f"{method['name']}-split"}


def counts(method: Mapping[str, Any], found: Any) -> str:
    """Trainable parameters on the chosen base, by component, and the formula behind them."""
    share = found.trainable / found.total
    rows = "".join(
        f'<tr><th>{part}</th><td class="num">{number:,}</td>'
        f'<td class="num">{_share(number / found.trainable)}</td></tr>'
        for part, number in found.parts.items()
    )
    return (
        f'<p class="count"><b class="num">{found.trainable:,}</b><span>trainable parameters, {_share(share)} of '
        f"{found.total:,}</span></p>"
        '<table class="grid"><thead><tr><th></th><th class="num">parameters</th><th class="num">share</th></tr>'
        f"</thead><tbody>{rows}</tbody></table>{formula(method)}"
    )


def _share(value: float) -> str:
    return f"{value:.2%}" if value < 0.1 else f"{value:.1%}"


def formula(method: Mapping[str, Any]) -> str:
    if not method["formula"]:
        return "<p>The count is that of the words which each cell has; this is the example drawn beside.</p>"
    symbols = "; ".join(f"<code>{e(name)}</code> {e(told)}" for name, told in method["symbols"].items())
    defaults = f" By default {e(method['defaults'])}." if method["defaults"] else ""
    told = f'<p class="formula"><code>{e(method["formula"])}</code></p><p>{symbols}.{defaults}</p>'
    return f"<p>Of one projection:</p>{told}"


def published(found: Sequence[Any]) -> str:
    """Settings of papers with what is counted and what was printed; nothing where there are none."""
    if not found:
        return ""
    rows = "".join(
        f'<tr><td class="wrap">{e(one.setting)}</td><td>{e(one.base)}</td><td class="num">{one.counted():,}</td>'
        f'<td class="wrap">{e(one.printed or "not read")}</td></tr>'
        for one in found
    )
    heads = '<th>setting</th><th>base</th><th class="num">trainable</th><th>printed in the paper</th>'
    return (
        '<h3>Settings of papers</h3><div class="scroll"><table class="grid"><thead><tr>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def options(method: Mapping[str, Any]) -> str:
    """Every option with default, range, unit and meaning."""
    rows = "".join(
        f"<tr><th>{e(one['name'])}</th><td>{e(one['default_text'])}</td><td>{e(one['range'])}</td>"
        f"<td>{e(one['unit'] or '')}</td>"
        f'<td class="wrap">{e(one["help"])}</td></tr>'
        for one in method["options"]
    )
    heads = "".join(f"<th>{name}</th>" for name in ("option", "default", "range", "unit", "meaning"))
    return (
        f'<h2>Options</h2><div class="scroll"><table class="grid options"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def text(sections: Mapping[str, str], headings: Sequence[str]) -> str:
    """Sections of a page as Markdown."""
    return "\n\n".join(f"## {heading}\n\n{sections[heading]}" for heading in headings if heading in sections)
