"""A made-up corpus and task folder, just big enough to run ``pretrain_base`` without any data."""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path

from recipes.corpus import SEEN

ANIMALS = ("cat", "dog", "bird", "fox", "mouse", "bear")
PLACES = ("garden", "house", "forest", "river", "market")
DEEDS = ("sleeps in", "runs to", "looks at", "sings about", "comes from")


def sentence(chance: random.Random) -> str:
    return f"The {chance.choice(ANIMALS)} {chance.choice(DEEDS)} the {chance.choice(PLACES)}."


def write_corpus(folder: Path, documents: int = 400, seed: int = 0) -> None:
    """A training and a validation file of little stories."""
    chance = random.Random(seed)
    folder.mkdir(parents=True)
    for name, count in (("train-00", documents), ("valid", documents // 10)):
        with lzma.open(folder / f"{name}.jsonl.xz", "wt", encoding="utf-8") as file:
            for _ in range(count):
                text = " ".join(sentence(chance) for _ in range(chance.randint(3, 30)))
                file.write(json.dumps({"text": text, "source": "smoke"}) + "\n")


def write_tasks(folder: Path, rows: int = 20, seed: int = 0) -> None:
    """A task folder whose every task asks for the animal of a sentence."""
    chance = random.Random(seed)
    for name in SEEN:
        (folder / name).mkdir(parents=True)
        lines = []
        for _ in range(rows):
            text = sentence(chance)
            lines.append({"task": name, "input": text, "output": text.split()[1], "choices": list(ANIMALS)})
        (folder / name / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    tasks = [{"name": name, "instruction": "Which animal is meant?"} for name in SEEN]
    (folder / "tasks.json").write_text(json.dumps(tasks), "utf-8")
