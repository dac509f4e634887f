"""Files as people have them: each is read, or refused with its place and a remedy."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data.apply import RowReader
from core.data.formats import read_file
from core.data.mapping import detect
from core.errors import DataError, StudioError


def rows_of(path: Path, **given):
    raw = read_file(path)
    mapping, notes = detect(raw.columns, raw.sample(), file=raw.name, given=given, label_names=raw.label_names)
    reader = RowReader(raw, mapping)
    rows = [item.row for item in reader]
    return rows, [*raw.notes, *notes, *reader.notes()]


def write(folder: Path, name: str, content: str | bytes | list | dict) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8", newline="")
    return path


def pairs(rows):
    return [(row["input"], row["output"]) for row in rows]


TWO = [("a red hat", "clothes"), ("a green pear", "fruit")]

RATINGS = ["0.2", "0.4", "1.0", "0.2"]

READABLE = {
    "plain.csv": "text,label\na red hat,clothes\na green pear,fruit\n",
    "crlf.csv": "text,label\r\na red hat,clothes\r\na green pear,fruit\r\n",
    "no_last_newline.csv": "text,label\na red hat,clothes\na green pear,fruit",
    "blank_lines.csv": "text,label\n\na red hat,clothes\n\n\na green pear,fruit\n\n",
    "semicolons.csv": "text;label\na red hat;clothes\na green pear;fruit\n",
    "tabs_inside.csv": "text\tlabel\na red hat\tclothes\na green pear\tfruit\n",
    "pipes.csv": "text|label\na red hat|clothes\na green pear|fruit\n",
    "utf8_mark.csv": b"\xef\xbb\xbftext,label\na red hat,clothes\na green pear,fruit\n",
    "utf16.csv": "text,label\na red hat,clothes\na green pear,fruit\n".encode("utf-16"),
    "utf16_without_mark.csv": "text,label\na red hat,clothes\na green pear,fruit\n".encode("utf-16-le"),
    "odd_header.csv": "Text , Label\na red hat,clothes\na green pear,fruit\n",
    "index_column.csv": ",text,label\n0,a red hat,clothes\n1,a green pear,fruit\n",
    "plain.tsv": "text\tlabel\na red hat\tclothes\na green pear\tfruit\n",
    "array.json": [{"input": a, "output": b} for a, b in TWO],
    "columns.json": {"input": [a for a, _ in TWO], "output": [b for _, b in TWO]},
    "pandas_columns.json": {
        "input": {"0": TWO[0][0], "1": TWO[1][0]},
        "output": {"0": TWO[0][1], "1": TWO[1][1]},
    },
    "pandas_index.json": {"0": {"input": TWO[0][0], "output": TWO[0][1]}, "1": {"input": TWO[1][0], "output": "fruit"}},
    "pandas_split.json": {"columns": ["input", "output"], "index": [0, 1], "data": [list(pair) for pair in TWO]},
    "wrapped.json": {"version": "1.0", "data": [{"question": a, "answer": b} for a, b in TWO]},
    "lines_called.json": "\n".join(json.dumps({"input": a, "output": b}) for a, b in TWO),
    "array_called.jsonl": [{"input": a, "output": b} for a, b in TWO],
    "blank_lines.jsonl": "\n" + "\n\n".join(json.dumps({"input": a, "output": b}) for a, b in TWO) + "\n\n",
    "prompt_completion.jsonl": "\n".join(json.dumps({"prompt": a, "completion": b}) for a, b in TWO),
    "messages.jsonl": "\n".join(
        json.dumps({"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}) for a, b in TWO
    ),
    "sharegpt.json": [
        {"id": i, "conversations": [{"from": "human", "value": a}, {"from": "gpt", "value": b}]}
        for i, (a, b) in enumerate(TWO)
    ],
    "message_parts.jsonl": "\n".join(
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": a}]},
                    {"role": "assistant", "content": b},
                ]
            }
        )
        for a, b in TWO
    ),
    "conversational_completion.jsonl": "\n".join(
        json.dumps({"prompt": [{"role": "user", "content": a}], "completion": [{"role": "assistant", "content": b}]})
        for a, b in TWO
    ),
    "natural_instructions.json": {
        "Definition": ["Name the kind."],
        "Positive Examples": [{"input": "x", "output": "y"}],
        "Instances": [{"id": "1", "input": a, "output": [b]} for a, b in TWO],
    },
}


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_the_same_two_rows_come_out_of_every_layout(tmp_path, name, packed):
    path = write(tmp_path, name, READABLE[name])
    if packed:
        path = write(tmp_path, name + ".gz", gzip.compress(path.read_bytes()))
    rows, _ = rows_of(path)
    assert pairs(rows) == TWO


def test_quoted_fields_may_hold_line_breaks_and_quotes(tmp_path):
    path = write(tmp_path, "a.csv", 'text,label\n"two\nlines, and ""quotes""",good\nnext,bad\n')
    assert pairs(rows_of(path)[0]) == [('two\nlines, and "quotes"', "good"), ("next", "bad")]


def test_the_line_of_a_ragged_row_counts_line_breaks_inside_quotes(tmp_path):
    path = write(tmp_path, "a.csv", 'text,label\n"one\ntwo",good\nthree,bad,extra\n')
    with pytest.raises(DataError, match=r"a\.csv, line 4: 3 fields where the first line has 2"):
        rows_of(path)


def test_a_headerless_tsv_keeps_its_first_row_and_its_ratings(tmp_path):
    lines = [f"How many {word} ?\t{rating}" for word, rating in zip("abcdefgh", RATINGS * 2, strict=True)]
    rows, notes = rows_of(write(tmp_path, "a.tsv", "\n".join(lines)))
    assert len(rows) == 8 and rows[0]["output"] == "0.2"
    assert any("no header" in note for note in notes)


def test_naked_quotation_marks_in_a_tsv_are_text(tmp_path):
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"Hello" he said\tgood\n"unclosed\tbad\n')
    rows, notes = rows_of(path)
    assert pairs(rows) == [('"Hello" he said', "good"), ('"unclosed', "bad")]
    assert any("quotation marks" in note for note in notes)


@pytest.mark.parametrize("encoding", ["cp1252", "shift_jis", "cp1251"])
def test_another_encoding_is_detected_and_said(tmp_path, encoding):
    texts = {
        "cp1252": "Der Käse schmeckt über alle Maßen gut und wirklich „schön“ – für 3 €",
        "shift_jis": "日本語の文章を分類する課題のための例文です。今日は天気がいいですね。",
        "cp1251": "Сегодня очень хорошая погода и мы идём гулять в парк.",
    }
    lines = "".join(f"{texts[encoding]} {i},good\n" for i in range(20))
    path = write(tmp_path, "a.csv", ("text,label\n" + lines).encode(encoding))
    rows, notes = rows_of(path)
    assert rows[0]["input"] == f"{texts[encoding]} 0"
    assert any("not UTF-8" in note for note in notes)


def test_alpaca_rows_keep_instruction_apart_and_name_the_unused_column(tmp_path):
    data = [{"instruction": f"Do {i}.", "input": "", "output": f"done {i}", "answer": str(i)} for i in range(3)]
    rows, notes = rows_of(write(tmp_path, "a.json", data))
    assert rows[1]["instruction"] == "Do 1." and rows[1]["input"] == "" and rows[1]["output"] == "done 1"
    assert any("not used: answer" in note for note in notes)


def test_a_conversation_becomes_a_row_per_answer_with_its_history(tmp_path):
    said = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "See you"),
            ("user", "One more")]  # fmt: skip
    data = {"messages": [{"role": role, "content": text} for role, text in said]}
    rows, notes = rows_of(write(tmp_path, "a.jsonl", json.dumps(data)))
    assert pairs(rows) == [("Hi", "Hello"), ("Bye", "See you")]
    assert rows[1]["system"] == "Be kind."
    assert rows[1]["history"] == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert any("end without an answer" in note for note in notes)


def test_an_object_of_splits_gives_each_row_its_split(tmp_path):
    data = {"train": [{"input": "a", "output": "b"}], "test": [{"input": "c", "output": "d"}]}
    raw = read_file(write(tmp_path, "a.json", data))
    mapping, _ = detect(raw.columns, raw.sample())
    assert [item.split for item in RowReader(raw, mapping)] == ["train", "test"]


def test_parquet_with_dictionary_labels_and_structs(tmp_path):
    table = pa.table(
        {
            "utterance": ["play a song", "book a table"],
            "intent": pa.array(["PlayMusic", "BookRestaurant"]).dictionary_encode(),
            "slots": [[{"slot": "kind", "value": "song"}], []],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    rows, notes = rows_of(tmp_path / "a.parquet")
    assert pairs(rows) == [("play a song", "PlayMusic"), ("book a table", "BookRestaurant")]
    assert any("not used: slots" in note for note in notes)


def test_parquet_class_labels_become_their_names(tmp_path):
    feature = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": ["fine", "awful"], "label": [1, 0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(feature)}), tmp_path / "a.parquet")
    assert pairs(rows_of(tmp_path / "a.parquet")[0]) == [("fine", "pos"), ("awful", "neg")]


def test_numbers_and_truth_values_become_texts(tmp_path):
    frame = pd.DataFrame({"question": ["is it?", "was it?"], "answer": [True, False]})
    frame.to_parquet(tmp_path / "a.parquet")
    assert pairs(rows_of(tmp_path / "a.parquet")[0]) == [("is it?", "true"), ("was it?", "false")]
    path = write(tmp_path, "b.jsonl", '{"input": 12, "output": 0.5}\n{"input": "x", "output": 3}\n')
    assert pairs(rows_of(path)[0]) == [("12", "0.5"), ("x", "3")]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"question": "?", "choices": ["x", "y"], "answer": 1}, "y"),
        ({"question": "?", "choices": ["x", "y"], "answerKey": "A"}, "x"),
        ({"question": "?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, "y"),
        ({"question": "?", "A": "x", "B": "y", "answer": "B"}, "y"),
        ({"goal": "?", "sol1": "x", "sol2": "y", "label": 0}, "x"),
        ({"question": "?", "options": '["x", "y"]', "answer": "y"}, "y"),
        ({"question": "?", "choices": ["X.", "y"], "answer": "x"}, "X."),
    ],
)
def test_the_right_choice_by_number_letter_name_or_text(tmp_path, data, expected):
    rows, _ = rows_of(write(tmp_path, "a.jsonl", json.dumps(data)))
    assert rows[0]["output"] == expected and len(rows[0]["choices"]) == 2


def test_choices_that_are_counted_from_one(tmp_path):
    lines = [json.dumps({"text": str(i), "option1": "x", "option2": "y", "label": 1 + i % 2}) for i in range(4)]
    rows, _ = rows_of(write(tmp_path, "a.jsonl", "\n".join(lines)))
    assert [row["output"] for row in rows] == ["x", "y", "x", "y"]


def test_two_sentences_become_labelled_lines(tmp_path):
    path = write(tmp_path, "a.csv", "premise,hypothesis,label\nIt rains.,It is wet.,yes\nIt snows.,It is hot.,no\n")
    rows, _ = rows_of(path)
    assert rows[0]["input"] == "Premise: It rains.\nHypothesis: It is wet."


def test_a_list_of_answers_becomes_references(tmp_path):
    path = write(tmp_path, "a.jsonl", json.dumps({"question": "?", "answers": ["one", "1"]}))
    rows, _ = rows_of(path)
    assert rows[0]["output"] == "one" and rows[0]["references"] == ["one", "1"]


REFUSED = {
    "empty.csv": (b"", r"empty\.csv is empty"),
    "header_only.csv": ("text,label\n", r"header \(line 1\) but no rows"),
    "ragged.csv": ("text,label\na,b\nc\n", r"ragged\.csv, line 3: 1 fields where the first line has 2"),
    "unclosed.csv": ('text,label\na,b\n"c,d\ne,f\n', r"unclosed\.csv, line 3: .*never closed"),
    "twice.csv": ("text,text,label\na,b,c\n", r"line 1: the columns 1 and 2 are both called 'text'"),
    "nul.csv": (b"text,label\na,b\nc\x00,d\n", r"nul\.csv, line 3: a NUL byte"),
    "binary.csv": (b"PK\x03\x04" + bytes(40), r"zip archive"),
    "image.csv": (b"\x89PNG\r\n\x1a\n\x00\x00", r"NUL byte"),
    "broken.jsonl": (
        '{"input": "a", "output": "b"}\n{"input": "a", output: "b"}\n',
        r"broken\.jsonl, line 2, column 16",
    ),
    "cut.json": ('[{"input": "a", "output": "b"},\n {"input": ', r"cut\.json, line 2, column \d+"),
    "quotes.json": ("[{'input': 'a'}]", r"line 1, column 3"),
    "no_object.jsonl": ('{"input": "a", "output": "b"}\n["c", "d"]\n', r"line 2: an array where an object is expected"),
    "no_rows.json": ("[]", r"no rows|no_rows\.json has"),
    "one_text.json": ('"hello"', r"holds one a text|holds one"),
    "uneven.json": ('{"input": ["a", "b"], "output": ["c"]}', r"the column 'output' has 1 values, 'input' has 2"),
    "no_answer.csv": ("text,comment_of_someone\nlong text here,x1\nlong text there,\n", r"answer|empty"),
    "empty_answer.csv": ("text,label\na,b\nc,\n", r"empty_answer\.csv, line 3, column 'label': the answer is empty"),
    "mixed.jsonl": ('{"input": "a", "output": "b"}\n{"input": {"x": 1}, "output": "b"}\n', r"line 2, column 'input'"),
    "bad_choice.jsonl": ('{"input": "a", "output": "z", "choices": ["x", "y"]}\n', r"line 1, column 'output': .*'z'"),
    "one_choice.jsonl": ('{"input": "a", "output": "x", "choices": ["x"]}\n', r"line 1: only one choice"),
    "role.jsonl": ('{"messages": [{"role": "alien", "content": "a"}]}\n', r"line 1, .*message 1: the role 'alien'"),
    "notes.docx": (b"PK\x03\x04", r"\.docx is not a supported format"),
    "damaged.csv.gz": (gzip.compress(b"text,label\n" * 9)[:-9], r"damaged gzip"),
    "not_packed.csv.gz": (b"text,label\na,b\n", r"not gzip-compressed"),
    "damaged.parquet": (b"PAR1" + bytes(30), r"damaged Parquet"),
    "really_csv.parquet": (b"text,label\na,b\n", r"not a Parquet file"),
    "parquet_inside.csv": (b"PAR1" + bytes(30), r"is a Parquet file"),
    "deep.json": ("[" * 100_000 + "]" * 100_000, r"deep\.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_file_and_a_remedy(tmp_path, name):
    content, expected = REFUSED[name]
    with pytest.raises(StudioError, match=expected) as caught:
        rows_of(write(tmp_path, name, content))
    assert name in caught.value.message
    assert len(caught.value.hint) > 10


def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("core.data.textfile.RATIO_FREE", 2**20)
    path = write(tmp_path, "bomb.csv.gz", gzip.compress(b"text,label\n" + b"a,b\n" * 2_000_000))
    with pytest.raises(DataError, match="unpacks to more than"):
        rows_of(path)


def test_an_unknown_column_is_refused_with_the_nearest_name(tmp_path):
    path = write(tmp_path, "a.csv", "text,category\na,b\nc,d\n")
    with pytest.raises(DataError, match="no column 'categry'") as caught:
        rows_of(path, label="categry")
    assert "Did you mean 'category'?" in caught.value.hint


def test_an_unknown_role_is_refused_with_the_nearest_name(tmp_path):
    path = write(tmp_path, "a.csv", "text,category\na,b\nc,d\n")
    with pytest.raises(DataError, match="'imput' is not a role") as caught:
        rows_of(path, imput="text")
    assert "'input'" in caught.value.hint


def test_a_mapping_can_be_corrected(tmp_path):
    path = write(tmp_path, "a.csv", "text,title,label,rating\nlong text,short,x,1\nother text,brief,y,2\n")
    rows, _ = rows_of(path, input="title", label="rating", label_names="bad,poor,good")
    assert pairs(rows) == [("short", "poor"), ("brief", "good")]


@pytest.mark.parametrize("label", ["²", "--1", "-", "①"])
def test_a_label_that_only_looks_like_a_number_is_a_name(tmp_path, label):
    path = write(tmp_path, "a.csv", f"text,label\nlong text,{label}\nother text,1\n")
    rows, _ = rows_of(path, label_names="no,yes")
    assert pairs(rows) == [("long text", label), ("other text", "yes")]


def test_a_label_without_a_name_is_refused(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\nx,0\ny,-1\n")
    with pytest.raises(DataError, match=r"line 3, column 'label': there is no label -1") as caught:
        rows_of(path, label_names="no,yes")
    assert "hidden" in caught.value.message
