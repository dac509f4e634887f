"""Entropies of answers, their passes and their guards; numbers of the specification by their check."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from learned_support import setting_for

from core.evaluation.options import OptionSample, score_options
from core.evaluation.view import ModelView
from core.fusion.learned.adamerging import objective_of
from core.fusion.learned.entropy import entropy, read_first_token, read_options, read_sequence
from core.fusion.learned.guards import PATIENCE, Guard
from core.fusion.learned.layout import option_table, positions_of, repeated, sequences, shared
from core.fusion.learned.objective import Objective, TaskReading
from core.fusion.learned.prompts import Prompt
from core.fusion.methods import options_of


def readings_of(logits: list[list[float]], options: tuple[int, ...]) -> dict[str, TaskReading]:
    """A task whose prompts have these logits and these options of one token."""
    prompts = [Prompt([0], tuple((token,) for token in options)) for _ in logits]
    table = option_table(prompts, positions_of(prompts), torch.device("cpu"))
    found = read_options(torch.tensor(logits), table)
    mean = found.probabilities.mean(0)
    value = float(found.entropy.mean())
    return {"task": TaskReading(value, float(entropy(mean.log())), float(found.log_mass.exp().mean()), value)}


@pytest.mark.parametrize(
    ("logits", "expected"),
    [([0.0] * 4, 1.386294), ([2.0, 1, 0], 0.832396), ([10.0, 0, 0], 0.000999), ([0.0] * 151_936, 11.931215)],
)
def test_adamerging_check_1_entropy_of_known_logits(logits, expected):
    assert float(entropy(torch.tensor(logits))) == pytest.approx(expected, abs=1e-5)


def test_adamerging_check_12_option_entropy_mass_and_full_entropy():
    logits = [[2.0, 1, 0, 5, -1]]
    found = readings_of(logits, (0, 1, 2))["task"]
    assert found.entropy == pytest.approx(0.832396, abs=1e-6)
    assert found.option_mass == pytest.approx(0.069469, abs=1e-6)
    assert float(entropy(torch.tensor(logits))) == pytest.approx(0.326199, abs=1e-6)


def test_adamerging_check_10_fallen_option_mass_and_one_answer_to_all_raise_their_alerts():
    def logits_with_mass(mass: float) -> list[float]:
        return [math.log(mass / 2), math.log(mass / 2), math.log(1 - mass)]

    guard = Guard()
    assert guard.look(0, readings_of([logits_with_mass(0.9)] * 4, (0, 1))) == []
    assert [name for name, _ in guard.look(1, readings_of([logits_with_mass(0.2)] * 4, (0, 1)))] == ["option_mass"]

    guard = Guard()
    assert guard.look(0, readings_of([[3.0, 0, -9], [0.0, 3, -9]], (0, 1))) == []
    assert [name for name, _ in guard.look(1, readings_of([[9.0, 0, -9], [9.0, 0, -9]], (0, 1)))] == ["collapse"]


def test_a_guard_stops_after_three_bad_evaluations_in_a_row_and_remembers_the_best_good_one():
    good = [[2.0, 0], [0.0, 2]]
    better = [[3.0, 0], [0.0, 3]]
    collapsed = [[9.0, 0], [9.0, 0]]
    guard = Guard()
    for step, logits in enumerate([good, better, collapsed, collapsed, good, collapsed, collapsed]):
        guard.look(step, readings_of(logits, (0, 1)))
        assert not guard.stops
    guard.look(7, readings_of(collapsed, (0, 1)))
    assert guard.stops and guard.bad == PATIENCE and guard.best_step == 1


def test_what_is_lost_at_the_start_is_said_once_and_is_no_alert_later():
    nothing = [math.log(1e-4), math.log(1e-4), math.log(1 - 2e-4)]
    less = [math.log(1e-5), math.log(1e-5), math.log(1 - 2e-5)]
    guard = Guard()
    said = guard.look(0, readings_of([nothing, nothing], (0, 1)))
    assert [name for name, _ in said] == ["option_mass"] and "2.0e-04" in said[0][1]
    assert guard.look(1, readings_of([less, less], (0, 1))) == [] and guard.bad == 0


def test_options_of_unequal_length_are_compared_by_their_mean_and_equal_ones_by_their_sum():
    logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    log_p = logits.log_softmax(-1)
    for options in [((1, 2), (3, 4)), ((1, 2), (3,))]:
        prompts = [Prompt([0], options)]
        order = positions_of(prompts)
        at = {prefix: row for row, (_, prefix) in enumerate(order)}
        sums = [sum(log_p[at[o[:j]], o[j]] for j in range(len(o))) for o in options]
        same = len(options[0]) == len(options[1])
        scores = torch.stack([s if same else s / len(o) for s, o in zip(sums, options, strict=True)])
        found = read_options(logits[: len(order)], option_table(prompts, order, torch.device("cpu")))
        assert torch.allclose(found.probabilities[0], scores.softmax(0), atol=1e-6)
        assert float(found.log_mass) == pytest.approx(float(torch.stack(sums).logsumexp(0)), abs=1e-5)


def test_prompts_with_fewer_options_are_not_mixed_with_padding():
    prompts = [Prompt([0], ((1,), (2,), (3,))), Prompt([0], ((1,), (2,)))]
    table = option_table(prompts, positions_of(prompts), torch.device("cpu"))
    logits = torch.zeros(2, 5, requires_grad=True)
    found = read_options(logits, table, normalise=True)
    assert found.entropy.tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    found.entropy.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_the_mass_counts_an_option_that_begins_with_another_one_once():
    prompts = [Prompt([0], ((1,), (1, 2)))]
    table = option_table(prompts, positions_of(prompts), torch.device("cpu"))
    logits = torch.tensor([[-9.0, 9, -9], [-9.0, -9, 9]])
    assert float(read_options(logits, table).log_mass.exp()) <= 1


def test_the_mass_at_the_first_token_counts_tokens_that_options_share_once():
    prompts = [Prompt([0], ((1, 2), (1, 3), (4,)))]
    table = option_table(prompts, [(0, ())], torch.device("cpu"))
    found = read_first_token(torch.zeros(1, 5), table)
    assert float(found.log_mass.exp()) == pytest.approx(2 / 5)
    assert float(found.entropy) == pytest.approx(math.log(5))


def test_sequence_entropy_is_the_mean_over_an_answers_own_positions():
    logits = torch.tensor([[0.0, 0], [9.0, 0], [0.0, 0]])
    found = read_sequence(logits, owner=torch.tensor([0, 0, 1]), first=torch.tensor([0, 2]))
    sure = float(entropy(torch.tensor([9.0, 0])))
    assert found.entropy.tolist() == pytest.approx([(math.log(2) + sure) / 2, math.log(2)], abs=1e-6)


@pytest.fixture
def objective(tmp_path: Path) -> Objective:
    setting = setting_for(tmp_path, "adamerging", tasks=("colour", "count"))
    return objective_of(setting, options_of(setting.spec.method))


PROMPTS = [
    Prompt([5, 6, 7, 8], ((9, 10, 11), (9, 15, 12), (13, 16), (9, 14))),
    Prompt([20, 21], ((22,), (23, 24, 25))),
    Prompt([30] * 9, ((31,),)),
]


def test_options_behind_one_prompt_are_computed_as_options_behind_a_prompt_each(objective):
    order, model = positions_of(PROMPTS), objective.candidate.model
    plain, tree = repeated(PROMPTS), shared(PROMPTS)
    assert tree.size < plain.size
    a, b = (built.layout(order, 0, torch.device("cpu")).logits(model) for built in (plain, tree))
    assert a.shape == (len(order), objective.candidate.model.config.vocab_size)
    assert torch.allclose(a, b, atol=1e-4)
    assert objective._may_share


def test_a_pass_with_a_square_mask_computes_the_same_and_waits_for_nothing(objective):
    order, model, device = positions_of(PROMPTS), objective.candidate.model, torch.device("cpu")
    plain, square = (repeated(PROMPTS).layout(order, 0, device, square=square) for square in (False, True))
    assert (plain.mask.dim(), square.mask.dim()) == (2, 4)
    assert torch.equal(plain.positions, square.positions)
    waits = []
    for layout in (plain, square):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            layout.logits(model)
        waits.append(sum(event.name == "aten::_local_scalar_dense" for event in profile.events()))
    assert torch.allclose(plain.logits(model), square.logits(model), atol=1e-4)
    assert waits[0] > waits[1] == 0


def test_a_base_whose_attention_is_not_known_repeats_prompts(objective):
    objective.candidate.model.config._attn_implementation = "eager"
    assert not objective._may_share
    assert sequences(PROMPTS, may_share=False).size == repeated(PROMPTS).size


def test_option_likelihoods_are_those_that_scoring_computes(objective, tmp_path):
    setting = setting_for(tmp_path, "adamerging")
    view = ModelView(objective.candidate.model, setting.encoder)
    samples = [OptionSample(prompt.ids, [list(option) for option in prompt.options]) for prompt in PROMPTS]
    scored = score_options(view, samples)
    order = positions_of(PROMPTS)
    with torch.no_grad():
        logits = shared(PROMPTS).layout(order, 0, torch.device("cpu")).logits(objective.candidate.model)
    found = read_options(logits, option_table(PROMPTS, order, torch.device("cpu")))
    for row, (sample, scores) in enumerate(zip(samples, scored, strict=True)):
        uneven = len({len(option) for option in sample.options}) > 1
        values = torch.tensor(scores.means if uneven else scores.sums)
        assert torch.allclose(found.probabilities[row, : len(values)], values.softmax(0), atol=1e-4)


def test_a_batch_in_several_passes_gives_the_gradient_of_one(objective, monkeypatch):
    from learned_support import vectors_for

    from core.fusion.learned import objective as module
    from core.fusion.learned.sums import parts_of

    vectors = vectors_for(Path(objective.candidate.model.config._name_or_path))
    made = {p: part.weighted(torch.full((len(part.runs),), 0.3)) for p, part in parts_of(vectors, "cpu").items()}
    for delta in made.values():
        delta.up.requires_grad_()
    colour = next(task for task in objective.tasks if task.name == "colour")
    objective.tasks = [colour]
    whole = objective.gradients(made, [0])
    monkeypatch.setattr(module, "TOKENS", 60)
    assert len(list(objective._questions(colour, colour.batch(0, 8)))) > 1
    parted = objective.gradients(made, [0])
    for path in whole:
        assert torch.allclose(whole[path][0], parted[path][0], atol=1e-5)
        assert whole[path][1] is None
