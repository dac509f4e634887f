"""Scoring, generation and chat on CUDA: as on the CPU in float32, and near it in bfloat16."""

import pytest

from core.adapters.attach import attach
from core.chat.engine import ChatEngine
from core.chat.settings import Sampling
from core.data.templates import TextEncoder
from core.evaluation.generate import GenerationSample, generate
from core.evaluation.options import OptionSample, score_options
from core.evaluation.view import ModelView
from core.models import load_base
from core.schema import MethodSpec, ModelSpec
from tests.support.adapted import GATES, TASKS, adapter_folder, method, move
from tests.support.tiny import TEXTS, tiny_base

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def view(base, gate, device, dtype="float32"):
    model = load_base(ModelSpec(base=str(base), dtype=dtype), device, folder=base)
    return ModelView(move(attach(model.cpu(), method(gate), tasks=TASKS)).to(device), TextEncoder(base))


def samples(encoder):
    options = [encoder.answer_ids(text) for text in ("yes", "a longer answer", "no")]
    return [OptionSample(encoder.ids(text)[: 4 + 3 * i], options[: 2 + i % 2], i % 2) for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("gate", GATES)
def test_option_scores_on_cuda_equal_those_on_the_cpu(base, gate):
    cpu, cuda = view(base, gate, "cpu"), view(base, gate, "cuda")
    wanted = samples(cpu.encoder)
    for a, b in zip(score_options(cpu, wanted), score_options(cuda, wanted, batch_size=3), strict=True):
        assert b.sums == pytest.approx(a.sums, abs=2e-2)
    trees, *others = (score_options(cuda, wanted, way=way) for way in ("tree", "cache", "repeat"))
    for other in others:
        for a, b in zip(trees, other, strict=True):
            assert b.sums == pytest.approx(a.sums, abs=1e-3)


@pytest.mark.parametrize("gate", GATES)
def test_bfloat16_scores_stay_near_float32(base, gate):
    exact, rough = view(base, gate, "cuda"), view(base, gate, "cuda", "bfloat16")
    wanted = samples(exact.encoder)
    for a, b in zip(score_options(exact, wanted), score_options(rough, wanted), strict=True):
        assert b.sums == pytest.approx(a.sums, rel=0.05, abs=0.5)


def test_generation_in_a_batch_equals_one_prompt_at_a_time(base):
    cuda = view(base, "token", "cuda")
    prompts = [GenerationSample(sample.prompt, sample.task_index) for sample in samples(cuda.encoder)]
    together = generate(cuda, prompts, max_new_tokens=10)
    assert together == [generate(cuda, [prompt], max_new_tokens=10)[0] for prompt in prompts]


def test_chats_side_by_side_equal_each_alone(base, tmp_path):
    engine = ChatEngine(ModelSpec(base=str(base), dtype="float32"), "cuda")
    engine.load("mixture", adapter_folder(base, tmp_path / "mixture", method("sequence")))
    engine.load("single", adapter_folder(base, tmp_path / "single", MethodSpec(name="lora"), seed=1))
    messages = [{"role": "user", "content": "Say red."}]
    sampling = Sampling(max_new_tokens=12, temperature=0)

    def text(pieces, name):
        return "".join(piece.text for piece in pieces if piece.name == name)

    together = list(engine.side_by_side(["mixture", "single", None], messages, sampling))
    for name in ("mixture", "single", None):
        assert text(together, name) == text(engine.stream(name, messages, sampling), name)
