"""Equal budgets: what is set, what remains, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli import main
from core import catalog
from core.adapters.methods import presets
from core.errors import ConfigurationError
from core.schema import MethodSpec, ModelSpec
from core.studio import Studio


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    made = Studio(tmp_path_factory.mktemp("budget") / "home")
    yield made
    made.close()


def counted(studio: Studio, method: MethodSpec, tasks: int = 2) -> int:
    return catalog.trainable_parameters(method, catalog.shapes(ModelSpec(), studio.home.cache), tasks)


def with_rank() -> list[str]:
    return [name for name, preset in presets().items() if "rank" in preset.options.model_fields]


@pytest.mark.parametrize("name", with_rank())
def test_no_other_rank_of_any_method_comes_nearer(studio: Studio, name: str):
    target = counted(studio, MethodSpec(name=name)) * 3 // 2
    (share,) = studio.equal_budget([name], parameters=target, tasks=2)
    assert share.trainable == counted(studio, share.method) and share.difference == share.trainable - target
    assert {**share.method.options, "rank": 0} == {**share.asked.options, "rank": 0}, "nothing else is changed"
    for rank in range(max(1, share.after - 3), share.after + 4):
        other = MethodSpec(name=name, options={"rank": rank})
        try:
            assert abs(counted(studio, other) - target) >= abs(share.difference)
        except ConfigurationError:
            continue  # a rank that this method refuses


def test_a_method_is_the_budget_of_others(studio: Studio):
    like = MethodSpec(name="mosld", options={"modules": "all-linear"})
    found = studio.equal_budget(["lora", like], like=like, tasks=2)
    assert {share.target for share in found} == {counted(studio, like)}
    assert found[1].difference == 0 and found[1].after == 8


def test_experts_are_set_in_their_proportions(studio: Studio):
    asked = MethodSpec(name="mosld", options={"experts": [1, 2, 3, 4]})
    (share,) = studio.equal_budget([asked], parameters=2 * counted(studio, asked), over="experts")
    assert share.after == sorted(share.after) and sum(share.after) > 10 and len(share.after) == 4
    assert abs(share.difference) < 0.05 * share.target


def test_all_cells_of_a_split_are_turned_and_frozen_ones_stay(studio: Studio):
    cells = [{"modules": ["o_proj"], "frozen": True}, {"modules": ["q_proj"], "rank": 4}, {"modules": "all-linear"}]
    (share,) = studio.equal_budget([MethodSpec(name="split", cells=cells)], parameters=900_000)
    first, second, third = share.method.cells
    assert first == cells[0] and second["rank"] * 2 == pytest.approx(third["rank"], abs=1)
    assert share.trainable == counted(studio, share.method)


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("lora", {"parameters": 10}, "cannot have 10 trainable parameters: at least it has 8,192, with rank 1"),
        ("lora", {"parameters": 10**9}, "at most it has"),
        ("lora", {"parameters": 10**5, "over": "experts"}, "lora has no option experts"),
        ("lorra", {"parameters": 10**5}, "Did you mean lora"),
        ("lora", {}, "Give one of parameters and like"),
        ("lora", {"parameters": 10**5, "like": "mosld"}, "Give one of parameters and like"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(studio: Studio, method: str, arguments: dict, words: str):
    with pytest.raises(ConfigurationError, match=words):
        studio.equal_budget([method], **arguments)


def test_the_command_says_what_python_says(studio: Studio, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    home = ["--home", str(tmp_path / "home")]
    assert main(["budget", "lora", "mosld:top_k=1,experts=[2,4]", "--parameters", "600000", *home, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    asked = ["lora", MethodSpec(name="mosld", options={"top_k": 1, "experts": [2, 4]})]
    assert said["methods"] == [share.row() for share in studio.equal_budget(asked, parameters=600_000)]
    assert main(["budget", "lora", "--parameters", "600000", *home]) == 0
    assert "8 -> 73" in capsys.readouterr().out
    assert main(["budget", "mosld:top_k", "--parameters", "600000", *home]) == 1
    assert "no option" in capsys.readouterr().err
