"""How well a base model predicts text it has not seen, and what it writes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from recipes.base_model import document_loss

PROMPTS = (
    "Once upon a time there was a little girl who lived",
    "User: Hello, can you help me find a restaurant?\nAssistant:",
    "The old man looked at the sea and",
)
REQUESTS = (
    "Is this text message spam or not spam?\n\nYou have won a free prize! Call now to claim.",
    "Which intent does this request to a voice assistant have?\n\nWill it rain in Paris tomorrow?",
    "Answer the question.\n\nWhere do people keep their books?",
)


def held_out(model: LlamaForCausalLM, tokens: np.ndarray, text_bytes: int, length: int) -> dict[str, float]:
    """Held-out loss over whole documents in both units."""
    nats, count = document_loss(model.eval(), tokens, length)
    return {
        "nats_per_token": round(nats / count, 4),
        "bits_per_byte": round(nats / math.log(2) / text_bytes, 4),
        "tokens": count,
        "bytes": text_bytes,
    }


def samples(base: Path, temperature: float = 0.7) -> Iterator[tuple[str, str]]:
    """Prompts and what the model writes: stories and dialogue drawn at ``temperature``, requests answered greedily."""
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base).float()
    torch.manual_seed(0)
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**given, max_new_tokens=80, do_sample=True, temperature=temperature, top_p=0.95)
        yield prompt, tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    for request in REQUESTS:
        conversation = [{"role": "user", "content": request}]
        text = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        given = tokenizer(text, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**given, max_new_tokens=40, do_sample=False)
        yield request, tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True)


def report(base: Path, corpus: Path) -> dict[str, float]:
    """Held-out loss of a finished folder over the corpus's ``valid.jsonl.xz``, then samples, on the screen."""
    from recipes.corpus import document_tokens, read_texts

    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base).float()
    tokens, counts = document_tokens(read_texts(corpus, "valid.jsonl.xz"), tokenizer.backend_tokenizer)
    measured = held_out(model, tokens, counts["bytes"], model.config.max_position_embeddings)
    print(json.dumps(measured))
    for prompt, answer in samples(base):
        print(f"\n> {prompt}\n{answer}")
    return measured
