"""Pages asked as a browser asks them: the page, its load handler, then its timer with what the tab holds by now."""

from __future__ import annotations

import html
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import httpx

CONFIG = re.compile(r"window\.gradio_config\s*=\s*(\{.*?\});?\s*</script>", re.S)


class Tab:
    """One open page. ``values``: component id -> what the tab shows; it stays open for as long as the object."""

    def __init__(self, client: httpx.Client, path: str) -> None:
        self._client, self.path = client, path
        self._session = uuid.uuid4().hex[:10]
        answer = client.get(path)
        answer.raise_for_status()
        found = CONFIG.search(answer.text)
        if found is None:
            raise ValueError(f"{path} is not a page of the studio")
        self._config = json.loads(found[1])
        self._parts = {part["id"]: part for part in self._config["components"]}
        self.values = {number: part["props"].get("value") for number, part in self._parts.items()}
        self.choices: dict[int, list[Any]] = {}
        self._fire("load")

    def tick(self) -> None:
        self._fire("tick")

    def press(self, name: str, given: Mapping[int, Any]) -> Iterator[str]:
        """Send what fills the component ``name`` first through the queue, with ``given`` in the places of its inputs;
        a word for everything that comes, and at the end the tab shows what the stream ended with."""
        first = self._number(name)
        one = next(found for found in self._config["dependencies"] if found["outputs"][:1] == [first])
        inputs = [None if self._kind(number) == "state" else self.values.get(number) for number in one["inputs"]]
        body = {"data": [given.get(place, value) for place, value in enumerate(inputs)], "fn_index": one["id"]}
        joined = self._client.post("/gradio_api/queue/join", json={**body, "session_hash": self._session})
        joined.raise_for_status()
        wanted = {"session_hash": self._session}
        with self._client.stream("GET", "/gradio_api/queue/data", params=wanted) as lines:
            for line in lines.iter_lines():
                word = json.loads(line[5:]) if line.startswith("data:") else {}
                if word.get("msg") == "process_generating":
                    yield "more"
                if word.get("msg") in ("process_completed", "unexpected_error"):
                    for number, value in zip(one["outputs"], word.get("output", {}).get("data") or [], strict=False):
                        self._take(number, value)
                    return

    def value(self, name: str) -> Any:
        """What the component with this ``elem_id`` shows."""
        return self.values[self._number(name)]

    def offered(self, name: str) -> list[Any]:
        """The choices of a menu."""
        return self.choices.get(self._number(name), [])

    def shown(self) -> str:
        """Everything that is HTML on the page."""
        return "\n".join(value for value in self.values.values() if isinstance(value, str))

    def _number(self, name: str) -> int:
        return next(number for number, part in self._parts.items() if part["props"].get("elem_id") == name)

    def _fire(self, event: str) -> None:
        query = self.path.partition("?")[2]
        for one in self._config["dependencies"]:
            if not one["backend_fn"] or not any(kind == event for _, kind in one["targets"]):
                continue
            inputs = [None if self._kind(number) == "state" else self.values.get(number) for number in one["inputs"]]
            body = {"data": inputs, "fn_index": one["id"], "session_hash": self._session, "event_data": None}
            answer = self._client.post(
                f"/gradio_api/run/predict{'?' + query if query else ''}", json={**body, "trigger_id": None}
            )
            answer.raise_for_status()
            for number, given in zip(one["outputs"], answer.json()["data"], strict=True):
                self._take(number, given)

    def _kind(self, number: int) -> str:
        return self._parts[number]["type"] if number in self._parts else "state"

    def _take(self, number: int, given: Any) -> None:
        if not isinstance(given, dict) or given.get("__type__") != "update":
            self.values[number] = given
            return
        if "value" in given:
            self.values[number] = given["value"]
        if "choices" in given:
            self.choices[number] = given["choices"]


ROW = re.compile(r"<tr>.*?</tr>", re.S)
RUN = re.compile(r"run=(run-\d+)\"")
STATE = re.compile(r'class="state (\w+)"')
HEAD = re.compile(r'<span class="num">(run-\d+)</span>.*?<em class="state (\w+)">', re.S)
JOB = re.compile(r'([\w-]+) <em class="state (\w+)">')
LABEL = re.compile(r"^(run-\d+) · ")
STATES = ("queued", "starting", "running", "cancelling", "failed", "cancelled", "lost")
States = dict[tuple[str, str], str]  # (run, job) -> state; the job is "" for the run's own


def home_states(tab: Tab) -> States:
    return home_rows(str(tab.value("home-runs") or ""))


def home_rows(text: str) -> States:
    found = {}
    for row in ROW.findall(text):
        run, state = RUN.search(row), STATE.search(row)
        if run and state:
            found[run[1], ""] = state[1]
    return found


def list_states(tab: Tab) -> States:
    return listed(tab.value("runs-list") or {})


def listed(found: dict[str, Any]) -> States:
    return {(run["id"], ""): run["state"] for group in found.get("groups", []) for run in group["runs"]}


def view_states(tab: Tab) -> States:
    """The run that the tab shows, and its jobs."""
    return viewed(tab.shown())


def viewed(text: str) -> States:
    head = HEAD.search(text)
    if head is None:
        return {}
    run = head[1]
    rest = text.partition("<dt>Jobs</dt>")[2].partition("</dd>")[0]
    jobs = {(run, name): state for name, state in JOB.findall(html.unescape(rest))}
    return {(run, ""): head[2], **jobs}


def menu_states(tab: Tab, name: str) -> States:
    """A menu of runs names the state of each that is not done."""
    return states_of_labels(label for label, _ in tab.offered(name))


def states_of_labels(labels: Iterable[str]) -> States:
    found = {}
    for label in labels:
        if run := LABEL.match(label):
            parts = label.split(" · ")
            found[run[1], ""] = next((part for part in parts[1:] if part in STATES), "done")
    return found
