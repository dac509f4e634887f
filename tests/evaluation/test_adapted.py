"""Adapters are scored as they were trained: every kind of gate, task by task, from the cache or from the start."""

import pytest
import torch

from core.adapters.attach import attach
from core.data.templates import TextEncoder
from core.evaluation.generate import GenerationSample, generate
from core.evaluation.options import OptionSample, score_options
from core.evaluation.view import ModelView
from tests.support.adapted import GATES, TASKS, method, move
from tests.support.tiny import TEXTS, tiny_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def base_of(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module", params=GATES)
def view(request, folder):
    return ModelView(move(attach(base_of(folder), method(request.param), tasks=TASKS)), TextEncoder(folder))


def samples(encoder):
    options = [encoder.answer_ids(text) for text in ("yes", "a longer answer", "no")]
    return [OptionSample(encoder.ids(text)[: 4 + 3 * i], options[: 2 + i % 2], i % 2) for i, text in enumerate(TEXTS)]


@torch.no_grad()
def plainly(model, sample):
    """One unpadded pass per option, roles and task given as in training."""
    sums = []
    for option in sample.options:
        ids = torch.tensor([sample.prompt + option])
        role = torch.tensor([[1] * len(sample.prompt) + [2] * len(option)], dtype=torch.int8)
        logits = model(input_ids=ids, task_index=torch.tensor([sample.task_index]), token_role=role).logits[0]
        chosen = logits.log_softmax(dim=-1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
        sums.append(float(chosen[len(sample.prompt) - 1 :].sum()))
    return sums


@pytest.mark.parametrize("way", ["tree", "cache", "repeat"])
def test_option_scores_equal_one_pass_per_option(view, way):
    found = score_options(view, samples(view.encoder), batch_size=4, way=way)
    for sample, scores in zip(samples(view.encoder), found, strict=True):
        assert scores.sums == pytest.approx(plainly(view.model, sample), abs=1e-4)


def test_the_base_under_an_adapter_is_the_base_alone(view, folder):
    off = ModelView(view.model, view.encoder, adapter=False)
    alone = ModelView(base_of(folder), view.encoder)
    wanted = samples(view.encoder)
    adapted = score_options(view, wanted)
    for on, under, bare in zip(adapted, score_options(off, wanted), score_options(alone, wanted), strict=True):
        assert under.sums == pytest.approx(bare.sums, abs=1e-5)
        assert on.sums != pytest.approx(bare.sums, abs=1e-2)
    assert score_options(view, wanted) == adapted  # and it is on again afterwards


def test_generation_in_a_batch_equals_the_model_s_own_alone(view):
    prompts = [GenerationSample(s.prompt, s.task_index) for s in samples(view.encoder)]
    together = generate(view, prompts, max_new_tokens=10)
    assert len(set(together)) > 1
    for sample, text in zip(prompts, together, strict=True):
        ids = torch.tensor([sample.prompt])
        task = torch.tensor([sample.task_index])
        out = view.model.generate(input_ids=ids, task_index=task, do_sample=False, max_new_tokens=10)
        assert view.encoder.decode(out[0, len(sample.prompt) :].tolist()).strip() == text


def test_a_task_gate_reads_the_task(folder):
    view = ModelView(move(attach(base_of(folder), method("task"), tasks=TASKS)), TextEncoder(folder))
    first, second = (
        score_options(view, [OptionSample(s.prompt, s.options, task) for s in samples(view.encoder)]) for task in (0, 1)
    )
    assert all(a.sums != pytest.approx(b.sums, abs=1e-2) for a, b in zip(first, second, strict=True))
