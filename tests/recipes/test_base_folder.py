"""Claims about the model in ``assets/base``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.data.templates import TextEncoder
from recipes.corpus import SEEN, UNSEEN

BASE = Path(__file__).parents[2] / "assets" / "base"
USER = {"role": "user", "content": "What is it?\n\nA plain  question."}
CONVERSATIONS = {
    "one turn": [USER],
    "system message": [{"role": "system", "content": "Be brief."}, USER],
    "many turns": [USER, {"role": "assistant", "content": "A cat."}, {"role": "user", "content": "And this?"}],
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BASE)


def test_folder_is_small_enough_to_ship():
    sizes = {path.name: path.stat().st_size for path in BASE.iterdir()}
    assert sum(sizes.values()) <= 20_000_000
    assert max(sizes.values()) <= 15_000_000


def test_weights_are_bf16():
    for shard in BASE.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_model_is_a_small_tied_llama(model):
    assert model.config.model_type == "llama"
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.num_parameters() == json.loads((BASE / "training.json").read_text("utf-8"))["parameters"]


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_studio_and_transformers_write_the_same_prompt(tokenizer, conversation):
    encoder = TextEncoder(BASE)
    text = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    assert encoder.render(conversation) == text
    ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert encoder.ids(text) == ids


def test_plain_text_begins_with_the_begin_token_once(tokenizer):
    ids = tokenizer("A cat.")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[1:] == tokenizer("A cat.", add_special_tokens=False)["input_ids"]


def test_special_tokens_are_single_and_agree(tokenizer, model):
    specials = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
    assert tokenizer("".join(specials), add_special_tokens=False)["input_ids"] == list(range(6))
    for config in (model.config, model.generation_config):
        ids = (config.pad_token_id, config.bos_token_id, config.eos_token_id)
        assert ids == (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_any_text_survives_the_tokenizer(tokenizer):
    text = "It's  12.50,\n\tna\u00efve \u201cquotes\u201d and \U0001f600."
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_model_predicts_english(model, tokenizer):
    ids = tokenizer("The old man looked at his son and said that he was very tired.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert float(model(input_ids=ids, labels=ids).loss) < 4.5  # chance is log(8192) = 9.0


def test_answer_ends_by_itself(model, tokenizer):
    asked = [{"role": "user", "content": "Is this text message spam or not spam?\n\nSee you at home later"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(input_ids=ids["input_ids"], max_new_tokens=8, do_sample=False)[
        0, ids["input_ids"].shape[1] :
    ]
    assert tokenizer.decode(answer) == "not spam<|end|>"


def test_card_names_seen_and_unseen_tasks_apart():
    card = (BASE / "README.md").read_text("utf-8")
    seen, unseen = card.split("Seen in training:")[1].split("Kept unseen:")
    unseen = unseen.split("\n\n")[0]
    assert all(f"`{name}`" in seen for name in SEEN)
    assert all(f"`{name}`" in unseen for name in UNSEEN)


def test_card_reports_what_the_run_recorded():
    card, run = (BASE / "README.md").read_text("utf-8"), json.loads((BASE / "training.json").read_text("utf-8"))
    for number in (run["parameters"], run["tokens_seen"], run["steps"]):
        assert f"{number:,}" in card
    assert f"{run['held_out']['nats_per_token']:.3f}" in card
    assert f"{run['held_out']['bits_per_byte']:.3f}" in card
