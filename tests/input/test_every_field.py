"""Every field of every schema refuses what it cannot take, by its dotted name and with what to do."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from core.adapters.cells import Cell
from core.adapters.methods import presets, resolve
from core.adapters.words import WORDS
from core.chat.settings import Sampling
from core.data.prepare import Options
from core.data.templates import PromptTemplate
from core.errors import StudioError
from core.fusion.methods import fusion_methods
from core.schema import EvaluationSpec, MethodSpec, ModelSpec, RunSpec, TaskSpec, TrainSpec

HUGE = 10**400
LONG = "x" * 100_000
NO_NUMBER = ["many", "", [], {}, math.nan, math.inf, -math.inf, HUGE]
WRONG: dict[Any, list[Any]] = {
    int: [*NO_NUMBER, 1.5, -(10**30)],
    float: [*NO_NUMBER, -1e300],
    bool: ["perhaps", 2, [], {}, math.nan],
    str: [5, True, [], {}, "\ud800"],
    list: ["one", 5, True, {}, [[]], [None]],
    dict: ["one", 5, True, [], [[]]],
}
PARTS: dict[str, type[BaseModel]] = {
    "": RunSpec, "model": ModelSpec, "tasks.0": TaskSpec, "tasks.0.template": PromptTemplate, "method": MethodSpec,
    "train": TrainSpec, "evaluation": EvaluationSpec,
}  # fmt: skip


def kinds(annotation: Any) -> list[Any]:
    """The plain kinds that a field takes."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in kinds(part)]
    if origin is Literal:
        return [Literal]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [dict]
    return [origin or annotation]


def wrong(field: Any) -> list[Any]:
    """Values that are none of what a field takes."""
    found = kinds(field.annotation)
    if Literal in found:
        return ["nope", 5, [], {}, LONG, *([] if type(None) in found else [None])]
    known = [kind for kind in found if kind in WRONG]
    values = [value for value in WRONG[known[0]] if known] if len(known) == 1 else [{}, math.nan] if known else []
    values += [] if type(None) in found or not known else [None]
    return [LONG, *values] if known == [str] and any(hasattr(one, "max_length") for one in field.metadata) else values


def within(path: str, value: Any) -> dict[str, Any]:
    """A run with one value somewhere inside."""
    spec: dict[str, Any] = {"tasks": [{"dataset": "d"}]}
    *parents, last = path.split(".")
    at: Any = spec
    for parent in parents:
        at = at[int(parent)] if isinstance(at, list) else at.setdefault(parent, {})
    at[last] = value
    return spec


def asked(method: dict[str, Any]) -> MethodSpec:
    """A method as a run asks for it."""
    return RunSpec.parse({"tasks": [{"dataset": "d"}], "method": method}).method


def complaint(act: Callable[[], Any], name: str) -> str:
    """What is wrong with how a value is refused; empty where nothing is."""
    try:
        act()
    except StudioError as error:
        said = str(error)
        if name not in error.message:
            return f"{name} is not named: {said[:200]}"
        return "" if error.hint and len(said) < 1500 and "pydantic" not in said else f"{name}: {said[:300]}"
    except Exception as error:
        return f"{name}: {type(error).__name__}: {str(error)[:200]}"
    return f"{name}: accepted"


def complaints(model: type[BaseModel], act: Callable[[str, Any], Any], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        for value in wrong(field):
            found = complaint(lambda name=name, value=value: act(name, value), f"{prefix}{name}")
            if found:
                yield f"{str(value)[:30]!r}: {found}"


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part or "run")
def test_fields_of_a_run(part):
    prefix = f"{part}." if part else ""
    found = complaints(PARTS[part], lambda name, value: RunSpec.parse(within(f"{prefix}{name}", value)), prefix)
    assert list(found) == []


@pytest.mark.parametrize("method", presets())
def test_options_of_a_method(method):
    def act(name: str, value: Any) -> None:
        given = {"cells": value} if name == "cells" else {"options": {name: value}}
        resolve(asked({"name": method, **given}))

    prefix = "" if method == "split" else "method.options."
    assert list(complaints(presets()[method].options, act, prefix)) == []


@pytest.mark.parametrize("method", fusion_methods())
def test_options_of_a_fusion_method(method):
    options = fusion_methods()[method].options
    found = complaints(options, lambda name, value: options.parse({name: value}, "method.options"), "method.options.")
    assert list(found) == []


def test_fields_of_a_cell():
    def act(name: str, value: Any) -> None:
        resolve(asked({"name": "split", "cells": [{"modules": ["q_proj"], name: value}]}))

    assert list(complaints(Cell, act, "method.cells.0.")) == []


@pytest.mark.parametrize(("part", "word"), [(part, word) for part in WORDS for word in WORDS[part]])
def test_options_of_a_word(part, word):
    def act(name: str, value: Any) -> None:
        cell = {"modules": ["q_proj"], part: {"word": word, name: value}}
        resolve(asked({"name": "split", "cells": [cell]}))

    found = list(complaints(WORDS[part][word], act, ""))
    assert [one for one in found if "word" not in one.split(":")[1]] == []


@pytest.mark.parametrize("model", [Sampling, Options])
def test_settings_of_answers_and_uploads(model):
    found = complaints(model, lambda name, value: model.parse({name: value}), "")
    assert [one for one in found if not one.endswith((" validation: accepted", " test: accepted"))] == []


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part or "run")
def test_an_unknown_name_brings_the_nearest_known_one(part):
    prefix = f"{part}." if part else ""
    for name in PARTS[part].model_fields:
        written = name[:-2] + name[-1] + name[-2] if len(name) > 4 and name[-1] != name[-2] else f"{name}s"
        if written in PARTS[part].model_fields:
            continue
        with pytest.raises(StudioError) as caught:
            RunSpec.parse(within(f"{prefix}{written}", 1))
        assert f"{prefix}{written} is not a setting" in caught.value.message
        assert f"Did you mean {name}?" in caught.value.hint


def test_an_unknown_option_brings_the_nearest_known_one():
    for method, preset in presets().items():
        for name in preset.options.model_fields:
            with pytest.raises(StudioError, match=f"method.options.{name}x is not a setting") as caught:
                resolve(MethodSpec(name=method, options={f"{name}x": 1}))
            assert "Did you mean" in caught.value.hint


def test_long_texts_in_every_script_are_kept_as_they_are():
    texts = ["é" * 10_000, "🙂" * 10_000, "\u202eمرحبا" * 1000, "a\u200bb" * 3000]
    for text in texts:
        spec = RunSpec.parse({"tasks": [{"dataset": "d", "instruction": text}], "notes": text})
        assert RunSpec.from_yaml(spec.to_yaml()) == spec
        with pytest.raises(StudioError, match=r"^name is .*120 characters"):
            RunSpec.parse({"tasks": [{"dataset": "d"}], "name": text})
        with pytest.raises(StudioError, match="tags.*60 characters"):
            RunSpec.parse({"tasks": [{"dataset": "d"}], "tags": [text]})
