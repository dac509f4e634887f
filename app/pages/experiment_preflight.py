"""The preflight of a run that is being made: parameters, memory and speed as HTML. Pure functions."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from app.ui import components as ui
from core import units

COMPONENTS = ("down", "gate", "up")


def preflight(size: Any, speed: Any = None) -> str:
    """Parameters by component and cell, memory by part against the device, and the speed of earlier runs."""
    return counts(size) + memory(size.memory) + pace(speed) + breakdown(size)


def counts(size: Any) -> str:
    """Exact parameters, put beside the base and a LoRA."""
    share = f"{size.trainable / size.total:.2%} of the base" if size.total else ""
    ratio = f"{size.trainable / size.lora:.2f} × a LoRA of rank 8" if size.lora else ""
    about = " · ".join(filter(None, ("trainable parameters", share, ratio)))
    return f'<div class="count"><b class="num">{size.trainable:,}</b><span>{about}</span></div>'


def memory(fit: Any) -> str:
    """The estimated peak by part, as a bar that is as long as the device's memory."""
    whole = max(fit.capacity or 0, fit.total) or 1
    parts = [(ui.escape(name), number) for name, number in fit.parts.items() if number]
    bar = "".join(f'<i class="part-{name}" style="width:{number / whole:.2%}"></i>' for name, number in parts)
    keys = "".join(f'<span class="part-{name}">{name} {units.size(number)}</span>' for name, number in parts)
    of = f" of {units.size(fit.capacity)} ({ui.escape(fit.device)})" if fit.capacity else ""
    batch = f"{fit.rows:,} rows of at most {fit.tokens:,} tokens at a time"
    batch += f"; {fit.together} such runs at once" if fit.together > 1 else ""
    return (
        f'<p class="memory num">Memory: about {units.size(fit.total)}{of}, {batch}</p>'
        f'<div class="memory-bar" aria-hidden="true">{bar}</div><p class="memory-keys num">{keys}</p>'
        f"{too_large(fit)}"
    )


def too_large(fit: Any) -> str:
    """What speaks against the memory of a run, beside its numbers; nothing where it fits."""
    if fit.fits is not False and not fit.problem:
        return ""
    said = "It cannot fit, whatever the batch size." if fit.problem else "It probably does not fit."
    return f'<div class="problem"><b>{said}</b> <span>{ui.escape(fit.remedy or fit.advice)}</span></div>'


def pace(speed: Any) -> str:
    """Tokens per second as earlier runs had them; nothing where there are none."""
    if speed is None:
        return ""
    links = ", ".join(f'<a href="/runs?run={quote(run)}">{ui.escape(run)}</a>' for run in speed.runs)
    whose = "" if speed.alike else f" with {ui.escape(speed.method or 'other methods')}"
    return f'<p class="pace num">Speed: about {speed.tokens_per_second:,.0f} tokens a second, as {links}{whose}</p>'


def breakdown(size: Any) -> str:
    """Trainable parameters by component, and by cell where there are several."""
    rows = _line("all cells", size.parts, size.trainable)
    if len(size.cells) > 1:
        rows += "".join(
            _line(f"{one.cell} <small>{ui.escape(one.title)}</small>", one.parts, one.trainable, one.frozen)
            for one in size.cells
        )
    heads = "".join(f'<th class="num">{name}</th>' for name in (*COMPONENTS, "all"))
    return (
        '<details class="breakdown"><summary>Trainable parameters by component and cell</summary><div class="scroll">'
        f'<table class="grid"><thead><tr><th>cell</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


def _line(title: str, parts: dict[str, int], total: int, frozen: bool = False) -> str:
    cells = "".join(f'<td class="num">{parts[name]:,}</td>' for name in COMPONENTS)
    cells = '<td class="num" colspan="3">frozen</td>' if frozen else cells
    return f'<tr><th>{title}</th>{cells}<td class="num">{total:,}</td></tr>'
