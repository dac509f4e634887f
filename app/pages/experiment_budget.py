"""The panel that makes methods equal in trainable parameters, and queues a run for each of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import gradio as gr

from app.pages import experiment_state as state
from app.pages import experiment_views as views
from app.ui import components as ui
from core.errors import ConfigurationError, StudioError
from core.schema import MethodSpec, ModelSpec, RunSpec

OVER = ("rank", "experts")
PLACE = ("modules", "layers")  # what methods must have in common to be compared


def build(desk: state.Desk, inputs: Sequence[gr.components.Component], address: gr.State, token: gr.State) -> None:
    """The panel; its handlers take all values of the page, so that the run above is the measure."""
    known = [(views.method_label(one), name) for name, one in desk.methods.items() if name != "split"]
    with gr.Accordion("Equal budget: methods with as many trainable parameters", open=False, elem_id="budget"):
        with gr.Row(elem_classes=["controls"]):
            methods = gr.Dropdown(known, value=[], multiselect=True, label="Methods", elem_id="budget-methods", scale=3)
            target = gr.Textbox(
                "", label="Trainable parameters", placeholder="as the run above", elem_id="budget-target", min_width=150
            )
            over = gr.Radio(list(OVER), value="rank", label="Solve for", elem_id="budget-over", min_width=170)
            solve = gr.Button("Make them equal", size="md", scale=0, min_width=150, elem_id="budget-solve")
            queue = gr.Button("Queue a run for each", size="md", scale=0, min_width=170, elem_id="budget-queue")
        told = ui.text("", "table", elem_id="budget-told")
    wanted = [methods, target, over]
    panel = Panel(desk)
    solve.click(panel.solve, [*inputs, address, *wanted], told, **ui.QUIET)
    queue.click(panel.queue, [*inputs, address, *wanted, token], told, trigger_mode="once", **ui.QUIET)


class Panel:
    """The answers of the panel."""

    def __init__(self, desk: state.Desk) -> None:
        self.desk = desk

    def solve(self, *given: Any) -> str:
        try:
            return table(self.shares(*given)[1])
        except StudioError as error:
            return ui.problem(error)

    def queue(self, *given: Any) -> str:
        """One run for each method and seed, otherwise as the page says."""
        *rest, token = given
        try:
            (data, seeds), found = self.shares(*rest)
            self.desk.studio.drafts.examine(RunSpec.parse({**data, "seed": seeds[0]}))
            specs = [
                RunSpec.parse({**data, "name": "", "method": share.row()["spec"], "seed": seed})
                for share in found
                for seed in seeds
            ]
            runs = [self.desk.studio.submit(s, request_id=state.request(f"budget {token}", s)) for s in specs]
        except StudioError as error:
            return ui.problem(error)
        return views.started(runs) + table(found)

    def shares(self, *given: Any) -> tuple[Any, list[Any]]:
        """The settings of the page, and the methods at its budget or at the one that was typed."""
        *page, methods, target, over = given
        data, seeds = self.desk.collect(state.Values(*page))
        if not methods:
            raise ConfigurationError("No method is chosen.", "Choose those that are to be equal.")
        mine = MethodSpec.parse(data["method"])
        place = {name: mine.options[name] for name in PLACE if name in mine.options}
        asked = [MethodSpec(name=name, options=self._placed(name, mine, place)) for name in methods]
        budget = {"like": mine} if not str(target or "").strip() else {"parameters": number(target)}
        found = self.desk.studio.equal_budget(
            asked,
            over=over if over in OVER else "rank",
            base=ModelSpec.parse(data.get("model") or {}),
            tasks=self.desk.task_count(data),
            **budget,
        )
        return (data, seeds), found

    def _placed(self, name: str, mine: MethodSpec, place: dict[str, Any]) -> dict[str, Any]:
        """The run's own options for its own method; of another one only where it stands."""
        if name == mine.name:
            return dict(mine.options)
        known = {option["name"] for option in self.desk.methods.get(name, {}).get("options", ())}
        return {key: value for key, value in place.items() if key in known}


def number(text: Any) -> int:
    """``2,000,000`` and ``2M`` as a whole number."""
    plain = str(text).strip().replace(",", "").replace("_", "").replace(" ", "")
    scale = {"k": 10**3, "m": 10**6, "g": 10**9}.get(plain[-1:].lower(), 1)
    try:
        return round(float(plain[:-1] if scale > 1 else plain) * scale)
    except (ValueError, OverflowError):
        raise ConfigurationError(f"{str(text)[:40]!r} is no number of parameters.", "Write 2000000 or 2M.") from None


def table(found: Sequence[Any]) -> str:
    """What was changed for each method, and what difference remains."""
    rows = "".join(_row(share) for share in found)
    heads = "".join(f'<th class="num">{name}</th>' for name in ("before", "changed", "trainable", "difference"))
    target = f"{found[0].target:,}" if found else ""
    return (
        f'<p class="num">The budget: {target} trainable parameters</p><div class="scroll"><table class="grid">'
        f"<thead><tr><th>method</th>{heads}<th></th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(share: Any) -> str:
    options, badge = quote(json.dumps(share.method.options)), ui.badge(share.row()["badge"])
    link = f'<a href="/experiment?method={quote(share.method.name)}&amp;options={options}">open</a>'
    return (
        f"<tr><th>{ui.escape(share.method.name)}{badge}</th><td class='num'>{share.was:,}</td>"
        f"<td class='num'>{share.option} {_told(share.before)} → <b>{_told(share.after)}</b></td>"
        f"<td class='num'>{share.trainable:,}</td>"
        f"<td class='num'>{share.difference:+,} <small>{share.difference / share.target:+.2%}</small></td>"
        f"<td>{link}</td></tr>"
    )


def _told(value: Any) -> str:
    return ui.escape("-".join(map(str, value)) if isinstance(value, list) else value)
