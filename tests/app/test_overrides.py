from __future__ import annotations

import pytest

from core import overrides
from core.errors import ConfigurationError
from core.schema import RunSpec

SPEC = RunSpec.parse({"tasks": [{"dataset": "a"}, {"dataset": "b"}], "method": {"name": "mosld"}})


def changed(*assignments: str) -> RunSpec:
    return overrides.apply(SPEC, overrides.parse(assignments))


def test_values_are_read_as_yaml():
    spec = changed("train.steps=7", "tags=[a, b]", "evaluation.base=false", "notes=a=b", "tasks.1.test_rows=5")
    assert (spec.train.steps, spec.tags, spec.evaluation.base, spec.notes) == (7, ["a", "b"], False, "a=b")
    assert [task.test_rows for task in spec.tasks] == [None, 5]


def test_options_of_a_method_are_made_where_there_are_none():
    assert changed("method.options.rank=4").method.options == {"rank": 4}


def test_the_spec_itself_is_unchanged():
    before = SPEC.model_dump()
    changed("train.steps=7", "tasks.0.dataset=c")
    assert SPEC.model_dump() == before


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.steps", "key.path=value"),
        ("train.stepz=3", "train.stepz is not a setting"),
        ("tasks.2.dataset=x", "there are 2 items"),
        ("seed.more=1", "seed has no settings of its own"),
        ("train.steps=[1", "not valid YAML"),
        ("train.steps=-1", "train.steps"),
    ],
)
def test_wrong_changes_are_refused_with_their_place(assignment: str, message: str):
    with pytest.raises(ConfigurationError, match=message.replace(".", r"\.")):
        changed(assignment)


def test_differences_are_the_settings_that_are_not_equal_everywhere():
    other = changed("method.name=lora", "train.learning_rate=0.01", "name=other")
    found = overrides.differences({"one": SPEC, "two": other})
    assert found == {
        "method.name": {"one": "mosld", "two": "lora"},
        "train.learning_rate": {"one": 1e-3, "two": 0.01},
    }
