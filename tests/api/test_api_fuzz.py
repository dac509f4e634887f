"""Whatever a call brings, the answer is an answer or a refusal in a sentence: never a fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from core import children
from core.calls import CALLS, Call
from core.errors import ConfigurationError
from tests.api.conftest import OWN, bare, client
from tests.support import seed
from tests.support.seed import QuietStudio

ANSWERS = (200, 400, 404, 422)
KNOWN = [
    "run-1", "1", "run-4:topic", "run-7", "reviews", "topic", "test", "end", "loss", "lora", "mosld", "base", "auto",
    "task_arithmetic", "coefficients", "step-60", "accuracy", "rank", "0,1", "{}", "- x", "tasks: [{dataset: reviews}]",
    "hub:a/b", "0123456789abcdef/a.csv", "../x", "train.steps=3", "=", "a=b=c", "", " ", "é\u202e", "'; --", "%00",
]  # fmt: skip
CHANGED = ["train.steps", "method.name", "method.options.rank", "tasks.0.task", "seed", "input", "label", "a.csv"]
SPEC = seed.spec("reviews", "lora").model_dump(mode="json")
words = st.sampled_from(KNOWN) | st.text(max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.sampled_from(list(SPEC)), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def specs(draw: st.DrawFn) -> Any:
    """A run that is right but for one or two values somewhere in it."""
    spec = json.loads(json.dumps(SPEC))
    for _ in range(draw(st.integers(1, 2))):
        place: Any = spec
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            if not isinstance(place[key], dict | list) or not place[key] or draw(st.booleans()):
                place[key] = draw(values)
                break
            place = place[key]
    return spec


def fitting(name: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of the right type, and often the name of something that is there."""
    if name == "spec":
        return specs()
    if name in ("run", "parent", "baseline"):
        return st.sampled_from([f"run-{number}" for number in range(1, 11)]) | words
    if "anyOf" in schema:
        return st.one_of(*(fitting("", one) for one in schema["anyOf"]))
    if schema.get("type") == "array":
        return st.lists(fitting("run" if name == "runs" else "", schema["items"]), min_size=1, max_size=3)
    pools = {"integer": st.integers(0, 40), "number": st.floats(0, 1), "boolean": st.booleans(), "string": words}
    if schema.get("type") == "object":
        return st.dictionaries(words | st.sampled_from(CHANGED), scalars | words, max_size=3)
    return pools.get(schema.get("type", ""), values)


@st.composite
def bodies(draw: st.DrawFn, call: Call) -> dict[str, Any]:
    found: dict[str, Any] = {}
    known = call.parameters.model_json_schema()
    for name in call.types:
        if name in known.get("required", ()) or draw(st.booleans()):
            found[name] = draw(values if not draw(st.integers(0, 7)) else fitting(name, known["properties"][name]))
    if not draw(st.integers(0, 5)):
        found |= draw(st.dictionaries(st.text(max_size=6), values, max_size=2))
    return found


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A studio with runs of every state, without the Hub and without processes of its own; faults are raised here."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ConfigurationError("No child process in this test.")

    studio = QuietStudio(seed.few(tmp_path_factory.mktemp("fuzz") / "home").home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(children, "call", refuse)
        yield client(bare(studio), OWN)
    studio.close()


def check(answer: Any) -> None:
    assert answer.status_code in ANSWERS, answer.text
    assert "Traceback" not in answer.text
    if answer.status_code != 200:
        told = answer.json()["error"]
        assert told["message"].strip() and set(told) == {"message", "hint", "kind"}


@pytest.mark.parametrize("call", [call for call in CALLS.values() if call.types], ids=lambda call: call.name)
def test_no_call_fails_at_what_it_is_given(caller: TestClient, call: Call):
    @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(bodies(call))
    def tried(body: dict[str, Any]) -> None:
        check(send(caller, call, body))

    tried()


@pytest.mark.long
@pytest.mark.parametrize("call", [call for call in CALLS.values() if call.types], ids=lambda call: call.name)
def test_no_call_fails_at_much_that_it_is_given(caller: TestClient, call: Call):
    @settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(bodies(call))
    def tried(body: dict[str, Any]) -> None:
        check(send(caller, call, body))

    tried()


def send(caller: TestClient, call: Call, body: dict[str, Any]) -> Any:
    if call.verb == "GET":
        flat = [(name, one) for name, given in body.items() for one in (given if isinstance(given, list) else [given])]
        asked = [(name, str(one)) for name, one in flat if str(one).isprintable()]
        return caller.get(f"/api/v1/{call.name}", params=asked)
    return caller.post(f"/api/v1/{call.name}", content=json.dumps(body))
