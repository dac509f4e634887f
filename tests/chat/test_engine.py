"""Chats: seeds repeat, company changes nothing, stopping stops."""

import threading
from types import SimpleNamespace

import pytest
import torch

from core.chat.answers import GrowingText, draw
from core.chat.engine import ChatEngine
from core.chat.settings import Sampling
from core.errors import ConfigurationError, NotFoundError
from core.evaluation.decode import Decoding
from core.schema import MethodSpec, ModelSpec
from tests.support.adapted import adapter_folder, method
from tests.support.tiny import tiny_base

MESSAGES = [{"role": "user", "content": "What is the sentiment? A dull story."}]
DRAWN = Sampling(max_new_tokens=16, temperature=1.0, top_p=0.95, seed=3)
GREEDY = Sampling(max_new_tokens=16, temperature=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory):
    specs = {"token": method("token"), "sequence": method("sequence"), "lora": MethodSpec(name="lora")}
    root = tmp_path_factory.mktemp("adapters")
    return {name: adapter_folder(base, root / name, spec, seed=i) for i, (name, spec) in enumerate(specs.items())}


@pytest.fixture
def engine(base, folders):
    engine = ChatEngine(ModelSpec(base=str(base)), "cpu")
    for name, folder in folders.items():
        engine.load(f"a-{name}", folder)
    return engine


def text(pieces):
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("name", [None, "a-token", "a-sequence", "a-lora"])
def test_the_same_seed_gives_the_same_answer_and_another_seed_another(engine, name):
    first, again = (list(engine.stream(name, MESSAGES, DRAWN)) for _ in range(2))
    assert text(first) == text(again) != ""
    other = text(engine.stream(name, MESSAGES, DRAWN.model_copy(update={"seed": 4})))
    assert other != text(first)
    assert [piece.tokens for piece in first] == sorted({piece.tokens for piece in first} | {first[-1].tokens})
    assert first[-1].ended in ("end", "length") and all(piece.ended is None for piece in first[:-1])
    assert first[0].prompt_tokens == len(engine.encoder.ids(engine.encoder.render(MESSAGES)))


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_several_answers_at_once_equal_each_alone(engine, sampling):
    names = ["a-token", None, "a-sequence", "a-lora"]
    together = list(engine.side_by_side(names, MESSAGES, sampling))
    alone = {name: text(engine.stream(name, MESSAGES, sampling)) for name in names}
    assert {name: text(p for p in together if p.name == name) for name in names} == alone
    assert len(set(alone.values())) == 4


def test_the_base_answers_as_it_does_without_any_adapter(engine, base):
    alone = ChatEngine(ModelSpec(base=str(base)), "cpu")
    assert text(engine.stream(None, MESSAGES, GREEDY)) == text(alone.stream(None, MESSAGES, GREEDY))


def test_answers_interleave(engine):
    wanted = [text(engine.stream(name, MESSAGES, DRAWN)) for name in ("a-token", "a-sequence")]
    streams = [engine.stream(name, MESSAGES, DRAWN) for name in ("a-token", "a-sequence")]
    found = ["", ""]
    for _ in range(DRAWN.max_new_tokens + 1):
        for i, stream in enumerate(streams):
            found[i] += getattr(next(stream, None), "text", "")
    assert found == wanted


def test_a_stopped_answer_computes_no_further_token(engine, monkeypatch):
    passes, push = [], Decoding.push
    monkeypatch.setattr(Decoding, "push", lambda self, tokens: passes.append(1) or push(self, tokens))
    stop, pieces = threading.Event(), []
    for piece in engine.stream("a-token", MESSAGES, Sampling(max_new_tokens=200, temperature=0), stop):
        pieces.append(piece)
        if len(pieces) == 3:
            stop.set()
    assert pieces[-1].ended == "stopped" and pieces[-1].tokens == 3
    assert len(passes) == 2


def test_adapters_come_and_go(engine, folders):
    answer = text(engine.stream("a-lora", MESSAGES, GREEDY))
    bare = text(engine.stream(None, MESSAGES, GREEDY))
    engine.unload("a-token")
    with pytest.raises(NotFoundError, match="No adapter 'a-token' is loaded. Loaded are: a-sequence, a-lora"):
        list(engine.stream("a-token", MESSAGES, GREEDY))
    assert text(engine.stream("a-lora", MESSAGES, GREEDY)) == answer
    engine.unload("a-sequence")
    engine.unload("a-lora")
    assert text(engine.stream(None, MESSAGES, GREEDY)) == bare
    engine.load("back", folders["lora"])
    assert text(engine.stream("back", MESSAGES, GREEDY)) == answer


def test_a_long_conversation_loses_its_oldest_turns_and_keeps_the_system_message(engine):
    turns = [{"role": role, "content": f"{role} says {i} " * 12} for i in range(8) for role in ("user", "assistant")]
    messages = [{"role": "system", "content": "Be brief."}, *turns, *MESSAGES]
    (first, *_) = engine.stream(None, messages, GREEDY)
    assert first.prompt_tokens <= 512 - GREEDY.max_new_tokens
    shorter = [messages[0], *messages[-3:]]
    assert first.prompt_tokens >= len(engine.encoder.ids(engine.encoder.render(shorter)))
    with pytest.raises(ConfigurationError, match="reads 512 tokens in all"):
        list(engine.stream(None, MESSAGES, Sampling(max_new_tokens=600)))


def test_a_task_is_known_by_name(engine):
    task = Sampling(max_new_tokens=2, task="echo")
    assert list(engine.stream("a-token", MESSAGES, task))
    with pytest.raises(ConfigurationError, match="It knows colours, echo"):
        list(engine.stream("a-token", MESSAGES, Sampling(task="other")))


def drawn_from(logits, **cut):
    """What 400 draws from the same logits give."""
    sampling = Sampling(**{"temperature": 1, "top_p": 1.0, **cut})
    random = torch.Generator().manual_seed(0)
    asked = SimpleNamespace(sampling=sampling, random=random)
    return draw(logits.expand(400, -1), [asked] * 400)


def test_top_k_and_top_p_cut_the_tail():
    logits = torch.log(torch.tensor([0.15, 0.5, 0.05, 0.3]))

    def drawn(**cut):
        return set(drawn_from(logits, **cut))

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=3) == {0, 1, 3}
    assert drawn(top_p=0.7) == {1, 3}
    assert drawn(top_k=3, top_p=0.6) == {1, 3}
    assert drawn(top_p=0.1) == drawn(temperature=0) == {1}
    counts = torch.tensor(drawn_from(logits)).bincount(minlength=4) / 400
    torch.testing.assert_close(counts, logits.exp(), atol=0.08, rtol=0)


@pytest.mark.parametrize("cut", [{}, {"top_p": 0.8}, {"top_k": 300}, {"top_k": 300, "top_p": 0.9}, {"top_k": 5}])
def test_a_large_vocabulary_is_drawn_from_as_a_small_one(cut, monkeypatch):
    """The few that are looked at first change nothing, whether the tail is flat or steep."""
    for steep in (1e-6, 0.002, 1.0):
        logits = -steep * torch.arange(1000.0)
        found = drawn_from(logits, **cut)
        monkeypatch.setattr("core.chat.answers.LIKELY", 1000)
        assert drawn_from(logits, **cut) == found
        monkeypatch.undo()


def test_each_row_is_drawn_by_its_own_settings():
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.7]])).expand(3, -1)
    settings = [{"temperature": 0}, {"temperature": 5.0, "top_p": 1.0}, {"top_k": 1}]
    found = {tuple(draw(logits, [asked(seed, **one) for one in settings])) for seed in range(60)}
    assert {row[0] for row in found} == {row[2] for row in found} == {2}
    assert {row[1] for row in found} == {0, 1, 2}


def asked(seed, **settings):
    return SimpleNamespace(sampling=Sampling(**settings), random=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "text", ["Grüße, 漢字 and 🙂👩‍👩‍👧 in one line. " * 4, "  two  spaces\n\tand a tab ", "e\u0301te\u0301"]
)
def test_text_that_grows_token_by_token_is_the_text_of_all(engine, text):
    ids = engine.encoder.ids(text)
    growing, grown = GrowingText(engine.encoder), ""
    for end in range(1, len(ids) + 1):
        piece = growing.grown(ids[:end], whole=end == len(ids))
        assert "\ufffd" not in piece
        grown += piece
    assert grown == engine.encoder.decode(ids) and len(ids) > 4


def test_half_a_character_is_told_when_nothing_follows(engine):
    ids = engine.encoder.ids("a漢")[:-1]
    growing = GrowingText(engine.encoder)
    said = [growing.grown(ids[:end], whole=False) for end in range(1, len(ids) + 1)]
    assert "".join(said) == "a" and growing.grown(ids, whole=True) == engine.encoder.decode(ids)[1:] != ""
