"""The sweep over SNR, protection, attack and seed: its table, its checks, and that it stops and goes on."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pytest
import torch

from core.data.store import DatasetStore
from core.errors import ConfigurationError
from core.fusion.delta import Delta, TaskVector
from core.fusion.methods import options_of
from core.fusion.resilient import sweep as sweeping
from core.fusion.resilient.resilience import Resilience
from core.fusion.resilient.scoring import Bench
from core.fusion.resilient.sweep import COLUMNS
from core.home import BUNDLED_BASE_FOLDER
from core.jobs.sinks import Cancelled
from tests.fusion.resilient_support import (
    EMBEDDING,
    TASKS,
    fuse,
    messages,
    setting,
    small_store,
    sweep_table,
    trained_vectors,
)
from tests.support.tiny import tiny_base

ONE = {"sweep_seeds": 1, "sweep_rows": 12, "realign": False, "sweep_attacks": ["awgn"], "steps": 5}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("sweep") / "base")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DatasetStore:
    return small_store(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def vectors(base: Path, store: DatasetStore) -> list[TaskVector]:
    return trained_vectors(base, store)


def with_embedding(vectors: list[TaskVector], base: Path) -> list[TaskVector]:
    chance = torch.Generator().manual_seed(0)
    return [
        TaskVector(v.name, v.deltas | {EMBEDDING: Delta(torch.randn(32, 320, generator=chance) * 0.02)})
        for v in vectors
    ]


def means(rows: list[dict], column: str, **where: object) -> dict[float | None, float]:
    """Mean of a column by SNR."""
    found = defaultdict(list)
    for row in rows:
        if all(row[name] == value for name, value in where.items()):
            found[row["snr"]].append(row[column])
    return {snr: fmean(values) for snr, values in found.items()}


def test_the_table_has_every_point_once_and_is_said_as_it_grows(base, store, vectors, tmp_path: Path):
    arms, attacks = ["none", "layer_random", "task_protect"], ["awgn", "worst_sum"]
    options = ONE | {"sweep_attacks": attacks, "protected_tasks": ["mood"], "budget": 0.3, "sweep_seeds": 2}
    given = setting(base, store, vectors, tmp_path, sweep_snr=[0, 10], sweep_protections=arms, seed=4, **options)
    fuse(given)
    rows = sweep_table(given)
    keys = [(r["protection"], r["attack"], r["snr"], r["seed"], r["task"]) for r in rows]
    wanted = {(arm, "ideal", None, 4, task) for arm in arms for task in TASKS} | {
        (arm, attack, snr, seed, task)
        for arm in arms
        for attack in attacks
        for snr in (0.0, 10.0)
        for seed in (4, 5)
        for task in TASKS
    }
    assert set(keys) == wanted and len(keys) == len(wanted)
    tables = [event for event in given.sink.of("table") if event["name"] == "sweep"]
    sizes = [len(event["rows"]) for event in tables]
    assert 3 < len(tables) <= 20 and sizes == sorted(sizes)
    assert all(event["columns"] == list(COLUMNS) for event in tables)
    progress = [event for event in given.sink.of("progress") if event["phase"] == "sweep"]
    assert [event["step"] for event in progress] == list(range(1, 28)) and progress[-1]["seconds_left"] == 0
    for row in rows:
        assert 0 <= row["score"] <= 1 and 0 <= row["disentanglement_error"] <= 1
        assert (row["relative_mse"] == 0) == (row["snr"] is None)
    json.dumps(given.sink.of("table"), allow_nan=False)


def test_references_make_sense_of_the_scores(base, store, vectors, tmp_path: Path):
    """Clean fusion has resilience 1 by definition; normalised scores are shares of the expert's."""
    given = setting(base, store, vectors, tmp_path, sweep_snr=[-5], sweep_protections=["none"], **ONE)
    fuse(given)
    rows = sweep_table(given)
    ideal = {row["task"]: row for row in rows if row["snr"] is None}
    kept = json.loads((given.folder.checkpoints / "sweep.json").read_text())["references"]
    assert set(kept["individual"]) == set(TASKS)
    assert fmean(kept["individual"].values()) > fmean(kept["base"].values())  # the experts learned something
    for task, row in ideal.items():
        assert row["resilience"] in (1.0, None) and row["score"] == kept["clean"][task]
        assert row["normalised"] == pytest.approx(row["score"] / kept["individual"][task])
    for row in rows:
        gain = kept["clean"][row["task"]] - kept["base"][row["task"]]
        if gain:
            assert row["resilience"] == pytest.approx((row["score"] - kept["base"][row["task"]]) / gain)


@pytest.fixture(scope="module")
def learned(store: DatasetStore) -> list[TaskVector]:
    """On the bundled base, which learns these tasks wholly in a few steps."""
    return trained_vectors(
        BUNDLED_BASE_FOLDER, store, steps=30, rate=5e-3, batch=6, among=("q_proj", "v_proj", "o_proj")
    )


@pytest.mark.slow
def test_check_12_no_disentanglement_error_of_one_run_without_noise(store, learned, tmp_path: Path):
    mood, options = learned[:1], ONE | {"sweep_snr": [-30], "sweep_protections": ["none"], "coefficient": 0.7}
    given = setting(BUNDLED_BASE_FOLDER, store, mood, tmp_path, **options)
    fuse(given)
    found = means(sweep_table(given), "disentanglement_error", task="mood")
    assert found[None] == 0 and found[-30] > 0
    others = [row for row in sweep_table(given) if row["task"] != "mood"]  # whose vectors are not here
    assert others and all(row["disentanglement_error"] is None and row["normalised"] is None for row in others)


@pytest.mark.slow
def test_check_12_disentanglement_error_rises_and_scores_fall_with_the_snr(store, learned, tmp_path: Path):
    snrs = [30, 10, 0, -10, -20]
    options = ONE | {"sweep_seeds": 3, "sweep_rows": 24, "coefficient": 1.0, "sweep_protections": ["none"]}
    given = setting(BUNDLED_BASE_FOLDER, store, learned, tmp_path, sweep_snr=snrs, **options)
    fuse(given)
    rows = sweep_table(given)
    errors, mse, scores = (
        means(rows, name, attack="awgn") for name in ("disentanglement_error", "relative_mse", "score")
    )
    assert [mse[snr] for snr in snrs] == pytest.approx([10 ** (-snr / 10) for snr in snrs], rel=0.05)
    for quiet, loud in zip(snrs, snrs[1:], strict=False):
        assert errors[loud] >= errors[quiet] - 0.05  # the error of three seeds and 24 rows
        assert scores[loud] <= scores[quiet] + 0.05
    assert errors[-20] > errors[30] + 0.2 and scores[-20] < scores[30] - 0.2


def test_a_decision_is_the_chosen_option_or_the_next_token(base, store, vectors, tmp_path: Path):
    given = setting(base, store, vectors, tmp_path, **ONE)
    lab = Resilience(given, options_of(given.spec.method))
    found = Bench(lab).outcome(vectors[2].deltas).decisions
    assert [task.info.kind for task in given.tasks] == ["classification", "classification", "generation"]
    assert set(found["mood"]) <= {"yes", "no"} and set(found["colour"]) <= {"red", "green", "blue"}
    task, row = given.tasks[2], given.tasks[2].rows("test")[3]
    with given.candidate.using(vectors[2].deltas) as model, torch.no_grad():
        ids = torch.tensor([given.encoder.prompt_ids(row, task.template)])
        assert found["next"][3] == model(input_ids=ids).logits[0, -1].argmax().item()


def test_arms_that_come_to_the_same_are_computed_once(base, store, vectors, tmp_path: Path, monkeypatch):
    """On adapters that leave the embeddings alone, three of these arms are the unprotected one."""
    computed = []
    outcome = sweeping._outcome
    monkeypatch.setattr(sweeping, "_outcome", lambda *a: (computed.append(a[2]), outcome(*a))[1])
    arms = ["none", "freeze_embed", "drop_embed", "error_protected", "layer_random"]
    given = setting(base, store, vectors, tmp_path, sweep_snr=[0], sweep_protections=arms, budget=0.3, **ONE)
    fuse(given)
    assert [(point.arm, point.snr) for point in computed] == [("none", None), ("none", 0), ("layer_random", 0)]
    rows = sweep_table(given)
    assert {row["protection"] for row in rows} == set(arms)
    for arm in arms[1:4]:
        assert means(rows, "score", protection=arm) == means(rows, "score", protection="none")
        assert any(message.startswith(f"{arm} has no effect by construction") for message in messages(given))


def test_protected_embeddings_matter_where_they_were_trained(base, store, vectors, tmp_path: Path):
    arms = ["none", "drop_embed", "error_protected", "embeddings_first"]
    options = ONE | {"sweep_protections": arms, "sweep_snr": [-10], "budget": 0.9, "protection": "drop_embed"}
    given = setting(base, store, with_embedding(vectors, base), tmp_path, **options)
    fused = fuse(given)
    rows = sweep_table(given)
    mse = {arm: means(rows, "relative_mse", protection=arm)[-10] for arm in arms}
    assert mse["error_protected"] < mse["none"] and mse["embeddings_first"] < mse["error_protected"]
    assert EMBEDDING not in fused.deltas
    assert not any("by construction" in message for message in messages(given))


def test_embeddings_that_were_trained_cannot_be_frozen_afterwards(base, store, vectors, tmp_path: Path):
    given = setting(base, store, with_embedding(vectors, base), tmp_path, sweep_snr=[0], **ONE)
    with pytest.raises(ConfigurationError, match="has to be chosen before training, but mood, colour, next") as error:
        fuse(given)
    assert "drop_embed" in error.value.hint
    assert not given.sink.of("progress")  # before anything was scored


def test_layer_aware_protects_what_noise_hurts_most(base, store, vectors, tmp_path: Path):
    arms, options = ["none", "layer_aware", "layer_random"], ONE | {"sweep_seeds": 2, "sweep_rows": 24}
    given = setting(base, store, vectors, tmp_path, sweep_snr=[-5], sweep_protections=arms, budget=0.3, **options)
    fuse(given)
    mse = {arm: means(sweep_table(given), "relative_mse", protection=arm)[-5] for arm in arms}
    assert mse["layer_aware"] < mse["none"] and mse["layer_random"] < mse["none"]
    (said,) = [message for message in messages(given) if "raises the loss of the shots most in" in message]
    rises = [float(part.split("(")[1].split(")")[0]) for part in said.split(" most in ")[1].split(", ")]
    assert rises == sorted(rises, reverse=True) and rises[0] > 0


@pytest.mark.slow
def test_realigned_arms_gain_on_unprotected_ones_under_noise(store, learned, tmp_path: Path):
    """Fine-tuning on a few labelled rows brings back a part of what heavy noise destroyed."""
    realigning = {"steps": 20, "learning_rate": 5e-3, "sweep_protections": ["none", "realign"]}
    options = ONE | realigning | {"sweep_rows": 24, "sweep_snr": [-10], "coefficient": 0.7}
    given = setting(BUNDLED_BASE_FOLDER, store, learned, tmp_path, **options)
    fuse(given)
    rows = sweep_table(given)
    assert means(rows, "score", protection="realign")[-10] > means(rows, "score", protection="none")[-10] + 0.1
    assert means(rows, "relative_mse", protection="realign") == means(rows, "relative_mse", protection="none")
    assert not given.sink.of("metrics")  # curves belong to the model that is saved


class StopsAfter:
    """Asks to stop once so many points of the sweep were said."""

    def __init__(self, given, points: int) -> None:
        self.sink, self.points = given.sink, points

    def __call__(self) -> bool:
        return sum(event["phase"] == "sweep" for event in self.sink.of("progress")) >= self.points


def test_a_cancelled_sweep_goes_on_and_repeats_nothing(base, store, vectors, tmp_path: Path, monkeypatch):
    arms = {"sweep_protections": ["none", "layer_aware", "realign"], "sweep_snr": [10, 0], "budget": 0.3} | ONE
    whole = setting(base, store, vectors, tmp_path / "whole", **arms)
    result = fuse(whole)

    stopped = setting(base, store, vectors, tmp_path / "parts", **arms)
    monkeypatch.setattr(stopped.sink, "cancelled", StopsAfter(stopped, 5))
    with pytest.raises(Cancelled):
        fuse(stopped)
    kept = json.loads((stopped.folder.checkpoints / "sweep.json").read_text())["outcomes"]
    assert 0 < len(kept) < 8

    computed = []
    outcome = sweeping._outcome
    monkeypatch.setattr(sweeping, "_outcome", lambda *a: (computed.append(a[2]), outcome(*a))[1])
    monkeypatch.setattr(sweeping.Bench, "references", lambda self: pytest.fail("references were made again"))
    resumed = setting(base, store, vectors, tmp_path / "parts", resume=True, **arms)
    again = fuse(resumed)
    assert sweep_table(resumed) == sweep_table(whole)
    assert len(computed) + len(kept) == len(
        json.loads((whole.folder.checkpoints / "sweep.json").read_text())["outcomes"]
    )
    assert all(torch.equal(again.deltas[path].dense(), delta.dense()) for path, delta in result.deltas.items())


def test_points_of_other_settings_are_not_believed(base, store, vectors, tmp_path: Path):
    first = setting(base, store, vectors, tmp_path, sweep_snr=[0], sweep_protections=["none"], **ONE)
    fuse(first)
    other = setting(
        base, store, vectors, tmp_path, sweep_snr=[0], sweep_protections=["none"], resume=True, seed=1, **ONE
    )
    fuse(other)
    assert {row["seed"] for row in sweep_table(other)} == {1}
    fresh = setting(base, store, vectors, tmp_path / "fresh", sweep_snr=[0], sweep_protections=["none"], seed=1, **ONE)
    fuse(fresh)
    assert sweep_table(other) == sweep_table(fresh)


def test_a_task_belongs_to_the_first_run_that_was_trained_on_it(base, store, vectors, tmp_path: Path):
    runs = {"run-1": ("colour", "next"), "run-2": ("mood", "next"), "run-3": ()}
    named = [TaskVector(name, vectors[0].deltas, tasks) for name, tasks in runs.items()]
    for vectors, owners in ((named, [1, 0, 0]), (named[2:], [None, None, None])):
        given = setting(base, store, vectors, tmp_path)
        assert [given.owner(task) for task in given.tasks] == owners
