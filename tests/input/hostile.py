"""What a hostile or stale browser may send: every handler of the pages, called with values that no page shows."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio.components import Component

LONG = "ä" * 10_000
TEXTS = [
    None, "", " ", LONG, "\0", "🙂 مرحبا \u202e\u200b", "../../etc/passwd", "run-999999", "-1", "nan", "1e999",
    "'; DROP TABLE runs; --", "run-99999999999999999999999",
    "<script>alert(1)</script>", "{", "method: {name: [}", "a: &a [*a]", "٣", "run-1:", ":", "http://127.0.0.1:1/x",
]  # fmt: skip
NUMBERS = [None, 0, -1, 0.5, 1e308, -1e308, float("nan"), float("inf"), 2**70]
DEEP: Any = "x"
for _ in range(100):
    DEEP = [DEEP]
JSON = [
    None, "", "x", 7, -1.5, True, [], {}, [None], [[]], {"values": None}, {"values": []}, {"values": {"x": {}}},
    {"": ""}, {"cells": None}, {"cells": {"0": 1}}, {"data": {}}, {"data": {"tasks": 5, "method": []}},
    {"at": "x"}, {"at": 10**30}, {"stops": [1], "at": 0}, {"values": 5, "base": 5, "given": 5},
    {"value": {}}, {"rows": 3, "cols": "x"}, {"runs": {"a": 1}}, DEEP, {"given": 3, "values": {"a": 1}},
]  # fmt: skip
SEVERAL = [None, [], ["nope", "nope"], [LONG], ["run-1", "run-999"], ["", "\0"]]
# What passes Gradio's own checks. The server keeps a State itself: no browser can say what it holds.
OF_KIND: dict[str, list[Any]] = {
    "Textbox": TEXTS, "Code": TEXTS, "Number": NUMBERS, "Slider": NUMBERS[1:], "Checkbox": [None, True, False],
    "Radio": TEXTS, "CheckboxGroup": SEVERAL[1:], "File": [None, [], ["/etc/passwd"], ["/nowhere"], [LONG]],
    "State": [],
}  # fmt: skip
EVENTS = [
    {},
    {"index": None},
    {"index": [1]},
    *({"at": one, "value": one, "index": one, "cell": one} for one in JSON[:9]),
]


class Visit:
    """A page as a browser has it open: the values of its components after its load handlers answered."""

    def __init__(self, demo: gr.Blocks, path: str, query: dict[str, str]) -> None:
        self.query = query
        name = path.strip("/")
        self.fns = [fn for fn in demo.fns.values() if fn.fn is not None and (fn.page or "") == name]
        self.values: dict[int, Any] = {}
        self.choosable: set[int] = set()  # lists whose choices came from the server: one may be gone by now
        for fn in self.fns:
            if any(event == "load" for _, event in fn.targets):
                self.take(fn, self.call(fn, [self.value(one) for one in fn.inputs]))

    def value(self, component: Component) -> Any:
        default = getattr(component, "value", None)
        return self.values.get(component._id, default() if callable(default) else default)

    def take(self, fn: Any, answer: Any) -> None:
        given = answer if isinstance(answer, list | tuple) and len(fn.outputs) != 1 else [answer]
        for component, value in zip(fn.outputs, given, strict=False):
            if isinstance(value, dict) and value.get("__type__") == "update":
                if "choices" in value:
                    self.choosable.add(component._id)
                if "value" in value:
                    self.values[component._id] = value["value"]
            else:
                self.values[component._id] = value

    def wrong(self, component: Component) -> list[Any]:
        """Values that a browser can send for a component although no page offers them."""
        kind = type(component).__name__
        if kind == "Dropdown":
            fixed = component.choices and component._id not in self.choosable and not component.allow_custom_value
            return [None] if fixed else SEVERAL if component.multiselect else TEXTS
        if kind == "Radio" and component._id not in self.choosable:
            return [None]
        return OF_KIND.get(kind, JSON)

    def call(self, fn: Any, values: list[Any], event: dict[str, Any] | None = None) -> Any:
        """Run a handler as Gradio does; what it raises is what the person would be shown as a raw error."""
        given = list(values)
        for place, parameter in enumerate(inspect.signature(fn.fn).parameters.values()):
            kind = str(parameter.annotation)
            if "Request" in kind:
                given.insert(place, request(self.query))
            elif "EventData" in kind:
                given.insert(place, gr.EventData(None, event or {}))
        answer = fn.fn(*given)
        if inspect.isgenerator(answer):
            steps = [step for step, _ in zip(answer, range(5), strict=False)]
            answer.close()
            return steps[-1] if steps else None
        return answer

    def attempts(self, chance: random.Random, each: int) -> Iterator[tuple[Any, list[Any], dict[str, Any]]]:
        """(handler, values, event): every value wrong by itself, ``each`` times, and all of them at once.

        With ``each`` 0 one of them alone and all at once, and a function that several buttons have only once.
        """
        seen: set[str] = set()
        for fn in self.fns:
            if not each and fn.name in seen and fn.name != "<lambda>":
                continue
            seen.add(fn.name)
            usual = [self.value(one) for one in fn.inputs]
            places = list(enumerate(fn.inputs))
            for place, component in places if each else chance.sample(places, min(1, len(places))):
                wrong = self.wrong(component)
                for value in chance.sample(wrong, min(each or 1, len(wrong))):
                    yield fn, [*usual[:place], value, *usual[place + 1 :]], chance.choice(EVENTS)
            for _ in range(each or 1):
                worst = [chance.choice(self.wrong(one) or [value]) for one, value in zip(fn.inputs, usual, strict=True)]
                yield fn, worst, chance.choice(EVENTS)


def request(query: dict[str, str]) -> Any:
    return SimpleNamespace(
        query_params=query,
        headers={},
        cookies={},
        username=None,
        session_hash="hostile",
        client=SimpleNamespace(host="x"),
    )
