"""JSON and JSON lines: layouts, numbers, nesting, conversations, and what only looks like JSON."""

from __future__ import annotations

import json

from tests.input.awkward.cases import OBJECTS, TWO, Case, lines, packed, reads, refuses

ROW = '{"input": "a red hat", "output": "clothes"}'
NEXT = '{"input": "a green pear", "output": "fruit"}'


def _layouts() -> list[Case]:
    table = {"schema": {"fields": [{"name": "input"}], "pandas_version": "1.4.0"}, "data": OBJECTS}
    return [
        reads("pandas_records", "a.json", OBJECTS),
        reads("pandas_table", "a.json", table),
        reads("pandas_split_without_index", "a.json", {"columns": ["input", "output"], "data": [list(p) for p in TWO]}),
        refuses(
            "pandas_split_short_row",
            "a.json",
            {"columns": ["input", "output"], "data": [["a", "b"], ["c"]]},
            r"a\.json, row 2: 1 values where 2",
        ),
        refuses(
            "pandas_split_long_row",
            "a.json",
            {"columns": ["input", "output"], "data": [["a", "b", "c"]]},
            r"a\.json, row 1: 3 values",
        ),
        refuses(
            "pandas_split_no_rows_inside",
            "a.json",
            {"columns": ["input", "output"], "data": ["ab", 7]},
            r"a\.json, row 1",
        ),
        refuses(
            "pandas_split_columns_of_lists",
            "a.json",
            {"columns": [["input"], {"x": 1}], "data": [["a", "b"]]},
            r"a\.json.*columns",
        ),
        refuses(
            "pandas_split_columns_twice",
            "a.json",
            {"columns": ["input", "input"], "data": [["a", "b"]]},
            r"a\.json.*'input'",
        ),
        refuses("pandas_values", "a.json", [list(pair) for pair in TWO], r"a\.json, line 1: an array where an object"),
        reads("under_keys_of_words", "a.json", {"first": OBJECTS[0], "second": OBJECTS[1]}),
        refuses("columns_uneven", "a.json", {"input": {"0": "a", "1": "b"}, "output": {"0": "x"}}, r"a\.json"),
        reads("rows_under_data_with_counts", "a.json", {"count": 2, "next": None, "data": OBJECTS}),
        reads("rows_under_rows", "a.json", {"rows": OBJECTS, "features": []}),
        refuses("two_lists_of_rows", "a.json", {"one": OBJECTS, "two": OBJECTS}, r"a\.json"),
        reads("splits_of_which_one_is_empty", "a.json", {"train": OBJECTS, "test": []}),
        reads("one_object", "a.json", OBJECTS[0], TWO[:1]),
        reads("one_object_over_lines", "a.json", json.dumps(OBJECTS[0], indent=4), TWO[:1]),
        reads("array_over_lines", "a.json", json.dumps(OBJECTS, indent=4)),
        reads("array_packed", "a.json.gz", packed(json.dumps(OBJECTS))),
        reads("concatenated_on_lines", "a.json", f"{ROW}\n{NEXT}\n"),
        refuses(
            "concatenated_without_breaks",
            "a.json",
            ROW + NEXT,
            r"a\.json, line 1, column 44: Extra data",
            "one object a line",
        ),
        refuses("concatenated_in_jsonl", "a.jsonl", f"{ROW}{NEXT}\n", r"a\.jsonl, line 1, column 44: Extra data"),
        refuses(
            "objects_over_lines_in_jsonl", "a.jsonl", json.dumps(OBJECTS[0], indent=2), r"a\.jsonl, line 1", r"\.json\b"
        ),
        refuses("arrays_on_lines", "a.json", "[1, 2]\n[3, 4]\n", r"a\.json, line 1: a number where an object"),
        refuses(
            "natural_instructions_without_output",
            "a.json",
            {"Definition": "x", "Instances": [{"id": "1", "input": "a"}]},
            r"a\.json, entry 1, column 'output'",
        ),
        refuses("natural_instructions_of_texts", "a.json", {"Instances": ["a"]}, r"a\.json, entry 1 of Instances"),
        refuses("instances_empty", "a.json", {"Definition": "x", "Instances": []}, r"a\.json has no rows"),
        refuses(
            "geojson",
            "a.json",
            {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": None}]},
            r"a\.json",
        ),
    ]


def _almost() -> list[Case]:
    return [
        refuses("trailing_comma", "a.json", f"[{ROW},\n]", r"a\.json, line \d, column \d+", "comma"),
        refuses(
            "trailing_comma_inside",
            "a.jsonl",
            '{"input": "a", "output": "b",}',
            r"a\.jsonl, line 1, column \d+",
            "comma",
        ),
        refuses("comments", "a.json", f"[\n// first\n{ROW}]", r"a\.json, line 2, column 1", "omment"),
        refuses("hash_comments", "a.jsonl", f"# note\n{ROW}\n", r"a\.jsonl, line 1, column 1", "omment"),
        refuses("python_words", "a.jsonl", "{'input': None}", r"a\.jsonl, line 1, column 2", "double quotation"),
        refuses("none_and_true", "a.jsonl", '{"input": True}', r"a\.jsonl, line 1, column 11"),
        refuses("line_break_inside_a_text", "a.json", '[{"input": "a\nb"}]', r"a\.json, line 1, column \d+", r"\\n"),
        refuses(
            "wrong_escape",
            "a.jsonl",
            '{"input": "C:\\dir", "output": "y"}',
            r"a\.jsonl, line 1, column 14",
            "backslash",
        ),
        refuses("no_comma_between", "a.json", f"[{ROW} {NEXT}]", r"a\.json, line 1, column 46", "comma"),
        refuses("cut_in_a_text", "a.json", f"[{ROW}, {{", r"a\.json, line 1", "cut off"),
        refuses("cut_in_the_last_line", "a.jsonl", f"{ROW}\n{NEXT[:20]}", r"a\.jsonl, line 2, column \d+", "cut off"),
        refuses("two_commas", "a.json", f"[{ROW},,{NEXT}]", r"a\.json, line 1, column 46"),
        refuses("yaml", "a.json", "- input: a\n  output: b\n", r"a\.json, line 1, column 1"),
        refuses("json_in_csv", "a.csv", json.dumps(OBJECTS), r"a\.csv.*JSON", r"\.json"),
        refuses("jsonl_in_csv", "a.csv", lines(), r"a\.csv.*JSON", r"\.jsonl"),
        refuses("csv_in_jsonl", "a.jsonl", "text,label\na,b\n", r"a\.jsonl, line 1, column 1"),
        refuses("numbers_alone", "a.json", "12", r"a\.json holds one a? ?number"),
        refuses("null_alone", "a.json", "null", r"a\.json holds"),
        refuses("true_alone", "a.json", "true", r"a\.json holds"),
        refuses("empty_object", "a.json", "{}", r"a\.json has no rows with columns"),
        refuses("empty_objects", "a.jsonl", "{}\n{}\n", r"a\.jsonl has no rows with columns"),
        refuses("array_of_nulls", "a.json", "[null, null]", r"a\.json, line 1: null where an object"),
        refuses("array_then_more", "a.json", f"[{ROW}] trailing", r"a\.json, line 1, column 47: Extra data"),
        refuses("only_an_opening", "a.jsonl", "{", r"a\.jsonl, line 1"),
        refuses("only_spaces", "a.json", "   \n  ", r"a\.json"),
        refuses("markdown_fence", "a.json", f"```json\n[{ROW}]\n```\n", r"a\.json, line 1, column 1"),
        refuses("log_lines_between", "a.jsonl", f"{ROW}\n2026-01-01 INFO saved\n", r"a\.jsonl, line 2, column"),
    ]


def _values() -> list[Case]:
    def answer(name: str, raw: str, text: str) -> Case:
        return reads(name, "a.jsonl", f'{{"input": "a", "output": {raw}}}\n', [("a", text)])

    digits = "9" * 5000
    return [
        answer("huge_integer", "9" * 300, "9" * 300),
        refuses(
            "integer_of_5000_digits", "a.jsonl", f'{{"input": "a", "output": {digits}}}', r"a\.jsonl, line 1", "text"
        ),
        refuses("integer_of_5000_digits_in_an_array", "a.json", f'[{{"input": "a", "output": {digits}}}]', r"a\.json"),
        refuses(
            "answer_nan",
            "a.jsonl",
            '{"input": "a", "output": NaN}',
            r"a\.jsonl, line 1, column 'output': the answer is empty",
        ),
        refuses(
            "answer_infinite",
            "a.jsonl",
            '{"input": "a", "output": Infinity}',
            r"a\.jsonl, line 1, column 'output'.*inf",
        ),
        answer("answer_small_number", "1e-7", "1e-07"),
        answer("answer_false", "false", "false"),
        answer("answer_nought", "0", "0"),
        answer("answer_minus_nought", "-0.0", "-0.0"),
        refuses(
            "key_twice", "a.jsonl", '{"input": "a", "input": "b", "output": "c"}', r"a\.jsonl, line 1: .*'input'.*twice"
        ),
        refuses(
            "key_twice_in_array",
            "a.json",
            '[{"input": "a", "input": "b", "output": "c"}]',
            r"a\.json, line 1: .*'input'",
        ),
        reads(
            "keys_that_vary", "a.jsonl", lines([OBJECTS[0], {"output": "fruit", "extra": 1, "input": "a green pear"}])
        ),
        refuses(
            "key_missing_later", "a.jsonl", lines([*OBJECTS, {"input": "x"}]), r"a\.jsonl, line 3, column 'output'"
        ),
        refuses(
            "answer_an_object", "a.jsonl", '{"input": "a", "output": {"x": 1}}', r"a\.jsonl, line 1, column 'output'"
        ),
        refuses(
            "input_a_list", "a.jsonl", '{"input": ["a"], "output": "b"}', r"a\.jsonl, line 1, column 'input': a list"
        ),
        refuses(
            "deep_objects",
            "a.jsonl",
            '{"input": ' + '{"a":' * 50_000 + "1" + "}" * 50_000 + ', "output": 1}',
            r"a\.jsonl, line 1",
        ),
        reads(
            "deep_but_unused",
            "a.jsonl",
            '{"input": "a", "output": "b", "meta": ' + "[" * 200 + "]" * 200 + "}\n",
            [("a", "b")],
        ),
        reads(
            "ten_thousand_keys",
            "a.jsonl",
            lines([{"input": "a", "output": "b"} | {f"k{i}": i for i in range(10_000)}]),
            [("a", "b")],
        ),
        reads("a_megabyte_in_a_line", "a.jsonl", lines([{"input": "w" * 2**20, "output": "y"}]), [("w" * 2**20, "y")]),
        reads("escapes", "a.jsonl", '{"input": "a\\tb\\u00e9\\\\\\/", "output": "y"}', [("a\tbé\\/", "y")]),
        reads("empty_key", "a.jsonl", '{"": "z", "input": "a", "output": "b"}', [("a", "b")]),
        reads("keys_of_blanks", "a.jsonl", '{" input ": "a", "OUTPUT": "b"}', [("a", "b")]),
        refuses(
            "choices_null", "a.jsonl", '{"question": "?", "choices": [null, "b"], "answer": "b"}', r"a\.jsonl, line 1"
        ),
        reads("choices_twice", "a.jsonl", '{"question": "?", "choices": ["b", "b"], "answer": "b"}', [("?", "b")]),
        refuses(
            "choice_number_past_the_end",
            "a.jsonl",
            '{"question": "?", "choices": ["a", "b"], "answer": 7}',
            r"a\.jsonl, line 1",
        ),
        refuses(
            "choice_number_negative",
            "a.jsonl",
            '{"question": "?", "choices": ["a", "b"], "label": -1}',
            r"a\.jsonl, line 1",
        ),
    ]


def _conversations() -> list[Case]:
    def talk(name: str, messages: object, message: str) -> Case:
        return refuses(name, "a.jsonl", lines([{"messages": messages}]), rf"a\.jsonl.*{message}")

    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    return [
        talk("no_messages", [], "no rows with an answer|no column"),
        talk("messages_a_number", 7, "."),
        talk("only_the_user", said[:1], "no rows with an answer"),
        talk("only_the_assistant", said[1:], "no rows with an answer"),
        talk("answer_blank", [said[0], {"role": "assistant", "content": " "}], "no rows with an answer"),
        talk("role_of_a_tool", [*said, {"role": "tool", "content": "x"}], "line 1, .*message 3: the role 'tool'"),
        talk("content_a_number", [said[0], {"role": "assistant", "content": 3}], "message 2: its content"),
        talk("content_with_an_image", [{"role": "user", "content": [{"type": "image"}]}, said[1]], "message 1: a part"),
        talk("role_missing", [{"role": None, "content": "x"}], "."),
        refuses(
            "message_not_an_object",
            "a.jsonl",
            lines([{"messages": said}, {"messages": ["x"]}]),
            r"a\.jsonl, line 2, .*message 1: not a message",
        ),
        reads(
            "messages_as_text",
            "a.jsonl",
            lines([{"messages": json.dumps(said)}]),
            [("Hi", "Hello")],
            mapping={"messages": "messages"},
        ),
        reads("messages_null_somewhere", "a.jsonl", lines([{"messages": said}, {"messages": None}]), [("Hi", "Hello")]),
        reads(
            "long_conversation",
            "a.jsonl",
            lines([{"messages": [{"role": ("user", "assistant")[i % 2], "content": f"turn {i}"} for i in range(400)]}]),
            [(f"turn {i}", f"turn {i + 1}") for i in range(0, 400, 2)],
        ),
        refuses("rows_of_preferences", "a.jsonl", lines([{"chosen": said, "rejected": said}]), r"a\.jsonl"),
    ]


CASES = [*_layouts(), *_almost(), *_values(), *_conversations()]
