"""Traces: tokens that join to the text, gates as the layers applied them."""

import numpy as np
import pytest
import torch

from core.adapters.attach import tape_of
from core.chat.engine import ChatEngine
from core.chat.settings import Sampling
from core.chat.trace import Trace
from core.chat.tracing import pieces, trace
from core.data.templates import TextEncoder
from core.errors import ConfigurationError, NotFoundError
from core.home import BUNDLED_BASE_FOLDER
from core.schema import MethodSpec, ModelSpec
from tests.support.adapted import adapter_folder, method

MESSAGES = [{"role": "user", "content": "Say red, 🎈 naïve <|end|>."}]
SPECS = {gate: method(gate) for gate in ("token", "sequence", "task")}
SPECS["lora"] = MethodSpec(name="lora")
SPECS["top"] = MethodSpec(name="split", cells=[{"experts": 4, "rank": 2, "gate": {"word": "token", "top_k": 2}}])

SPECS["ranks"] = MethodSpec(name="mode", options={"experts": 3, "rank": 4, "expert_rank": 2})


@pytest.fixture(scope="module")
def engine(base, tmp_path_factory):
    engine = ChatEngine(ModelSpec(base=str(base)), "cpu")
    for seed, (name, spec) in enumerate(SPECS.items()):
        engine.load(name, adapter_folder(base, tmp_path_factory.mktemp(name) / "a", spec, seed=seed))
    return engine


@pytest.mark.parametrize("text", ["plain words", "🎈 naïve  日本語\n\ttab", "<|user|>\nhi<|end|>", "é", " a"])
def test_pieces_join_to_the_text_with_special_tokens(text):
    encoder = TextEncoder(BUNDLED_BASE_FOLDER)
    ids = encoder.ids(text)
    found = pieces(encoder, ids)
    assert len(found) == len(ids) and "".join(found) == encoder.decode(ids, keep_special=True) == text


def test_a_trace_says_what_a_forward_pass_decided(engine):
    found = trace(engine, "token", MESSAGES, answer="red")
    encoder = engine.encoder
    prompt, answer = encoder.ids(encoder.render(MESSAGES)), encoder.ids("red")
    ids = torch.tensor([prompt + answer])
    engine.model.set_adapter("token")
    with torch.no_grad():
        engine.model(input_ids=ids)
    slots = list(tape_of(engine.model).written("token"))
    assert found.text == encoder.render(MESSAGES) + "red" and found.answer == "red"
    assert found.roles == ["prompt"] * len(prompt) + ["answer"] * len(answer)
    assert [(site.layer, site.projection) for site in found.sites] == [(s.site.layer, s.site.projection) for s in slots]
    assert found.weights.shape == (len(slots), ids.shape[1], 2) and found.weights.dtype == np.float32
    for row, slot in zip(found.weights, slots, strict=True):
        assert np.allclose(row, slot.weights[0].numpy(), atol=1e-5)


def test_decisions_on_a_sample_stand_in_every_row(engine):
    for gate in ("sequence", "task"):
        found = trace(engine, gate, MESSAGES, answer="red", task="colours")
        assert {site.unit for site in found.sites} == {"sample"}
        assert (found.weights == found.weights[:, :1]).all()
    first, other = (trace(engine, "task", MESSAGES, task=task) for task in ("colours", "echo"))
    assert (first.task, other.task, first.tasks) == ("colours", "echo", ["colours", "echo"])
    assert not np.allclose(first.weights, other.weights)
    with pytest.raises(ConfigurationError, match="was not trained on a task"):
        trace(engine, "task", MESSAGES, task="else")


def test_an_adapter_that_answers_by_task_never_picks_one_by_itself(engine):
    with pytest.raises(ConfigurationError, match="none of its tasks was chosen.*colours, echo"):
        trace(engine, "task", MESSAGES)
    assert trace(engine, "token", MESSAGES).task is None


def test_blocks_of_ranks_are_sites_of_their_own(engine):
    found = trace(engine, "ranks", MESSAGES)
    slots = list(tape_of(engine.model).slots)
    assert [site.place for site in found.sites[:2]] == ["q_proj rank 0-1", "q_proj rank 2-3"]
    assert len(found.sites) == 2 * sum(slot.adapter == "ranks" for slot in slots)
    assert np.allclose(found.weights[..., :3].sum(-1), 1, atol=1e-5) and not np.allclose(*found.weights[:2])
    again = Trace.unpacked(found.packed())
    assert again.sites == found.sites and np.array_equal(again.weights, found.weights, equal_nan=True)


def test_experts_that_were_not_selected_weigh_nothing(engine):
    weights = trace(engine, "top", MESSAGES).weights
    assert ((weights > 0).sum(-1) == 2).all() and np.allclose(weights.sum(-1), 1, atol=1e-5)


def test_an_answer_is_generated_greedily(engine):
    found = trace(engine, "token", MESSAGES, generate=5)
    said = "".join(p.text for p in engine.stream("token", MESSAGES, Sampling(max_new_tokens=5, temperature=0)))
    assert found.roles.count("answer") <= 5 and found.ended in ("end", "length")
    assert said.strip() in found.answer


def test_raw_text_is_taken_as_it_is(engine):
    assert trace(engine, "token", raw="no template").text.endswith("no template")
    assert "assistant" not in trace(engine, "token", raw="no template").text


def test_what_has_no_gates_says_so_by_having_no_sites(engine):
    found = trace(engine, "lora", MESSAGES)
    assert found.sites == [] and found.weights.shape == (0, len(found.tokens), 0)
    with pytest.raises(NotFoundError, match="No adapter"):
        trace(engine, "nobody", MESSAGES)


def test_a_text_that_is_too_long_loses_its_middle(engine):
    found = trace(engine, "token", [{"role": "user", "content": "one two " * 400}], answer="red")
    assert found.cut > 0 and len(found.tokens) == 512 and found.answer == "red"


def test_a_trace_travels_as_json(engine):
    found = trace(engine, "token", MESSAGES)
    again = Trace.unpacked(found.packed() | {"later": "field"})
    assert again.sites == found.sites and again.tokens == found.tokens
    assert np.array_equal(again.weights, found.weights)
