"""The method as a user meets it: options, what is fused and realigned, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.catalog import options_of as fields_of
from core.data.store import DatasetStore
from core.errors import ConfigurationError, DataError
from core.fusion.candidate import Candidate
from core.fusion.combine import weighted_sum
from core.fusion.delta import Delta, TaskVector
from core.fusion.methods import fusion_method, options_of
from core.fusion.methods.r_mtllmf import ABLATION, split_arm
from core.fusion.read import Source, read_vectors
from core.fusion.resilient.protection import embedding_paths
from core.fusion.save import save
from core.jobs.sinks import Cancelled
from core.schema import MethodSpec
from tests.fusion.resilient_support import TASKS, fuse, messages, setting, small_store, trained_vectors
from tests.support.tiny import tiny_base

METHOD = fusion_method("r_mtllmf")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_base(tmp_path_factory.mktemp("resilient") / "base")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DatasetStore:
    return small_store(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def vectors(base: Path, store: DatasetStore) -> list[TaskVector]:
    return trained_vectors(base, store, steps=10)


def test_results_are_labelled_as_the_studio_s_own_specification():
    assert METHOD.badge == "R-MTLLMF-inspired, studio specification"


def test_every_option_can_be_drawn_in_a_form():
    assert "json" not in {field["type"] for field in fields_of(METHOD.options)}
    assert all(field["help"] for field in fields_of(METHOD.options))


def test_by_default_embeddings_are_frozen_and_the_model_is_realigned_after_10_db(base, store, vectors, tmp_path: Path):
    given = setting(base, store, vectors, tmp_path)
    fused = fuse(given)
    assert fused.facts["relative_mse"] == pytest.approx(0.1, rel=0.05)
    assert fused.facts["weights"] == [0.4] * 3 and fused.facts["protected_share"] == 0
    assert 1 <= fused.step <= 50
    assert any(message.startswith("freeze_embed has no effect by construction") for message in messages(given))
    assert any(message.startswith("Realigning: loss of the held-out shots") for message in messages(given))
    points = given.sink.of("metrics")
    assert points and all(set(point["values"]) == {"loss", "validation"} for point in points)
    phases = {event["phase"] for event in given.sink.of("progress")}
    assert phases == {"realigning"}
    (table,) = [event for event in given.sink.of("table") if event["name"] == "coefficients"]
    assert table["columns"] == ["run", "all"] and table["rows"] == [[name, 0.4] for name in TASKS]


@pytest.mark.parametrize("transmission", ["delta", "factors"])
def test_check_2_the_ideal_channel_is_task_arithmetic_bitwise(base, store, vectors, tmp_path, transmission: str):
    options = {"snr": None, "realign": False, "transmission": transmission, "weights": [0.2, 0.4, 0.6]}
    fused, plain = fuse(setting(base, store, vectors, tmp_path, **options)), weighted_sum(vectors, [0.2, 0.4, 0.6])
    task_arithmetic = fusion_method("task_arithmetic")
    other = setting(base, store, vectors, tmp_path)
    same = task_arithmetic.fuse(other, task_arithmetic.options.parse({"weights": [0.2, 0.4, 0.6]}))
    for path, delta in plain.items():
        for found in (fused.deltas[path], same.deltas[path]):
            assert torch.equal(found.up, delta.up) and torch.equal(found.down, delta.down)


def test_noise_on_factors_keeps_factors_and_noise_on_updates_needs_whole_matrices(base, store, vectors, tmp_path):
    for transmission, low_rank, form in (("factors", True, "auto"), ("delta", False, "dense")):
        given = setting(base, store, vectors, tmp_path, transmission=transmission, steps=2)
        assert options_of(given.spec.method).form == form
        fused = fuse(given)
        assert all(delta.low_rank == low_rank for delta in fused.deltas.values())
    assert options_of(MethodSpec(name="r_mtllmf", options={"snr": None})).form == "auto"
    assert options_of(MethodSpec(name="r_mtllmf", options={"form": "svd"})).form == "svd"


@pytest.mark.parametrize("transmission", ["delta", "factors"])
def test_what_is_saved_is_what_was_fused(base, store, vectors, tmp_path, transmission: str):
    """Noise and realignment survive saving: no decomposition filters them out."""
    given = setting(base, store, vectors, tmp_path, transmission=transmission, steps=5, learning_rate=1e-3)
    fused = fuse(given)
    rows = save(fused, given, options_of(given.spec.method))
    assert all(row.relative_error == 0 for row in rows)
    (vector,) = read_vectors([Source("fused", given.folder.adapter)], given.spec.model)
    assert vector.tasks == TASKS
    for path, delta in fused.deltas.items():
        assert torch.allclose(vector.deltas[path].dense(), delta.dense(), atol=1e-6)


def test_an_output_head_of_its_own_is_protected_with_the_embeddings(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_base(tmp_path / "tied"), tie_word_embeddings=False)
    paths = ["model.embed_tokens", "lm_head", "model.layers.0.mlp.up_proj"]
    assert embedding_paths(Candidate(AutoModelForCausalLM.from_config(config), paths)) == frozenset(paths[:2])


def test_the_seed_alone_draws_the_noise(base, store, vectors, tmp_path):
    first, same, other = (fuse(setting(base, store, vectors, tmp_path, realign=False, seed=s)) for s in (0, 0, 1))
    for path, delta in first.deltas.items():
        assert torch.equal(delta.up, same.deltas[path].up) and not torch.equal(delta.up, other.deltas[path].up)


def test_protected_tasks_arrive_clean(base, store, vectors, tmp_path):
    options = {"protection": "task_protect", "protected_tasks": ["mood", "next"], "realign": False, "coefficient": 1.0}
    fused = fuse(setting(base, store, vectors, tmp_path, **options))
    plain = weighted_sum(vectors, [1.0] * 3)
    colour = vectors[1]
    noise = {path: fused.deltas[path].dense() - delta.dense() for path, delta in plain.items()}
    energy = sum(float(n.double().square().sum()) for n in noise.values())
    sent = sum(float(delta.dense().double().square().sum()) for delta in colour.deltas.values())
    assert energy == pytest.approx(0.1 * sent, rel=0.05)
    assert fused.facts["protected_share"] == pytest.approx(2 / 3)


def test_layer_aware_stays_within_its_budget(base, store, vectors, tmp_path):
    fused = fuse(setting(base, store, vectors, tmp_path, protection="layer_aware", budget=0.35, realign=False))
    assert 0 < fused.facts["protected_share"] <= 0.35
    plain = weighted_sum(vectors, [0.4] * 3)
    clean = [path for path, delta in plain.items() if torch.equal(fused.deltas[path].dense(), delta.dense())]
    assert clean and len({path.split(".")[2] + ("attn" if "attn" in path else "mlp") for path in clean}) >= 1
    small = setting(base, store, vectors, tmp_path, protection="layer_random", budget=0.01, realign=False)
    fuse(small)
    assert any("protects nothing" in message for message in messages(small))


def test_whole_fine_tunes_are_realigned_as_a_whole(base, store, vectors, tmp_path):
    whole = [TaskVector(v.name, {path: Delta(delta.dense()) for path, delta in v.deltas.items()}) for v in vectors]
    given = setting(base, store, whole, tmp_path, steps=5, learning_rate=1e-3)
    fused, noisy = fuse(given), fuse(setting(base, store, whole, tmp_path, realign=False))
    assert fused.facts["realigned_steps"] == 5
    moved = [torch.linalg.matrix_rank(d.up - noisy.deltas[path].up) for path, d in fused.deltas.items()]
    assert max(moved) > 8  # of no low rank
    with pytest.raises(ConfigurationError, match="has no factors to send"):
        fuse(setting(base, store, whole, tmp_path, transmission="factors"))


def test_cancelling_while_realigning_starts_it_again_with_the_same_result(base, store, vectors, tmp_path, monkeypatch):
    options = {"steps": 12, "learning_rate": 1e-3}
    whole = fuse(setting(base, store, vectors, tmp_path, **options))
    stopped = setting(base, store, vectors, tmp_path, **options)
    monkeypatch.setattr(stopped.sink, "cancelled", lambda: bool(stopped.sink.of("metrics")))
    with pytest.raises(Cancelled) as cancelled:
        fuse(stopped)
    assert cancelled.value.step == 0 and len(stopped.sink.of("metrics")) == 1
    again = fuse(setting(base, store, vectors, tmp_path, resume=True, **options))
    assert all(torch.equal(again.deltas[path].up, delta.up) for path, delta in whole.deltas.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protection": "task_protect"}, "protected_tasks must name a run"),
        ({"sweep_protections": ["freeze"]}, "'freeze' is none of none, drop_embed"),
        ({"sweep_protections": ["none+freeze_embed"]}, "'none\\+freeze_embed' is none of"),
        ({"sweep_attacks": ["jam"]}, "'jam' is none of ideal"),
        ({"sweep_snr": [0, 500]}, "between -60 and 100"),
        ({"sweep_snr": [0], "sweep_attacks": []}, "a sweep needs"),
        ({"budget": 0}, "method.options.budget"),
        ({"snrs": 3}, "method.options.snrs is not a setting"),
    ],
)
def test_wrong_options_are_refused_with_their_name(options: dict, message: str):
    with pytest.raises(ConfigurationError, match=message):
        options_of(MethodSpec(name="r_mtllmf", options=options))


def test_what_cannot_work_is_refused_before_a_job_is_queued(base, store, tmp_path):
    tasks = setting(base, store, [], tmp_path).tasks

    def check(names: list[str] = ["a", "b"], **options: object) -> None:  # noqa: B006
        METHOD.check(METHOD.options.parse(options), names, tasks)

    check()
    with pytest.raises(ConfigurationError, match="protected_tasks names c, which is not fused"):
        check(protection="task_protect", protected_tasks=["c"])
    with pytest.raises(ConfigurationError, match="3 weights for 2 runs"):
        check(weights=[1, 2, 3])
    with pytest.raises(ConfigurationError, match="no sum of the runs' factors"):
        check(form="concatenated")
    check(form="concatenated", transmission="factors")
    bare = small_store(tmp_path / "bare")
    unlabelled = [task for task in setting(base, bare, [], tmp_path).tasks]
    for task in unlabelled:
        task.info.counts["train"] = 0
    with pytest.raises(DataError, match="mood has no training rows, and realigning needs"):
        METHOD.check(METHOD.options.parse({}), ["a"], unlabelled)
    METHOD.check(METHOD.options.parse({"realign": False}), ["a"], unlabelled)


def test_arms_of_a_sweep_are_a_protection_with_or_without_realigning():
    assert [split_arm(arm) for arm in ABLATION] == [
        ("none", False),
        ("freeze_embed", False),
        ("none", True),
        ("freeze_embed", True),
        ("error_protected", False),
        ("layer_aware", False),
    ]
