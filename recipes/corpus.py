"""Text to tokens for ``pretrain_base``: documents, instruction rows, the tokenizer and the token streams.

A corpus folder holds ``train-*.jsonl.xz`` and ``valid.jsonl.xz``, one ``{"text": ...}`` a line. A task folder holds
``tasks.json`` (``name`` and ``instruction`` of each task) and ``<task>/train.jsonl``. Test rows are never opened.
"""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from core.data.templates import PromptTemplate, TextEncoder

SEEN = (
    "sms_spam", "snips_intent", "creak", "medquad_qtype", "commonsense_qa", "piqa", "blimp_a", "gsm8k", "wikisql",
    "scan", "fairytale_qa",
)  # fmt: skip
UNSEEN = (
    "rt_polarity", "mnli", "boolq", "arc_easy", "openbookqa", "go_emotions", "clinc_domain", "query_wellformed",
    "snips_slot", "e2e_nlg", "inflection", "svamp",
)  # fmt: skip
WHOLE_SENTENCES = ("blimp_a",)  # scored without a prompt, so learnt without one

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

# One digit a token, so that numbers are built from ten known parts; words keep the blank before them.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

LISTED = "{instruction}\n\n{choices}\n\n{input}"
SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You read carefully and answer in a few words.",
    "Give the answer and nothing else.",
)


def read_texts(folder: Path, pattern: str) -> Iterator[str]:
    """The documents of all files of ``folder`` that match ``pattern``, in the order of their names."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no {pattern}; see the head of recipes/corpus.py for the layout.")
    for path in paths:
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def instruction_rows(tasks: Path, names: Iterable[str] = SEEN) -> list[dict[str, Any]]:
    """The training rows of the named tasks, each with its task's instruction; reads ``train.jsonl`` alone.

    Rows whose input is a single word are left out: a "yup" can be another task's test row.
    """
    instructions = {task["name"]: task["instruction"] for task in json.loads((tasks / "tasks.json").read_text("utf-8"))}
    rows = []
    for name in names:
        with (tasks / name / "train.jsonl").open(encoding="utf-8") as lines:
            rows += [json.loads(line) | {"task": name, "instruction": instructions[name]} for line in lines]
    return [row for row in rows if row["task"] in WHOLE_SENTENCES or len(row["input"].split()) > 1]


def draw_template(row: dict[str, Any], chance: random.Random) -> PromptTemplate:
    """A prompt form for one showing of a row: mostly the studio's own, now and then one that people edit it to."""
    if row["task"] in WHOLE_SENTENCES:
        return PromptTemplate(style="none")
    listed = bool(row.get("choices")) and chance.random() < 0.25
    return PromptTemplate(
        user=LISTED if listed else PromptTemplate().user,
        system=chance.choice(SYSTEM_MESSAGES) if chance.random() < 0.08 else "",
        style="plain" if chance.random() < 0.15 else "chat",
    )


def shuffle_choices(row: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The row with its choices in another order, so that a listed place says nothing about the answer."""
    choices = row.get("choices")
    return row | {"choices": chance.sample(choices, len(choices))} if choices else row


def instruction_tokens(
    rows: list[dict[str, Any]], encoder: TextEncoder, passes: int, length: int, seed: int
) -> np.ndarray:
    """``passes`` showings of all rows, each in its own order and forms, as one stream."""
    chance, stream = random.Random(seed), []
    for _ in range(passes):
        for row in chance.sample(rows, len(rows)):
            shown = shuffle_choices(row, chance)
            stream.append(np.array(encoder.encode(shown, draw_template(row, chance), length).ids, np.uint16))
    return np.concatenate(stream)


def document_tokens(texts: Iterable[str], tokenizer: Tokenizer) -> tuple[np.ndarray, dict[str, int]]:
    """All documents as one stream, each between a begin and an end token, with counts of the text."""
    end, stream = tokenizer.token_to_id(END), []
    counts = {"documents": 0, "bytes": 0}
    texts = iter(texts)
    while batch := list(islice(texts, 512)):
        for encoding in tokenizer.encode_batch_fast(batch):
            stream.append(np.array([*encoding.ids, end], np.uint16))
        counts["documents"] += len(batch)
        counts["bytes"] += sum(len(text.encode()) for text in batch)
    tokens = np.concatenate(stream)
    return tokens, counts | {"tokens": len(tokens)}


def train_tokenizer(texts: Iterable[str], vocabulary: int, length: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the studio's special tokens; a plain encode puts the begin token first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BEGIN, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN} $B",
        special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )


def tokenizer_texts(corpus: Path, rows: list[dict[str, Any]], documents: int) -> Iterator[str]:
    """What the tokenizer learns from: the first documents and every instruction row once."""
    yield from islice(read_texts(corpus, "train-*.jsonl.xz"), documents)
    for row in rows:
        yield f"{row['instruction']}\n\n{row['input']}\n{row['output']}"


def write_tokens(
    corpus: Path,
    tasks: Path,
    chat_template: Path,
    out: Path,
    *,
    vocabulary: int = 8192,
    length: int = 1024,
    passes: int = 4,
    tokenizer_documents: int = 20_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Fill ``out`` with the tokenizer and the streams ``corpus``, ``instructions`` and ``valid``; return the counts."""
    rows = instruction_rows(tasks)
    tokenizer = train_tokenizer(tokenizer_texts(corpus, rows, tokenizer_documents), vocabulary, length)
    tokenizer.chat_template = chat_template.read_text("utf-8")
    tokenizer.save_pretrained(out / "tokenizer")
    encoder = TextEncoder(out / "tokenizer")
    special = {
        name: encoder.tokenizer.token_to_id(text) for name, text in (("pad", PAD), ("begin", BEGIN), ("end", END))
    }
    counts: dict[str, Any] = {"vocabulary": encoder.tokenizer.get_vocab_size(), "length": length, "seed": seed}
    counts["special"] = special
    for name, pattern in (("corpus", "train-*.jsonl.xz"), ("valid", "valid.jsonl.xz")):
        stream, counts[name] = document_tokens(read_texts(corpus, pattern), encoder.tokenizer)
        np.save(out / f"{name}.npy", stream)
    stream = instruction_tokens(rows, encoder, passes, length, seed)
    np.save(out / "instructions.npy", stream)
    counts["instructions"] = {"rows": len(rows), "passes": passes, "tokens": len(stream)}
    (out / "tokens.json").write_text(json.dumps(counts, indent=2) + "\n", "utf-8")
    return counts
