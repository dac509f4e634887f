"""Answers that grow side by side, told one after the other on a terminal."""

from core.chat.conversation import grown
from core.chat.pieces import Piece


def piece(text: str, tokens: int, ended: str | None = None) -> Piece:
    return Piece(None, text, tokens, 3, 0.5, ended)


def test_the_first_answer_is_told_as_it_grows_and_the_next_one_when_it_is_over():
    pieces = [
        ("run-1", piece("\nIt", 1)),
        ("base", piece("No", 1)),
        ("run-1", piece(" is", 2)),
        ("base", piece(".", 2, "end")),
        ("run-1", piece(" red", 3, "length")),
    ]
    told = list(grown(pieces, ["run-1", "base"]))
    assert told[:2] == ["run-1: It", ""] and told[2] == " is"
    assert "".join(told) == (
        "run-1: It is red\n  3 tokens in 0.5 s, cut at the longest answer\nbase: No.\n  2 tokens in 0.5 s\n"
    )


def test_an_answer_without_a_word_is_told_too():
    assert "".join(grown([("base", piece("", 0, "end"))], ["base"])) == "base: \n  0 tokens in 0.5 s\n"
