"""The demo's tasks, written by this program: ``python -m core.demo_data`` fills ``assets/demo`` again, byte by byte.

Four small tasks about everyday words. Test sentences share neither their templates nor their content words with the
training sentences, so a method has to carry over what it learnt. Validation rows are made as training rows are.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from core.home import ASSETS

DEMO = ASSETS / "demo"
COUNTS = {"train": 640, "validation": 80, "test": 300}
SEED = 20

Row = dict[str, object]
Words = Mapping[str, tuple[str, ...]]

INSTRUCTIONS = {
    "opinion": "Is this opinion good or bad?",
    "subject": "Which subject is this about?",
    "sentence_type": "Is this a question, a command or a statement?",
    "find_word": "Copy the word that answers the question.",
}
LABELS = {
    "opinion": ["good", "bad"],
    "subject": ["food", "travel", "weather", "money", "music"],
    "sentence_type": ["question", "command", "statement"],
}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


OPINION: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "thing": _words("film hotel book soup garden teacher room game present coffee"),
        "good": _words(
            "great wonderful lovely nice delicious beautiful clever perfect brilliant funny friendly excellent happy "
            "fine interesting elegant attractive"
        ),
        "bad": _words(
            "terrible awful horrible boring ugly dirty rude poor stupid dull nasty broken sad wrong dangerous cheap "
            "dreary"
        ),
        "templates": (
            "The {thing} was really {word}.",
            "I think the {thing} is {word}.",
            "We found it {word}, and so was the {thing}.",
            "It is a very {word} {thing}.",
            "My {thing} was {word} again.",
            "They say that this {thing} is {word}.",
        ),
    },
    "test": {
        "thing": _words("movie restaurant story dinner park doctor house concert picture shop"),
        "good": _words(
            "amazing fantastic pleasant delightful charming exciting sweet impressive splendid enjoyable superb"
        ),
        "bad": _words(
            "dreadful disgusting annoying disappointing miserable unpleasant cruel useless painful worthless weak"
        ),
        "templates": (
            "What a {word} {thing}!",
            "Her new {thing} turned out to be {word}.",
            "Everyone called that {thing} {word}.",
            "Nobody expected such a {word} {thing}.",
            "Our {thing} looked {word} from beginning to end.",
        ),
    },
}

SUBJECT: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "food": _words("bread soup cheese butter rice salad chicken sugar potatoes eggs meat sandwich"),
        "travel": _words("train hotel airport ticket flight passport luggage bus station tourist trip taxi"),
        "weather": _words("rain snow wind storm clouds sunshine temperature fog climate sun breeze shower"),
        "money": _words("bank price loan tax debt cash salary savings budget pay bill dollar"),
        "music": _words("song guitar piano band singer concert drums violin radio chorus jazz playlist"),
        "templates": (
            "Tell me about the {a} and the {b}.",
            "I want to know more about {a} or {b}.",
            "Do you have anything on {a}, maybe also on {b}?",
            "My question is about {a} and {b}.",
            "First {a}, then {b}.",
        ),
    },
    "test": {
        "food": _words("cake milk beef fish apples pepper dinner honey onions beans pasta breakfast"),
        "travel": _words("ship journey plane suitcase railway harbour voyage visitors holiday tour passengers highway"),
        "weather": _words("thunder frost lightning sky heat hurricane winter cold rainfall ice flood tornado"),
        "money": _words("pounds wages profit coins insurance payment income credit rent investment economy fund"),
        "music": _words("melody orchestra album tune flute opera musical trumpet rhythm musician lyrics choir"),
        "templates": (
            "Please explain {a} with {b} to us.",
            "She spoke for an hour: {a}, {b}, nothing else.",
            "Here comes another note on {a} as well as {b}.",
            "Could someone help him with {a} and {b}?",
        ),
    },
}

SENTENCE_TYPE: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "person": _words(
            "mother children farmer teacher king neighbour girl driver artist captain guard nurse writer lawyer sailor "
            "painter cook judge student hunter servant prince woman visitor"
        ),
        "thing": _words(
            "door letter table horse water paper basket window cup shoe lamp apple shirt clock coin plate spoon candle "
            "toy bell rope wheel egg cake leaf drum carpet blanket pillow gun boat wall"
        ),
        "verb": _words(
            "open carry bring clean find wash push paint cut pull drop touch keep use draw send buy fix watch count "
            "remember follow fill turn"
        ),
        "past": _words(
            "opened carried brought cleaned found washed pushed painted cut pulled dropped touched kept used drew sent "
            "bought fixed watched counted remembered followed filled turned"
        ),
        "question": (
            "what did the {person} {verb}",
            "where does the {person} {verb} the {thing}",
            "how can the {person} {verb} a {thing}",
            "is the {person} near the {thing}",
            "can you {verb} the {thing}",
            "which {thing} did the {person} {verb}",
            "do you {verb} the {thing}",
            "was the {thing} with the {person}",
            "would you {verb} a {thing} for me",
            "what is this {thing}",
        ),
        "command": (
            "{verb} the {thing} now",
            "please {verb} this {thing}",
            "{verb} the {thing} for the {person}",
            "do not {verb} the {thing}",
            "{verb} a {thing}",
            "{verb} the {thing} and {verb_b} the {thing_b}",
            "first {verb} the {thing} please",
            "always {verb} the {thing} with the {person}",
            "{verb} me a {thing}",
            "let the {person} {verb} this {thing}",
        ),
        "statement": (
            "the {person} {past} the {thing}",
            "a {thing} is near the {person}",
            "we {past} the {thing} and the {thing_b}",
            "this is the {thing} of the {person}",
            "you {past} the {thing} for the {person}",
            "i will {verb} the {thing}",
            "the {thing} was there",
            "there is a {thing} in the room",
            "the {person} and the {person_b} {past} this {thing}",
            "she can {verb} the {thing}",
        ),
    },
    "test": {
        "person": _words("father boy doctor sister queen soldier uncle baker"),
        "thing": _words("box car stone book hat bottle knife chair fence coat"),
        "verb": _words("close take move sell break hide lift throw"),
        "past": _words("closed took moved sold broke hid lifted threw"),
        "question": (
            "who will {verb} that {thing}",
            "why would her {person} {verb} it",
            "when are they going to {verb} my {thing}",
            "has his {person} seen our {thing}",
        ),
        "command": (
            "just {verb} that {thing} today",
            "never {verb} my {thing} again",
            "{verb} it and come here",
            "go and {verb} our {thing}",
        ),
        "statement": (
            "her {person} {past} it yesterday",
            "my {person} has an old {thing}",
            "they {past} our {thing} last week",
            "his {thing} looked very big",
        ),
    },
}

FIND_WORD: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "person": _words(
            "Anna Peter Mary John Emma Paul Lucy Henry Sarah David Alice George William Laura Martin Susan Charles "
            "Julia Richard Nancy Edward Maria Daniel Ellen Philip Margaret Andrew Elizabeth Michael Martha James Lily "
            "Ben Tom Sam Tim Max Mia Joseph Ruth"
        ),
        "thing": _words(
            "lamp book apple letter chair hat ball cup shirt clock basket coin plate spoon table paper candle shoe "
            "toy bell rope hammer axe sword wheel nut egg cake pie orange banana leaf feather button needle drum pipe "
            "bowl brush chain carpet blanket pillow coat glove belt box card gun phone camera doll kite boat brick"
        ),
        "place": _words(
            "garden kitchen school market church forest station office hotel village city town field farm lake beach "
            "mountain valley cave island desert palace tower temple theatre college prison factory mill barn stable "
            "cellar bedroom hall yard cottage harbour camp restaurant"
        ),
        "templates": (
            "{person} found the {thing} in the {place}.",
            "In the {place}, {person} saw a {thing}.",
            "The {thing} was left in the {place} by {person}.",
            "{person} went to the {place} with a {thing}.",
            "There was a {thing} in the {place}, and {person} took it.",
            "{person} hid a {thing} behind the {place}.",
            "Near the {place} stood {person} with this {thing}.",
            "A {thing} was sent to the {place} for {person}.",
            "When {person} left the {place}, the {thing} was gone.",
            "This {thing} belongs to {person} from the {place}.",
        ),
    },
    "test": {
        "person": _words("Thomas Jane Robert Kate Jack Helen Frank Rose Simon Grace"),
        "thing": _words("knife bottle dress stone map flower key pencil bag mirror picture ring"),
        "place": _words("house park library river castle hospital shop street bridge museum"),
        "templates": (
            "At the {place} {person} bought one {thing}.",
            "Yesterday {person} lost a {thing} near the {place}.",
            "{person} carried that {thing} back from the {place}.",
            "Our {thing} is at the {place} because {person} forgot it.",
        ),
    },
}
QUESTIONS = {"person": "who?", "thing": "what?", "place": "where?"}

LEXICONS = {"opinion": OPINION, "subject": SUBJECT, "sentence_type": SENTENCE_TYPE, "find_word": FIND_WORD}

# Words without content of their own, which may stand in training and test sentences alike.
FUNCTION_WORDS = frozenset(
    _words(
        "a an the this that these it he she they we i you me my her his our their its is are was were be been has have "
        "had do does did not and or but of in on at to for with from by as so such what which who whom where when why "
        "how very really more near then there here all one any please can could will would"
    )
)


def opinion(words: Words, chance: random.Random, turn: int) -> Row:
    label = LABELS["opinion"][turn % len(LABELS["opinion"])]
    text = chance.choice(words["templates"]).format(
        thing=chance.choice(words["thing"]), word=chance.choice(words[label])
    )
    return {"input": _article(text), "output": label, "choices": LABELS["opinion"]}


def subject(words: Words, chance: random.Random, turn: int) -> Row:
    label = LABELS["subject"][turn % len(LABELS["subject"])]
    a, b = chance.sample(words[label], 2)
    text = chance.choice(words["templates"]).format(a=a, b=b)
    return {"input": text[0].upper() + text[1:], "output": label, "choices": LABELS["subject"]}


def sentence_type(words: Words, chance: random.Random, turn: int) -> Row:
    label = LABELS["sentence_type"][turn % len(LABELS["sentence_type"])]
    slots = {name: chance.choice(words[name]) for name in ("person", "thing", "verb", "past")}
    slots |= {f"{name}_b": chance.choice(words[name]) for name in ("person", "thing", "verb")}
    return {
        "input": _article(chance.choice(words[label]).format(**slots)),
        "output": label,
        "choices": LABELS["sentence_type"],
    }


def find_word(words: Words, chance: random.Random, turn: int) -> Row:
    slots = {name: chance.choice(words[name]) for name in QUESTIONS}
    asked = list(QUESTIONS)[turn % len(QUESTIONS)]
    text = _article(chance.choice(words["templates"]).format(**slots))
    return {"input": f"{text}\n{QUESTIONS[asked]}", "output": slots[asked]}


MAKERS: dict[str, Callable[[Words, random.Random, int], Row]] = {
    "opinion": opinion,
    "subject": subject,
    "sentence_type": sentence_type,
    "find_word": find_word,
}


def generate() -> dict[str, dict[str, list[Row]]]:
    """Task -> split -> rows; the same at every call."""
    return {task: {split: list(rows) for split, rows in _splits(task)} for task in MAKERS}


def _splits(task: str) -> Iterator[tuple[str, list[Row]]]:
    seen: set[str] = set()
    for split, count in COUNTS.items():
        chance = random.Random(f"{SEED} {task} {split}")
        words = LEXICONS[task]["test" if split == "test" else "train"]
        rows: list[Row] = []
        while len(rows) < count:
            row = MAKERS[task](words, chance, len(rows))  # labels take turns, so that they are balanced
            if row["input"] not in seen:
                seen.add(str(row["input"]))
                rows.append({"task": task, **row})
        chance.shuffle(rows)
        yield split, rows


def metadata() -> list[dict[str, object]]:
    """The entries of ``tasks.json``."""
    return [
        {
            "name": task,
            "kind": "classification" if task in LABELS else "generation",
            "instruction": INSTRUCTIONS[task],
            "metric": "accuracy" if task in LABELS else "exact_match",
            **({"labels": LABELS[task]} if task in LABELS else {}),
            "source": "generated by core/demo_data.py",
            "licence": "CC0 1.0",
        }
        for task in MAKERS
    ]


def write(folder: Path = DEMO) -> None:
    """``<task>/{train,validation,test}.jsonl`` and ``tasks.json`` below ``folder``."""
    for task, splits in generate().items():
        (folder / task).mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / task / f"{split}.jsonl").write_bytes(lines.encode())
    text = json.dumps(metadata(), ensure_ascii=False, indent=1) + "\n"
    (folder / "tasks.json").write_bytes(text.encode())


def _article(text: str) -> str:
    """``a`` before vowels becomes ``an``."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else DEMO)
