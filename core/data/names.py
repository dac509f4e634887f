"""What columns are called in the wild, and what files are called."""

from __future__ import annotations

import re

# Role -> usual names, best first; compared without case, blanks and punctuation.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "task": ("task", "task_name", "taskname"),
    "split": ("split", "partition", "subset_split"),
    "system": ("system", "system_prompt", "system_message"),
    "instruction": ("instruction", "instructions", "definition"),
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog", "turns"),
    "input": (
        "input", "inputs", "text", "sentence", "question", "query", "prompt", "utterance", "review", "document",
        "article", "source", "src", "problem", "message", "content", "goal", "stem", "context", "passage", "email",
        "comment", "tweet", "statement", "request", "user", "body", "title", "sms", "story", "mr",
    ),
    "output": (
        "output", "outputs", "completion", "response", "answer", "target", "tgt", "summary", "reply", "gold",
        "translation", "chosen", "highlights", "assistant", "solution", "answers", "result", "ref",
    ),
    "references": ("references", "refs", "targets", "gold_answers"),
    "choices": ("choices", "options", "candidates", "endings", "answer_choices", "mc_choices"),
    "label": (
        "label_text", "label_name", "label", "labels", "category", "class", "intent", "sentiment", "emotion", "rating",
        "score", "stars", "answerkey", "answer_key", "answer_idx", "answer_index", "correct", "gold_label", "tag",
        "topic", "polarity", "type", "coarse_label",
    ),
}  # fmt: skip

# Columns that are read together; each becomes one labelled line of the input.
USUAL_PAIRS: tuple[tuple[str, ...], ...] = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("question1", "question2"),
    ("passage", "question"),
    ("context", "question"),
    ("story", "question"),
    ("document", "question"),
    ("article", "question"),
    ("ctx_a", "ctx_b"),
)

# One column per option: choice1, option_a, A, sol1, ending0, ...
OPTION_COLUMN = re.compile(r"^(?:(choice|option|sol|ending|answer|opt|candidate|alternative)?)_?([a-h]|\d)$")

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "development": "validation", "devset": "validation", "trainset": "train", "testset": "test",
    "test": "test", "testing": "test", "heldout": "test",
}  # fmt: skip


def plain_name(name: str) -> str:
    """``Answer Key`` and ``answer_key`` as ``answerkey``."""
    return re.sub(r"[\W_]+", "", str(name).lower())


ROLE_NAMES = {plain_name(name) for names in USUAL_NAMES.values() for name in names} | {
    plain_name(name) for pair in USUAL_PAIRS for name in pair
}


def split_of(stem: str) -> tuple[str | None, str]:
    """The split that a file name such as ``train``, ``dev-00000-of-00001`` or ``news_test`` names, and what is left."""
    stem = re.sub(r"[-_.]?\d{3,5}[-_.]of[-_.]\d{3,5}$", "", stem)
    parts = [part for part in re.split(r"[-_.\s]+", stem) if part]
    for place in (0, -1):
        if parts and parts[place].lower() in SPLIT_NAMES:
            rest = parts[1:] if place == 0 else parts[:-1]
            return SPLIT_NAMES[parts[place].lower()], "_".join(rest)
    return None, stem


def task_name(text: str) -> str:
    """A task's name as it appears in tables and file names."""
    return re.sub(r"[^\w.\-]+", "_", text.strip()).strip("_.") or "task"
