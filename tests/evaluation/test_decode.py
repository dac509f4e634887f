"""Growing answers: what a slab, company, joining and leaving give is what the whole text gives at once."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from core.adapters.attach import attach
from core.data.templates import TextEncoder
from core.evaluation import graphs
from core.evaluation.decode import Decoding, together
from core.evaluation.slab import COLUMNS
from core.evaluation.view import ModelView, left_padded
from core.schema import MethodSpec
from tests.support.adapted import move
from tests.support.bases import DECODERS
from tests.support.tiny import tiny_base

PROMPTS = [list(range(3, 3 + length)) for length in (4, 11, 7, 1)]
METHODS = {
    "lora": MethodSpec(name="lora"),
    "mosld": MethodSpec(name="mosld"),
    "hydra": MethodSpec(name="hydralora"),
    "sequence": MethodSpec(name="split", cells=[{"experts": 3, "rank": 2, "down": "shared", "gate": "sequence"}]),
    "task": MethodSpec(name="mtl_lora"),
    "mor1e": MethodSpec(name="mor1e"),
    "moa": MethodSpec(name="moa"),
    "pool": MethodSpec(name="mixlora"),
    "subspace": MethodSpec(name="malora"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def view(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    for number, (name, method) in enumerate(METHODS.items()):
        model = attach(model, method, tasks=["a", "b"], name=f"x-{name}", seed=number)
    return ModelView(move(model, size=0.1), TextEncoder(folder))


def whole(view, texts, tasks, names, answers):
    """The last logits of prompts and answers read at once, a row at a time."""
    rows = []
    for text, task, name, answer in zip(texts, tasks, names or [None] * len(texts), answers, strict=True):
        batch = left_padded([text], [task], view.encoder.pad_id, view.device, [answer])
        if name is not None:
            batch = type(batch)(batch.ids, batch.mask, batch.positions, batch.roles, batch.task_index, [name])
        rows.append(view(batch, keep=1).logits[0, -1].float())
    return torch.stack(rows)


def grown(decoding, steps, answers):
    """Grow by the most likely tokens; ``answers`` by sample."""
    for _ in range(steps):
        tokens = decoding.logits.argmax(-1).tolist()
        for row, token in zip(decoding.rows, tokens, strict=True):
            answers[row].append(token)
        decoding.push(tokens)


@torch.no_grad()
def check(view, decoding, texts, tasks, names, answers, tolerance=2e-4):
    wanted = whole(
        view,
        *([given[row] for row in decoding.rows] for given in (texts, tasks)),
        None if names is None else [names[row] for row in decoding.rows],
        [answers[row] for row in decoding.rows],
    )
    torch.testing.assert_close(decoding.logits, wanted, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_rows_with_adapters_of_their_own_come_and_go(view):
    names = [f"x-{name}" for name in METHODS] + ["__base__", "x-sequence", "x-mosld"]
    texts = [PROMPTS[i % len(PROMPTS)] for i in range(len(names))]
    tasks, answers = [i % 2 for i in range(len(names))], [[] for _ in names]
    first, second = (Decoding(view, texts[part], tasks[part], names[part]) for part in (slice(0, 5), slice(5, None)))
    grown(first, 3, answers[:5])
    assert first.join(second)
    assert sorted(first.rows) == list(range(len(names)))
    assert together([names[row] for row in first.rows]) == list(range(len(names))), "rows of one adapter stand together"
    grown(first, 3, answers)
    check(view, first, texts, tasks, names, answers)
    assert first.keep([place for place, row in enumerate(first.rows) if row not in (0, 4, 9, 10)])
    grown(first, 2, answers)
    check(view, first, texts, tasks, names, answers)
    assert first.keep([len(first.rows) - 1])
    grown(first, 2, answers)
    check(view, first, texts, tasks, names, answers)


@pytest.mark.parametrize("expected", [2, COLUMNS])
@torch.no_grad()
def test_a_slab_grows_when_it_is_full(view, expected):
    decoding, answers = Decoding(view, PROMPTS[:2], [0, 1], ["x-mosld", "x-task"], expected), [[], []]
    grown(decoding, COLUMNS + 3, answers)
    check(view, decoding, PROMPTS[:2], [0, 1], ["x-mosld", "x-task"], answers)


@torch.no_grad()
def test_an_answer_of_the_bare_base_goes_on_when_it_gets_adapters(folder):
    bare = ModelView(AutoModelForCausalLM.from_pretrained(folder).eval(), TextEncoder(folder))
    alone, answers, wanted = Decoding(bare, PROMPTS[:1], [0]), [[]], [[]]
    grown(alone, 8, wanted)
    decoding = Decoding(bare, PROMPTS[:1], [0])
    grown(decoding, 4, answers)
    adapted = ModelView(move(attach(bare.model, METHODS["mosld"], tasks=["a"], name="x")), bare.encoder)
    decoding.under(adapted)
    grown(decoding, 2, answers)
    assert decoding.join(Decoding(adapted, PROMPTS[1:2], [0], ["x"]))
    answers.append([])
    grown(decoding, 2, answers)
    assert answers[0] == wanted[0]
    check(adapted, decoding, PROMPTS[:2], [0, 0], ["__base__", "x"], answers)


@pytest.mark.parametrize("steady", [False, True], ids=["exact", "steady"])
@pytest.mark.parametrize("one", DECODERS, ids=lambda one: one.id)
@torch.no_grad()
def test_every_base_grows_as_it_reads(one, steady, folder, monkeypatch):
    """Bases that a slab does not fit keep the cache that they make; ``steady``: as CUDA graphs hold steps."""
    if steady:
        monkeypatch.setattr("core.evaluation.graphs.possible", lambda base: graphs._trusted.get(base, True))
        monkeypatch.setattr("core.evaluation.graphs.StepGraph.recorded", lambda base, step, ids: step)
    model = attach(
        one.made(), MethodSpec(name="mosld", options={"modules": "all-linear", "experts": 3}), tasks=["a"], name="x"
    )
    view = ModelView(move(model, size=0.05), TextEncoder(folder))
    names, answers = ["x", "__base__", "x"], [[], [], []]
    decoding = Decoding(view, PROMPTS[:3], [0, 0, 0], names)
    grown(decoding, 4, answers)
    check(view, decoding, PROMPTS[:3], [0, 0, 0], names, answers, 2e-3)
    other = Decoding(view, PROMPTS[3:], [0], ["x"])
    if decoding.join(other):
        names, answers = [*names, "x"], [*answers, []]
        grown(decoding, 3, answers)
        check(view, decoding, PROMPTS, [0] * 4, names, answers, 2e-3)
