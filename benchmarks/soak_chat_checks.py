"""What must hold of the chats of a soak when all is over."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.soak_chat import IDLE, WHOLE, Kill, Talk, interrupted
from benchmarks.soak_checks import Check
from benchmarks.soak_home import CHAT, House, until
from core.studio import Studio

CROWDED = 15.0  # seconds for which two chat workers of one base are too many
MOST = 10_000


def answers(studio: Studio, talk: Talk) -> Check:
    """Whoever died: nothing grows for ever, and what failed says what to do."""
    wrong, kept = [], {}
    for chat in studio.chats.page(limit=MOST).rows:
        for question, found in studio.chats.turns(chat.id):
            kept[question.text] = found
    for text, found in kept.items():
        wrong += [f"{text}: nobody answers"] if not found else []
        for one in found:
            clear = one.ended in WHOLE or (one.ended == "failed" and "sk again" in (one.problem or ""))
            wrong += [] if clear else [f"{text}: {one.ended}, {one.problem}"]
    wrong += [f"{one.text}: lost" for one in talk.asked if one.began and one.text not in kept]
    return Check("every answer is whole, or says that it is not and what to do", len(kept), tuple(wrong))


def undisturbed(talk: Talk, kills: Sequence[Kill]) -> Check:
    seen = [one for one in talk.asked if one.began and not interrupted(one, kills)]
    wrong = [f"{one.text}: {one.state or 'nothing'}" for one in seen if one.state not in WHOLE]
    return Check("a question is answered unless who answers is killed meanwhile", len(seen), (*wrong, *talk.problems))


def again(talk: Talk, last: bool) -> Check:
    """``last``: whether the question at the very end was answered."""
    wrong = [f"{blow.kind}: nobody was answered any more" for blow in talk.blows if blow.again is None]
    wrong += [] if last else ["the last question was not answered"]
    return Check("after every kill of the chat worker somebody is answered again", len(talk.blows) + 1, tuple(wrong))


def workers(house: House, crowded: float) -> Check:
    """One worker for a base, none when nobody asks any more, and no place that nobody answers at."""
    until(lambda: not house.seen(CHAT), IDLE + 20)
    wrong = [f"pid {one.pid} lives on" for one in house.seen(CHAT)]
    wrong += [f"{path.parent.name}/{path.name} is left" for path in house.home.inference.glob("*/worker.json")]
    wrong += [f"{path.parent.name}/{path.name} is left" for path in house.home.inference.glob("*/socket")]
    wrong += [f"more than one for {crowded:.1f} s"] if crowded > CROWDED else []
    return Check("one chat worker at a time, none when nobody asks any more", 1, tuple(wrong))
