"""Option likelihoods: shared prompts and padding give what one plain pass per option gives."""

import pytest
import torch

from core.data.templates import TextEncoder
from core.evaluation.options import OptionSample, score_options
from core.evaluation.view import ModelView
from tests.support.tiny import tiny_base

TEXTS = ("Say red, green or blue.", "What is the sentiment?", "A dull story, badly told; I wanted my money back.", "x")
WAYS = ("tree", "cache", "repeat")
OPTIONS = ("yes", "no", "a much longer answer of several words", "")


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    from transformers import AutoModelForCausalLM

    folder = tiny_base(tmp_path_factory.mktemp("base"))
    return ModelView(AutoModelForCausalLM.from_pretrained(folder).eval(), TextEncoder(folder))


def samples(encoder, texts=TEXTS, options=OPTIONS):
    return [
        OptionSample(encoder.ids(text), [encoder.answer_ids(option) for option in options[: 2 + i % 3]])
        for i, text in enumerate(texts)
    ]


@torch.no_grad()
def plainly(model, sample):
    """One unpadded pass per option: the sum over the option's tokens, the end token included."""
    sums = []
    for option in sample.options:
        ids = torch.tensor([sample.prompt + option])
        logits = model(ids).logits[0].log_softmax(dim=-1)
        places = range(len(sample.prompt) - 1, ids.shape[1] - 1)
        sums.append(sum(float(logits[place, ids[0, place + 1]]) for place in places))
    return sums


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_sums_equal_one_pass_per_option(view, batch_size, way):
    wanted = samples(view.encoder)
    found = score_options(view, wanted, batch_size=batch_size, way=way)
    for sample, scores in zip(wanted, found, strict=True):
        assert scores.sums == pytest.approx(plainly(view.model, sample), abs=1e-4)


def test_means_divide_by_all_tokens_and_the_end_token(view):
    (sample,) = samples(view.encoder, TEXTS[:1], ("yes", "no"))
    (scores,) = score_options(view, [sample])
    lengths = [len(view.encoder.ids(text)) + 1 for text in ("yes", "no")]
    assert scores.means == pytest.approx([s / n for s, n in zip(scores.sums, lengths, strict=True)])


def test_all_likelihoods_of_a_distribution_sum_to_one(view):
    vocabulary = view.model.config.vocab_size
    (scores,) = score_options(view, [OptionSample([1, 5, 9], [[token] for token in range(vocabulary)])])
    assert torch.tensor(scores.sums).exp().sum() == pytest.approx(1, abs=1e-5)


def test_the_model_keeps_its_mode_and_few_rows_fit_where_memory_is_short(view, monkeypatch):
    sizes, call = [], type(view).__call__

    def short(self, batch, **options):
        sizes.append(len(batch.ids))
        if len(batch.ids) > 2:
            raise torch.OutOfMemoryError("no room")
        return call(self, batch, **options)

    wanted = samples(view.encoder)
    expected = score_options(view, wanted)
    monkeypatch.setattr(type(view), "__call__", short)
    view.model.train()
    found = score_options(view, wanted, batch_size=4)
    assert view.model.training
    view.model.eval()
    assert max(sizes) > 2 and sizes[-1] <= 2  # it was refused, and went on with less
    for a, b in zip(expected, found, strict=True):
        assert a.sums == pytest.approx(b.sums, abs=1e-4)
