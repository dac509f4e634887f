"""The pre-training recipe: what goes into its text, that its parts are right, and that all of it runs in little."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.data.templates import TextEncoder
from recipes.base_model import Shape, build_model, document_loss, logits, rotary
from recipes.corpus import SEEN, UNSEEN, WHOLE_SENTENCES, draw_template, instruction_rows, instruction_tokens
from recipes.muon import Muon, orthogonal
from recipes.pretrain_base import CPU, Settings, Windows, rate
from recipes.smoke_text import write_tasks

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("TESSERA_TEST_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "tasks").is_dir(), reason="no task data; set TESSERA_TEST_DATA to a folder with tasks/ and corpus/"
)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("smoke") / "base"
    command = [sys.executable, "-m", "recipes.pretrain_base", "--smoke", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return out


def test_smoke_run_ends_in_a_loadable_folder(smoke):
    tokenizer, model = AutoTokenizer.from_pretrained(smoke), AutoModelForCausalLM.from_pretrained(smoke)
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == len(tokenizer)
    question = [{"role": "user", "content": "Who?"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    assert asked == TextEncoder(smoke).render(question)


def test_smoke_run_learns(smoke):
    lines = [json.loads(line) for line in (smoke / "training.jsonl").read_text("utf-8").splitlines()]
    losses = [line["held_out"] for line in lines if "held_out" in line]
    assert losses[-1] < 0.3 * losses[0]
    assert json.loads((smoke / "training.json").read_text("utf-8"))["held_out"]["nats_per_token"] < 2


@pytest.fixture
def model():
    built = build_model(Shape(layers=2, hidden=32, heads=2, feed_forward=48), 64, 16, pad=0, begin=1, end=2)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return built


def test_forward_pass_is_that_of_transformers(model):
    ids = torch.randint(3, 64, (2, 16))
    torch.testing.assert_close(logits(model, ids, *rotary(model, 16)), model(ids).logits, atol=1e-4, rtol=1e-4)


def test_document_loss_counts_each_token_after_the_begin_token_once(model):
    tokens = np.array([1, 5, 6, 7, 2, 1, *range(3, 40), 2])
    nats, count = document_loss(model, tokens, 16, batch=2)
    assert count == 4 + 38
    first, second = torch.tensor(tokens[:5])[None], torch.tensor(tokens[5:])[None]
    pieces = (first, second[:, :17], second[:, 16:33], second[:, 32:])
    expected = sum(
        float(torch.nn.functional.cross_entropy(model(part[:, :-1]).logits[0], part[0, 1:], reduction="sum"))
        for part in pieces
    )
    assert nats == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shape", [(3, 24, 8), (3, 8, 24), (3, 16, 16)])
def test_muon_update_is_nearly_orthogonal(shape):
    singular = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0))).float())
    assert singular.min() > 0.3 and singular.max() < 1.4


def test_muon_steps_alike_matrices_together_and_apart_alike():
    torch.manual_seed(0)
    start, gradients = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    together = [torch.nn.Parameter(m.clone()) for m in start]
    apart = [torch.nn.Parameter(m.clone()) for m in start]
    for parameters in (together, apart):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
    Muon(together, lr=0.1, weight_decay=0.1).step()
    for parameter in apart:
        Muon([parameter], lr=0.1, weight_decay=0.1).step()
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-2)


def test_rate_rises_stays_and_falls_to_zero():
    settings = Settings(warmup=10, decay=0.5)
    assert [rate(settings, step, step / 100) for step in (0, 9, 50, 75, 100)] == pytest.approx([0.1, 1, 1, 0.5, 0])


def test_windows_show_every_place_once_an_epoch():
    windows = Windows(np.arange(1001), length=10, device=CPU, seed=0)
    starts = windows.take(99)[:, 0]
    assert len(set(starts.tolist())) == 99
    assert (starts.sort().values.diff() == 10).all()
    assert windows.take(500).shape == (500, 11)


def test_instruction_rows_read_no_test_file(tmp_path):
    write_tasks(tmp_path, rows=3)  # writes train.jsonl alone
    rows = instruction_rows(tmp_path)
    assert {row["task"] for row in rows} == set(SEEN)
    assert all(row["instruction"] == "Which animal is meant?" for row in rows)


def test_one_word_inputs_are_left_out(tmp_path):
    write_tasks(tmp_path, rows=1)
    path = tmp_path / "sms_spam" / "train.jsonl"
    path.write_text(path.read_text("utf-8") + json.dumps({"input": "Yup", "output": "not spam"}) + "\n", "utf-8")
    assert all(row["input"] != "Yup" for row in instruction_rows(tmp_path))


def test_whole_sentences_are_learnt_without_a_prompt():
    row = {"task": WHOLE_SENTENCES[0], "instruction": "Which?", "input": "x", "output": "A cat sleeps."}
    assert draw_template(row, random.Random(0)).style == "none"


def test_rows_are_shown_in_several_prompt_forms():
    encoder = TextEncoder(ROOT / "assets" / "base")
    row = {
        "task": "creak",
        "instruction": "Is it true?",
        "input": "Cats bark.",
        "output": "no",
        "choices": ["yes", "no"],
    }
    shown = encoder.decode(instruction_tokens([row], encoder, 60, 128, seed=0).tolist(), keep_special=True)
    for form in (
        "<|begin|><|user|>\nIs it true?\n\nCats bark.<|end|>\n<|assistant|>\nno<|end|>",
        "<|begin|>Is it true?\n\nCats bark.\nno<|end|>",
        "Is it true?\n\n- yes\n- no\n\nCats bark.",
        "Is it true?\n\n- no\n- yes\n\nCats bark.",
        "<|begin|><|system|>\n",
    ):
        assert form in shown


def plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


@needs_data
def test_no_test_row_is_among_the_instruction_rows():
    def key(name: str) -> str:
        return "output" if name in WHOLE_SENTENCES else "input"

    taught = {plain(row[key(row["task"])]) for row in instruction_rows(DATA / "tasks")}
    for name in (*SEEN, *UNSEEN):
        lines = (DATA / "tasks" / name / "test.jsonl").read_text("utf-8").splitlines()
        assert not taught & {plain(json.loads(line)[key(name)]) for line in lines}, name
