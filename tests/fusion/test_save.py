"""A fused model as an adapter folder: it loads, computes the same, and says what it lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from merging_support import adapters, apart, factors, fused, read, saved, setting, summed
from peft import PeftModel
from transformers import AutoModelForCausalLM

import core.fusion.save as saving
from core.adapters.attach import attach, load, save
from core.adapters.folders import CONFIG, read_config, tensor_shapes
from core.adapters.peft_lora import export_peft_lora
from core.errors import ConfigurationError
from core.fusion.candidate import Candidate
from core.fusion.delta import Delta, TaskVector
from core.fusion.methods import options_of
from core.fusion.read import Source, read_vectors
from core.fusion.save import has_dense, ranks_of, truncated
from core.fusion.save import save as save_fused
from core.fusion.setting import Fused
from core.models import load_base
from core.schema import MethodSpec, ModelSpec
from tests.support.adapted import move
from tests.support.tiny import tiny_base

LORA = MethodSpec(name="lora", options={"rank": 4})
MOST = 1e-4  # between logits, in float32


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_base(tmp_path_factory.mktemp("saving") / "base", layers=1))


def vectors_of(base: str, folder: Path, *methods: MethodSpec) -> list[TaskVector]:
    """Task vectors of adapters of these methods with tensors about as far from their start as training moves them."""
    spec = ModelSpec(base=base)
    sources = []
    for index, method in enumerate(methods):
        model = attach(load_base(spec, "cpu"), method, tasks=["echo"], seed=index)
        target = save(move(model, index, size=0.01), folder / f"run-{index}")
        sources.append(Source(f"run-{index}", target))
    return read_vectors(sources, spec)


@torch.no_grad()
def logits_differ(vectors: list[TaskVector], result: Fused, folder: Path, base: str) -> tuple[float, float]:
    """The largest difference between the saved adapter and the candidate, and between the candidate and the base."""
    spec = ModelSpec(base=base, dtype="float32")
    ids = torch.arange(3, 43).view(2, 20)
    plain = load_base(spec, "cpu")(input_ids=ids).logits
    candidate = Candidate(load_base(spec, "cpu"), list(result.deltas))
    candidate.deltas = result.deltas
    wanted = candidate.model(input_ids=ids).logits
    found = load(load_base(spec, "cpu"), folder, name="fused")(input_ids=ids).logits
    return (found - wanted).abs().max().item(), (wanted - plain).abs().max().item()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("task_arithmetic", {}),
        ("average", {"form": "dense"}),
        ("average", {"form": "svd"}),
        ("ties", {"form": "dense"}),
        ("dare_linear", {"form": "svd", "rank": 256}),
    ],
)
def test_on_the_bundled_base_the_saved_adapter_computes_what_the_deltas_do(method: str, options: dict, tmp_path: Path):
    base = ModelSpec().base
    vectors = vectors_of(base, tmp_path, LORA, MethodSpec(name="lora", options={"rank": 2}))
    result = fused(vectors, method, **options)
    saved(vectors, method, tmp_path / "run", base, **options)
    wrong, moved = logits_differ(vectors, result, tmp_path / "run" / "adapter", base)
    assert wrong < MOST < 0.01 < moved


def test_full_fine_tunes_and_mixed_runs_keep_whole_matrices_where_they_have_them(base: str, tmp_path: Path):
    full = MethodSpec(name="full", options={"modules": ["q_proj"]})
    vectors = vectors_of(base, tmp_path, LORA, full)
    rows = {row.path: row for row in saved(vectors, "average", tmp_path / "run", base)}
    assert {path for path, row in rows.items() if row.rank is None} == set(vectors[1].deltas)
    assert all(row.relative_error == 0 for row in rows.values())
    wrong, moved = logits_differ(vectors, fused(vectors, "average"), tmp_path / "run" / "adapter", base)
    assert wrong < MOST < moved
    assert all(row.rank is None for row in saved(vectors, "ties", tmp_path / "ties", base))


@pytest.mark.parametrize("form", ["auto", "svd"])
def test_a_table_of_tokens_is_saved_whole_and_the_tied_head_follows(form: str, base: str, tmp_path: Path):
    full = MethodSpec(name="full", options={"modules": ["q_proj"], "embeddings": True})
    vectors = vectors_of(base, tmp_path, LORA, full)
    rows = {row.path: row for row in saved(vectors, "average", tmp_path / "run", base, form=form, rank=32)}
    table = rows["model.embed_tokens"]
    assert (table.rank, table.relative_error) == (None, 0.0)
    assert (rows["model.layers.0.self_attn.q_proj"].rank is None) is (form == "auto")
    wrong, moved = logits_differ(vectors, fused(vectors, "average"), tmp_path / "run" / "adapter", base)
    assert wrong < MOST < moved


def test_auto_is_an_svd_of_the_runs_ranks_where_single_entries_changed(base: str, tmp_path: Path):
    vectors = vectors_of(base, tmp_path, LORA, MethodSpec(name="lora", options={"rank": 3}))
    result = fused(vectors, "ties")
    for row in saved(vectors, "ties", tmp_path / "run", base):
        values = torch.linalg.svdvals(result.deltas[row.path].dense().double())
        assert row.rank == 7
        assert 0 < row.relative_error == pytest.approx((values[7:].norm() / values.norm()).item(), rel=1e-3)
    wanted = {row.path: row.relative_error for row in saved(vectors, "ties", tmp_path / "run", base)}
    stored = read(tmp_path / "run" / "adapter", base)
    for path, delta in result.deltas.items():
        assert ((stored[path] - delta.up).norm() / delta.up.norm()).item() == pytest.approx(wanted[path], rel=1e-4)


def test_factors_that_would_hold_more_than_their_product_are_saved_as_the_product(base: str, tmp_path: Path):
    vectors = vectors_of(base, tmp_path, *[MethodSpec(name="lora", options={"rank": 16})] * 2)
    assert {row.rank for row in saved(vectors, "average", tmp_path / "auto", base)} == {None}
    assert {row.rank for row in saved(vectors, "average", tmp_path / "asked", base, form="concatenated")} == {32}
    auto, asked = (read(tmp_path / name / "adapter", base) for name in ("auto", "asked"))
    assert apart(auto, asked) < 1e-6


@pytest.mark.parametrize("low_rank", [True, False])
def test_the_truncation_is_the_best_of_its_rank(low_rank: bool):
    delta = factors(1, rank=12)[0].deltas["x"]
    kept = truncated(delta if low_rank else Delta(delta.dense()), 5)
    u, s, v = torch.linalg.svd(delta.dense().double())
    best = (u[:, :5] * s[:5]) @ v[:5]
    assert kept.up.shape[1] == 5 and kept.up.dtype == torch.float32
    torch.testing.assert_close(kept.dense().double(), best, atol=1e-4, rtol=1e-4)


def test_ranks_add_up_to_at_most_what_a_matrix_has():
    three = factors(3, rank=4)
    assert ranks_of(three) == {"x": 12, "y": 12}
    assert ranks_of(factors(20, rank=4)) == {"x": 40, "y": 40}
    full = TaskVector("run-4", {"x": Delta(torch.ones(40, 48))})
    assert ranks_of([*three, full]) == {"x": 40, "y": 12}
    assert has_dense([*three, full]) and not has_dense(three)


def test_few_cells_hold_all_projections(tmp_path: Path):
    base = ModelSpec().base
    vectors = vectors_of(base, tmp_path, LORA, MethodSpec(name="lora", options={"rank": 2, "modules": ["q_proj"]}))
    saved(vectors, "average", tmp_path / "run", base)
    cells = read_config(tmp_path / "run" / "adapter")["cells"]
    assert sorted((cell["rank"], cell["alpha"]) for cell in cells) == [(4, 4), (6, 6)]
    assert sum(len(cell["modules"]) for cell in cells) == len(vectors[0].deltas)


def test_the_config_says_method_options_tasks_and_base(base: str, tmp_path: Path):
    vectors = factors_on(base, tmp_path)
    saved(vectors, "dare_linear", tmp_path / "run", base, density=0.25, seed=9)
    config = json.loads((tmp_path / "run" / "adapter" / CONFIG).read_text("utf-8"))
    assert config["method"] == "dare_linear"
    assert config["options"]["density"] == 0.25
    assert config["options"]["seed"] == 9 and config["options"]["weights"] == [0.5, 0.5]
    assert config["base_model_name_or_path"] == base
    assert config["inference_mode"] is True


def factors_on(base: str, folder: Path) -> list[TaskVector]:
    return adapters(base, folder / "two", {"r": 4}, {"r": 4}).vectors()


def test_the_form_is_said_as_a_table(base: str, tmp_path: Path):
    vectors = factors_on(base, tmp_path)
    (tmp_path / "run").mkdir()
    job = setting(vectors, "average", tmp_path / "run", base, form="svd", rank=3)
    rows = save_fused(fused(vectors, "average"), job, options_of(job.spec.method))
    (table,) = job.sink.of("table")
    assert table["name"] == "form" and table["columns"] == ["path", "rank", "relative_error"]
    assert table["rows"] == [[row.path, 3, row.relative_error] for row in rows]


def test_a_fused_run_can_be_fused_and_exported_as_lora(base: str, tmp_path: Path):
    vectors = factors_on(base, tmp_path)
    saved(vectors, "task_arithmetic", tmp_path / "run", base)
    (again,) = read_vectors([Source("run-9", tmp_path / "run" / "adapter")], ModelSpec(base=base))
    wanted = summed(vectors, [0.5, 0.5])
    assert apart({path: delta.dense() for path, delta in again.deltas.items()}, wanted) < 1e-6
    assert all(delta.low_rank for delta in again.deltas.values())
    model = load(load_base(ModelSpec(base=base), "cpu"), tmp_path / "run" / "adapter", name="fused")
    export_peft_lora(model, tmp_path / "lora", "fused")
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "lora"))
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        torch.testing.assert_close(by_peft(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_whole_matrices_are_refused_as_factors(base: str, tmp_path: Path):
    vectors = factors_on(base, tmp_path)
    with pytest.raises(ConfigurationError, match="no sum of the runs' factors"):
        saved(vectors, "ties", tmp_path / "run", base, form="concatenated")
    assert list((tmp_path / "run").iterdir()) == []


def test_an_adapter_is_replaced_as_a_whole_or_not_at_all(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    vectors = factors_on(base, tmp_path)
    saved(vectors, "average", tmp_path / "run", base)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run" / "adapter").iterdir()}

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(saving.MixtureConfig, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="no space"):
        saved(vectors, "task_arithmetic", tmp_path / "run", base, coefficient=3.0)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run" / "adapter").iterdir()} == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["adapter"]


def test_what_is_saved_looks_like_what_training_saves(base: str, tmp_path: Path):
    model = attach(load_base(ModelSpec(base=base), "cpu"), LORA, tasks=["echo"])
    save(model, tmp_path / "trained")
    one = read_vectors([Source("run-1", tmp_path / "trained")], ModelSpec(base=base))
    saved(one, "task_arithmetic", tmp_path / "run", base)
    assert tensor_shapes(tmp_path / "run" / "adapter") == tensor_shapes(tmp_path / "trained")
    known = json.loads((tmp_path / "trained" / CONFIG).read_text("utf-8"))
    found = json.loads((tmp_path / "run" / "adapter" / CONFIG).read_text("utf-8"))
    assert known.keys() == found.keys()
    assert {name for name in known if known[name] != found[name]} <= {"method", "options", "cells", "tasks"}
