"""AdaMerging and AdaMerging++; numbers of the specification by their check."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learned_support import (
    TOY_VECTORS,
    ToyModel,
    Unlabelled,
    fuse,
    resumed,
    same,
    setting_for,
    stopping,
    vectors_for,
)

from core.errors import ConfigurationError, DataError
from core.fusion.candidate import Candidate
from core.fusion.combine import weighted_sum
from core.fusion.delta import Delta, TaskVector
from core.fusion.learned.adamerging import CoefficientLearner, agreeing, coefficients_of, loop_of, objective_of
from core.fusion.learned.objective import Objective, pull
from core.fusion.learned.prompts import Prompt
from core.fusion.learned.sums import Coefficients, parts_of
from core.fusion.methods import options_of
from core.jobs.sinks import Cancelled
from core.models import load_base
from core.schema import ModelSpec


class ToyPrompts:
    """Two inputs, both in each batch."""

    def __init__(self, name: str, ids: list[int]) -> None:
        self.name, self._prompts = name, [Prompt([token]) for token in ids]

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, number: int) -> Prompt:
        return self._prompts[number]

    def batch(self, draw: int, size: int) -> list[Prompt]:
        return self._prompts


def toy(granularity: str = "task", **rest) -> CoefficientLearner:
    candidate = Candidate(ToyModel(), ["w"])
    tasks = [ToyPrompts("one", [0, 1]), ToyPrompts("two", [2, 3])]
    objective = Objective(candidate, tasks, pad_id=0, kind="first_token")
    parts = parts_of(TOY_VECTORS, "cpu")
    coefficients = Coefficients(parts, ["run-1", "run-2"], granularity, 0.3, rest.pop("clamp", "project"))
    return CoefficientLearner(parts, coefficients, objective, learning_rate=rest.pop("learning_rate", 1e-3), **rest)


def loss_of(learner: CoefficientLearner) -> float:
    return sum(reading.loss for reading in learner.objective.measure(learner.deltas()).values())


def learner_of(setting) -> CoefficientLearner:
    options, parts = options_of(setting.spec.method), parts_of(setting.vectors, "cpu")
    coefficients = coefficients_of(setting, parts, options)
    return CoefficientLearner(parts, coefficients, objective_of(setting, options), learning_rate=options.learning_rate)


def coefficients(setting) -> torch.Tensor:
    """The last table of coefficients, without those of runs that have no such update."""
    rows = setting.sink.of("table")[-1]["rows"]
    return torch.tensor([[-1.0 if value is None else value for value in row[1:]] for row in rows])


def ids_of(setting) -> dict[str, torch.Tensor]:
    task = setting.tasks[0]
    ids = setting.encoder.prompt_ids(task.rows("validation")[0], task.template)
    return {"input_ids": torch.tensor([ids])}


def test_adamerging_check_2_the_toys_loss_gradient_and_solution():
    learner = toy()
    assert loss_of(learner) == pytest.approx(1.082105, abs=1e-5)
    made = learner._made()
    pull(made, learner.objective.gradients(made, [0]))
    assert learner.coefficients.values.grad.flatten().tolist() == pytest.approx([-0.853894] * 2, abs=1e-5)
    for step in range(500):
        learner.advance(step)
    assert learner.coefficients.values.flatten().tolist() == pytest.approx([0.7533] * 2, abs=0.002)
    assert loss_of(learner) == pytest.approx(0.37818, abs=0.002)


def test_adamerging_check_3_the_first_step_of_adam_is_the_learning_rate():
    learner = toy()
    learner.advance(0)
    assert (learner.coefficients.values - 0.3).abs().flatten().tolist() == pytest.approx([1e-3] * 2, rel=1e-3)


def test_adamerging_check_4_coefficient_zero_is_the_base_and_one_is_the_fine_tuned_model(tmp_path):
    setting = setting_for(tmp_path, "adamerging")
    inputs, base = ids_of(setting), load_base(setting.spec.model, "cpu")
    with torch.no_grad():
        plain = base(**inputs).logits
        one = setting.vectors[:1]
        weights = dict(base.named_modules())
        for path, delta in one[0].deltas.items():
            weights[path].weight += delta.dense()
        tuned = base(**inputs).logits
        learner = learner_of(setting)
        for value, expected in ((0.0, plain), (1.0, tuned)):
            learner.parts = parts_of(one, "cpu")
            learner.coefficients = Coefficients(learner.parts, ["run-1"], "module", value, "project")
            with setting.candidate.using(learner.deltas()) as model:
                assert (model(**inputs).logits - expected).abs().max() < 1e-4
    assert (plain - tuned).abs().max() > 0.1


@pytest.mark.parametrize("granularity", ["task", "block", "module"])
def test_adamerging_check_5_equal_coefficients_are_task_arithmetic(tmp_path, granularity):
    setting = setting_for(tmp_path, "adamerging", granularity=granularity, start=0.3)
    found = learner_of(setting).fused()
    expected = weighted_sum(setting.vectors, [0.3, 0.3])
    for path, delta in expected.items():
        assert (found[path].dense() - delta.dense()).abs().max() < 1e-6


def test_adamerging_check_6_the_gradient_is_the_inner_product_with_the_task_vector(tmp_path):
    setting = setting_for(tmp_path, "adamerging", tasks=("colour",))
    learner = learner_of(setting)
    made = learner._made()
    pull(made, learner.objective.gradients(made, [0]))
    whole = {path: Delta(delta.dense().detach().requires_grad_()) for path, delta in made.items()}
    of_weights = learner.objective.gradients(whole, [0])
    for path, column in learner.coefficients.column.items():
        for run, vector in enumerate(setting.vectors):
            found = float(learner.coefficients.values.grad[run, column])
            if path not in vector.deltas:
                assert found == 0
                continue
            expected = float((of_weights[path][0] * vector.deltas[path].dense()).sum())
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_adamerging_check_7_concatenated_adapter_runtime_sum_and_dense_merge_agree():
    chance = torch.Generator().manual_seed(0)
    runs = []
    for name, rank, alpha in (("run-1", 2, 8), ("run-2", 3, 3)):
        b, a = torch.randn(6, rank, generator=chance), torch.randn(rank, 5, generator=chance)
        runs.append(TaskVector(name, {"w": Delta(b * (alpha / rank), a)}))
    part, weights = parts_of(runs, "cpu")["w"], torch.tensor([0.3, 0.6])
    x = torch.randn(4, 5, generator=chance)
    joined = part.weighted(weights)
    assert joined.up.shape == (6, 5) and joined.down.shape == (5, 5)  # rank 2 + 3
    runtime = sum(w * run.deltas["w"](x) for w, run in zip(weights, runs, strict=True))
    merged = x @ sum(w * run.deltas["w"].dense() for w, run in zip(weights, runs, strict=True)).T
    assert (joined(x) - runtime).abs().max() < 1e-5
    assert (joined(x) - merged).abs().max() < 1e-5


PP = [(3, -1, 0.5, 2, 0, 4), (-1, -2, 0.4, 2, 1, -5), (2, 0.1, -0.3, -3, 0, 0)]


def pp_vectors() -> list[TaskVector]:
    """Each of two projections, so that trimming and signs are global."""
    rows = [torch.tensor([values], dtype=torch.float32) for values in PP]
    return [TaskVector(f"run-{k}", {"x": Delta(v[:, :2]), "y": Delta(v[:, 2:])}) for k, v in enumerate(rows)]


def row(vector: TaskVector) -> list[float]:
    return torch.cat([vector.deltas["x"].dense(), vector.deltas["y"].dense()], 1)[0].tolist()


def test_adamerging_check_8_trimmed_and_elected_vectors_of_the_toy():
    kept = agreeing(pp_vectors(), 0.5, "cpu")
    expected = [(3, -1, 0, 2, 0, 0), (0, -2, 0, 2, 1, -5), (2, 0, -0.3, 0, 0, 0)]
    for vector, values in zip(kept, expected, strict=True):
        assert row(vector) == pytest.approx(values)
    assert torch.tensor([row(v) for v in kept]).sum(0).tolist() == pytest.approx([5, -3, -0.3, 4, 1, -5])


def test_adamerging_check_8_exactly_the_largest_half_elects_the_listed_sums():
    kept = agreeing(pp_vectors(), 0.5, "cpu", exact=True)
    assert torch.tensor([row(v) for v in kept]).sum(0).tolist() == pytest.approx([5, -2, -0.3, 4, 0, -5])


def test_a_projection_that_a_run_leaves_alone_counts_as_zeros_when_it_is_trimmed():
    wide = TaskVector("wide", {"x": Delta(torch.tensor([[4.0, 3]])), "y": Delta(torch.tensor([[2.0, 1]]))})
    narrow = TaskVector("narrow", {"x": Delta(torch.tensor([[5.0, 6]]))})
    kept = agreeing([wide, narrow], 0.5, "cpu", exact=True)  # two of four entries each
    assert [delta.dense()[0].tolist() for delta in kept[0].deltas.values()] == [[4, 3], [0, 0]]
    assert kept[1].deltas["x"].dense()[0].tolist() == [5, 6]


def test_a_sum_of_zero_takes_the_sign_that_most_entries_were_given():
    vectors = [TaskVector("a", {"x": Delta(torch.tensor([[1.0, -2, -3]]))})]
    vectors.append(TaskVector("b", {"x": Delta(torch.tensor([[-1.0, -2, -3]]))}))
    kept = agreeing(vectors, 1.0, "cpu")
    assert kept[0].deltas["x"].dense()[0].tolist() == [0, -2, -3]
    assert kept[1].deltas["x"].dense()[0].tolist() == [-1, -2, -3]


def test_adamerging_check_9_the_base_is_unchanged_and_only_coefficients_are_learned(tmp_path):
    setting = setting_for(tmp_path, "adamerging", steps=3, evaluate_every=3)
    before = {name: value.clone() for name, value in load_base(setting.spec.model, "cpu").state_dict().items()}
    fuse(setting)
    after = {name.replace(".base.", "."): value for name, value in setting.candidate.model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(value.requires_grad for value in setting.candidate.model.parameters())
    paths = len(setting.candidate.paths)
    for granularity, count in (("task", 2), ("block", 2 * 2), ("module", 2 * paths)):
        parts = parts_of(setting.vectors, "cpu")
        assert Coefficients(parts, setting.names, granularity, 0.3, "project").values.numel() == count


def test_adamerging_check_11_without_labels_the_coefficients_are_identical(tmp_path):
    options = {"steps": 4, "evaluate_every": 4, "learning_rate": 0.05}
    labelled = setting_for(tmp_path, "adamerging", tasks=("colour", "count"), **options)
    bare = setting_for(tmp_path, "adamerging", tasks=("colour", "count"), **options)
    bare.tasks = [Unlabelled(task) for task in bare.tasks]
    assert same(fuse(labelled), fuse(bare))


def test_adamerging_check_11_the_order_of_the_tasks_does_not_matter(tmp_path):
    options = {"steps": 4, "evaluate_every": 4, "learning_rate": 0.05}
    one = setting_for(tmp_path, "adamerging", tasks=("colour", "count"), **options)
    other = setting_for(tmp_path, "adamerging", tasks=("count", "colour"), **options)
    fuse(one), fuse(other)
    assert torch.equal(coefficients(one), coefficients(other))


@pytest.mark.parametrize("method", ["adamerging", "adamerging_pp"])
def test_cancelled_and_resumed_it_ends_as_if_nothing_had_happened(tmp_path, method):
    options = {"steps": 7, "evaluate_every": 2, "learning_rate": 0.05, "batches_per_step": 2}
    whole = setting_for(tmp_path / "whole", method, tasks=("colour", "count"), **options)
    expected = fuse(whole)
    setting = stopping(setting_for(tmp_path / "parts", method, tasks=("colour", "count"), **options), after=4)
    with pytest.raises(Cancelled) as stop:
        fuse(setting)
    assert 0 < stop.value.step < 7
    again = resumed(setting)
    found = fuse(again)
    assert same(found, expected) and found.step == 7
    assert again.sink.of("metrics")[-1]["values"] == whole.sink.of("metrics")[-1]["values"]
    assert min(event["step"] for event in again.sink.of("metrics")) > stop.value.step


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    setting = stopping(setting_for(tmp_path, "adamerging", steps=5, evaluate_every=1), after=2)
    with pytest.raises(Cancelled):
        fuse(setting)
    other = setting_for(tmp_path, "adamerging", steps=5, evaluate_every=1, learning_rate=0.5, resume=True)
    with pytest.raises(ConfigurationError, match="other settings"):
        fuse(other)


def test_learning_lowers_the_loss_and_says_what_it_does(tmp_path):
    setting = setting_for(
        tmp_path, "adamerging", tasks=("colour", "count"), steps=12, evaluate_every=6, learning_rate=0.01
    )
    fused = fuse(setting)
    points = setting.sink.of("metrics")
    assert [point["step"] for point in points] == [0, 6, 12]
    assert points[-1]["values"]["loss"] < points[0]["values"]["loss"]
    named = {"loss", "entropy/colour", "option_mass/colour", "marginal_entropy/count", "coefficient/run-1"}
    assert named <= points[0]["values"].keys() and "option_mass/count" not in points[0]["values"]
    table = setting.sink.of("table")[-1]
    assert table["name"] == "coefficients" and table["columns"] == ["run", *setting.candidate.paths]
    assert table["rows"][1][1] is None and table["rows"][0][1] is not None  # the last run leaves one out
    progress = setting.sink.of("progress")[-1]
    assert (progress["step"], progress["total"], progress["seconds_left"]) == (12, 12, 0.0)
    assert all(delta.low_rank for delta in fused.deltas.values())


def test_the_result_of_the_plus_plus_variant_is_whole_matrices_of_kept_entries(tmp_path):
    setting = setting_for(tmp_path, "adamerging_pp", steps=2, density=0.2)
    fused = fuse(setting)
    assert not any(delta.low_rank for delta in fused.deltas.values())
    kept = agreeing(setting.vectors, 0.2, "cpu")
    share = [sum(int((d.dense() != 0).sum()) for d in v.deltas.values()) for v in kept]
    size = sum(d.dense().numel() for d in kept[0].deltas.values())  # the first run touches every projection
    assert all(0 < kept_ <= 0.2 * size + 1 for kept_ in share)


def test_clamping_within_the_pass_gives_a_coefficient_outside_no_gradient():
    free, clamped = toy(clamp="none"), toy(clamp="forward")
    for learner in (free, clamped):
        learner.coefficients.values.data[0] = -0.2
        made = learner._made()
        pull(made, learner.objective.gradients(made, [0]))
    assert clamped.coefficients.values.grad[0] == 0 and free.coefficients.values.grad[0] != 0
    assert clamped.coefficients.metrics()["coefficients_at_bound"] == 0.5
    projected = toy(learning_rate=5.0)
    projected.advance(0)
    assert projected.coefficients.values.flatten().tolist() == [1.0, 1.0]


def test_two_batches_per_step_add_their_losses(tmp_path):
    one = learner_of(setting_for(tmp_path, "adamerging"))
    first, second, both = (one.objective.gradients(one._made(), draws) for draws in ([0], [1], [0, 1]))
    for path in both:
        assert torch.allclose(first[path][0] + second[path][0], both[path][0], atol=1e-5)


def test_a_collapse_that_lasts_ends_it_with_the_best_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr("core.fusion.learned.guards.SHARE", 0.9)  # a random model does not collapse further
    setting = setting_for(tmp_path, "adamerging", steps=40, evaluate_every=1, learning_rate=0.1)
    fused = fuse(setting)
    alarms = [event for event in setting.sink.of("alarm") if event["step"]]
    assert [event["name"] for event in alarms] == ["collapse"] and fused.step < 40
    stopped = [event["message"] for event in setting.sink.of("log") if "Kept step" in event["message"]]
    assert len(stopped) == 1
    kept = int(stopped[0].rsplit("Kept step ", 1)[1].rstrip("."))
    assert 0 < kept == alarms[0]["step"] - 1 == fused.step - 3
    losses = {event["step"]: event["values"]["loss"] for event in setting.sink.of("metrics")}
    objective = objective_of(setting, options_of(setting.spec.method))
    found = sum(reading.loss for reading in objective.measure(fused.deltas).values())
    assert found == pytest.approx(losses[kept], rel=1e-4)


def test_an_alert_that_lasts_can_be_left_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("core.fusion.learned.guards.SHARE", 0.9)
    changes = {"steps": 12, "evaluate_every": 1, "learning_rate": 0.1, "on_alert": "continue"}
    setting = setting_for(tmp_path, "adamerging", **changes)
    assert fuse(setting).step == 12
    assert any(event["step"] for event in setting.sink.of("alarm"))


def test_a_task_without_rows_in_the_split_is_refused_by_name(tmp_path):
    from core.data.store import DatasetInfo, DatasetStore
    from core.data.tasks import load_tasks
    from core.fusion.learned.prompts import check_prompts
    from core.fusion.methods import fusion_method
    from core.schema import TaskSpec

    setting = setting_for(tmp_path, "adamerging")
    store = DatasetStore(tmp_path / "few")
    store.add(DatasetInfo(name="few"), {"train": {"lonely": [{"input": "a", "output": "b"}]}})
    setting.tasks = load_tasks(store, [TaskSpec(dataset="few")])
    with pytest.raises(DataError, match="lonely has no validation rows.*train"):
        check_prompts(setting.tasks, "validation")
    with pytest.raises(DataError, match="lonely"):
        fuse(setting)
    options = options_of(setting.spec.method)
    with pytest.raises(DataError, match="no task"):
        fusion_method("adamerging").check(options, ["run-1"], [])


def test_the_expert_of_an_open_ended_task_is_the_run_that_was_trained_on_it(tmp_path):
    from dataclasses import replace

    setting = setting_for(tmp_path, "adamerging", tasks=("count",), steps=1)
    first = loop_of(setting, options_of(setting.spec.method), 1).answers["count"]
    assert any("surest" in event["message"] for event in setting.sink.of("log"))
    written = []
    for number in range(2):
        setting = setting_for(tmp_path, "adamerging", tasks=("count",), steps=1)
        setting.vectors[number] = replace(setting.vectors[number], tasks=("count",))
        written.append(loop_of(setting, options_of(setting.spec.method), 1).answers["count"])
        assert not setting.sink.of("log")
    assert written[0] != written[1] and first in written
    assert all(0 < len(tokens) <= 6 for tokens in first.values())  # the task's own limit


def test_prompts_come_once_each_before_any_comes_again(tmp_path):
    from core.fusion.learned.prompts import TaskPrompts

    setting = setting_for(tmp_path, "adamerging")
    make = dict(limit=64, count=500, seed=3)
    prompts = TaskPrompts(setting.tasks[0], setting.encoder, "validation", **make)
    epoch = [number for draw in range(4) for number in prompts.numbers(draw, 2)]
    assert sorted(epoch) == list(range(8))
    again = TaskPrompts(setting.tasks[0], setting.encoder, "validation", **make)
    assert again.batch(5, 3) == prompts.batch(5, 3)
    assert len(prompts.batch(0, 100)) == 8
    assert len(TaskPrompts(setting.tasks[0], setting.encoder, "validation", limit=64, count=5, seed=3)) == 5


def test_vectors_of_the_support_leave_one_projection_to_one_run(tmp_path):
    setting = setting_for(tmp_path, "adamerging")
    counts = [len(vector.deltas) for vector in vectors_for(Path(ModelSpec(base=setting.spec.model.base).base))]
    assert counts == [6, 5]


@pytest.mark.parametrize("loss", ["options", "first_token", "sequence"])
def test_every_loss_reads_every_task_and_its_share_of_the_maximum_is_at_most_one(tmp_path, loss):
    setting = setting_for(tmp_path, "adamerging", tasks=("colour", "count"), steps=1, loss=loss, normalise=True)
    fuse(setting)
    values = setting.sink.of("metrics")[0]["values"]
    assert all(0 < values[f"entropy/{task}"] <= 1 for task in ("colour", "count"))
    assert values["loss"] == pytest.approx(values["entropy/colour"] + values["entropy/count"])
    assert ("option_mass/colour" in values) == (loss != "sequence")


def test_the_mass_term_is_added_for_tasks_with_options_alone(tmp_path):
    found = {}
    for weight in (0.0, 0.5):
        setting = setting_for(tmp_path, "adamerging", tasks=("colour", "count"), steps=1, mass_weight=weight)
        objective = loop_of(setting, options_of(setting.spec.method), 1).objective
        found[weight] = objective.measure({})
    assert found[0.5]["colour"].loss > found[0.0]["colour"].loss == found[0.5]["colour"].entropy
    assert found[0.5]["count"].loss == found[0.0]["count"].loss


def test_whole_matrices_give_the_logits_of_their_factors(tmp_path):
    setting = setting_for(tmp_path, "adamerging")
    inputs, (vector, _) = ids_of(setting), setting.vectors
    whole = {path: Delta(delta.dense()) for path, delta in vector.deltas.items()}
    with torch.no_grad(), setting.candidate.using(vector.deltas) as model:
        factors = model(**inputs).logits
        with setting.candidate.using(whole):
            assert torch.allclose(model(**inputs).logits, factors, atol=1e-4)
