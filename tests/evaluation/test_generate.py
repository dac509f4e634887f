"""Greedy generation: batches with padding give what one prompt at a time gives."""

import pytest
import torch

from core.data.templates import TextEncoder
from core.evaluation.generate import GenerationSample, generate
from core.evaluation.view import ModelView
from core.jobs.sinks import Cancelled
from tests.support.tiny import TEXTS, tiny_base


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    from transformers import AutoModelForCausalLM

    folder = tiny_base(tmp_path_factory.mktemp("base"))
    return ModelView(AutoModelForCausalLM.from_pretrained(folder).eval(), TextEncoder(folder))


def samples(view):
    return [GenerationSample(view.encoder.ids(text)[: 3 + 4 * i]) for i, text in enumerate(TEXTS)]


def test_a_batch_equals_one_prompt_at_a_time_and_transformers_generate(view):
    together = generate(view, samples(view), max_new_tokens=12)
    assert len(set(together)) > 1
    for sample, text in zip(samples(view), together, strict=True):
        assert generate(view, [sample], max_new_tokens=12) == [text]
        ids = view.model.generate(torch.tensor([sample.prompt]), do_sample=False, max_new_tokens=12)
        assert view.encoder.decode(ids[0, len(sample.prompt) :].tolist()).strip() == text


def test_answers_end_at_the_end_token_and_leave_the_batch(view, monkeypatch):
    sizes, call = [], type(view).__call__

    def count(self, batch, **options):
        sizes.append(len(batch.ids))
        out = call(self, batch, **options)
        # after four tokens the first prompt's answer (the longest prompt comes first) ends
        if len(sizes) == 4:
            out.logits[0, :, view.encoder.eos_id] = 1e4
        return out

    free = generate(view, samples(view), max_new_tokens=8)
    monkeypatch.setattr(type(view), "__call__", count)
    found = generate(view, samples(view), max_new_tokens=8)
    assert sizes == [5] * 4 + [4] * 4
    assert found[:4] == free[:4]
    assert free[4].startswith(found[4]) and len(found[4]) < len(free[4])


def test_a_cancelled_job_stops_within_a_token(view):
    steps = []

    def check():
        steps.append(1)
        if len(steps) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        generate(view, samples(view), max_new_tokens=50, check=check)
    assert len(steps) == 3
