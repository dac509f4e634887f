"""Angles, opposite signs and sizes of task vectors, against whole matrices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from merging_support import adapters, factors

from core.fusion.conflicts import conflicts, told
from core.fusion.delta import Delta, TaskVector
from core.fusion_results import conflicts as conflicts_of
from core.home import Home, read_json, write_json
from tests.support.tiny import tiny_base


def mixed() -> list[TaskVector]:
    """Two adapters and a full fine-tune."""
    whole = {
        path: Delta(torch.randn(40, 48, generator=torch.Generator().manual_seed(seed)))
        for seed, path in enumerate(("x", "y"))
    }
    return [*factors(2), TaskVector("run-3", whole)]


def flat(vector: TaskVector, *paths: str) -> torch.Tensor:
    return torch.cat([vector.deltas[path].dense().flatten().double() for path in paths])


@pytest.mark.parametrize("paths", [("x",), ("x", "y")])
def test_cosines_and_norms_from_factors_are_those_of_whole_matrices(paths: tuple[str, ...]):
    vectors = mixed()
    answer = told(vectors)
    part = answer["projections"][0] if paths == ("x",) else answer["all"]
    vectors = [flat(vector, *paths) for vector in vectors]
    wanted = torch.stack([torch.stack([torch.cosine_similarity(a, b, dim=0) for b in vectors]) for a in vectors])
    torch.testing.assert_close(torch.tensor(part["cosine"], dtype=torch.double), wanted, atol=1e-5, rtol=0)
    assert part["norm"] == pytest.approx([vector.norm().item() for vector in vectors], rel=1e-5)


@pytest.mark.parametrize("paths", [("x",), ("x", "y")])
def test_sign_disagreement_is_counted_where_both_are_there(paths: tuple[str, ...]):
    vectors = mixed()
    holes = vectors[2].deltas["x"].up.clone()
    holes[:10] = 0
    vectors[2] = TaskVector("run-3", vectors[2].deltas | {"x": Delta(holes)})
    answer = told(vectors)
    part = answer["projections"][0] if paths == ("x",) else answer["all"]
    vectors = [flat(vector, *paths) for vector in vectors]
    for i, one in enumerate(vectors):
        for j, other in enumerate(vectors):
            both = (one != 0) & (other != 0)
            assert part["sign"][i][j] == pytest.approx((one[both] * other[both] < 0).double().mean().item())


def test_opposite_equal_and_missing_vectors():
    one = factors(1)[0]
    opposite = TaskVector("run-2", {path: delta.scaled(-1) for path, delta in one.deltas.items()})
    elsewhere = TaskVector("run-3", {"y": one.deltas["y"]})
    answer = told([one, opposite, elsewhere])
    assert answer["runs"] == ["run-1", "run-2", "run-3"]
    x, y = answer["projections"]
    assert [x["path"], y["path"]] == ["x", "y"]
    assert x["cosine"][0][1] == pytest.approx(-1) and x["sign"][0][1] == 1 and x["sign"][0][0] == 0
    assert x["cosine"][0][2] is None and x["sign"][0][2] is None and x["norm"][2] == 0
    assert y["cosine"][0][2] == pytest.approx(1) and y["sign"][0][2] == 0
    json.dumps(answer, allow_nan=False)


def test_of_large_projections_evenly_spaced_rows_stand_for_all():
    vectors = factors(2, shape=(400, 48))
    whole = conflicts(vectors, "x")
    some = conflicts(vectors, "x", entries=100 * 48)
    torch.testing.assert_close(some.inner, whole.inner)
    assert some.shared[0, 1].item() == pytest.approx(whole.shared[0, 1].item())
    assert some.told()["sign"][0][1] == pytest.approx(whole.told()["sign"][0][1], abs=0.05)
    assert 0 < some.opposed[0, 1] != whole.opposed[0, 1]


def test_a_child_process_measures_adapter_folders_once_until_one_changes(tmp_path: Path):
    base = str(tiny_base(tmp_path / "base", layers=1))
    two = adapters(base, tmp_path / "two", {"r": 4}, {"r": 4})
    home = Home.open(tmp_path / "home")
    names, expected = [str(two.folder / name) for name in two.names], told(two.vectors())
    write_json(two.folder / "spec.json", {"origin": "a test", "model": {"base": base}})
    found = conflicts_of(names, home)
    assert found.overall_cosine.tolist() == expected["all"]["cosine"] and found.sources == names
    (kept,) = home.cache.glob("conflicts-*.json")
    data = read_json(kept)
    write_json(kept, data | {"runs": ["kept", "kept"]})
    assert conflicts_of(names, home).sources == ["kept", "kept"]
    weights = Path(names[0]) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert conflicts_of(names, home).sources == names
