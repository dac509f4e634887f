"""Delimited text: separators, quotes, headers, ragged rows, sizes, and labels of every kind."""

from __future__ import annotations

from tests.input.awkward.cases import TWO, Case, csv, lines, packed, reads, refuses

MEGABYTE = "word " * 200_000


def _shapes() -> list[Case]:
    wide = ",".join(f"c{i}" for i in range(10_000))
    cells = ",".join("1" for _ in range(10_000))
    return [
        reads("one_row", "one.csv", "text,label\na red hat,clothes\n", TWO[:1]),
        refuses("one_column", "one.csv", "text\na red hat\na green pear\n", r"one\.csv: no column holds the wanted"),
        refuses("one_word", "one.csv", "hello", r"one\.csv"),
        refuses("one_cell_below", "one.csv", "label\nx\n", r"one\.csv: no column holds what the model is given"),
        refuses("one_newline", "one.csv", "\n", r"one\.csv holds only blank lines"),
        refuses("only_blanks", "one.csv", "   \n\t\n  \n", r"one\.csv"),
        refuses("only_separators", "one.csv", ",,,\n,,,\n,,,\n", r"one\.csv holds only blank lines"),
        refuses("only_separators_below", "one.csv", "text,label\n,\n,\n", r"one\.csv has a header \(line 1\) but no"),
        reads("ten_thousand_columns", "wide.csv", f"text,label,{wide}\na red hat,clothes,{cells}\n", TWO[:1]),
        refuses("ten_thousand_strange_columns", "wide.csv", f"{wide}\n{cells}\n", r"wide\.csv: no column holds"),
        reads(
            "a_cell_of_a_megabyte", "big.csv", f"text,label\n{MEGABYTE},x\nb,y\n", [(MEGABYTE.strip(), "x"), ("b", "y")]
        ),
        reads("an_answer_of_a_megabyte", "big.tsv", f"text\toutput\na\t{MEGABYTE}\n", [("a", MEGABYTE.strip())]),
        refuses(
            "a_quote_that_swallows_all", "big.csv", 'text,label\na,x\n"b,y\n' + "c,z\n" * 3000, r"big\.csv, line 3"
        ),
        refuses(
            "a_cell_past_the_limit",
            "huge.csv",
            lambda path: path.write_text("text,label\n" + "x" * (16 * 2**20 + 1) + ",y\n"),
            r"huge\.csv, line 2: a field of more than",
        ),
        reads("two_hundred_blank_lines", "blank.csv", "text,label\n" + "\n" * 200 + "a,b\n", [("a", "b")]),
        reads("equal_rows", "same.csv", "text,label\n" + "a,b\n" * 3, [("a", "b")] * 3),
        reads("in_gzip_in_capitals", "A.CSV.GZ", packed(csv())),
        reads(
            "gzip_in_two_parts",
            "two.csv.gz",
            packed("text,label\na red hat,clothes\n") + packed("a green pear,fruit\n"),
        ),
        reads("gzip_without_its_name", "plain.csv", packed(csv()), note="gzip-compressed although"),
        reads("tabs_in_capitals", "A.TSV", csv(separator="\t")),
    ]


def _separators() -> list[Case]:
    return [
        reads("commas_in_tsv", "a.tsv", csv(), note="separated by commas"),
        reads(
            "semicolons_with_decimal_commas", "a.csv", "text;price;label\na;1,5;x\nb;2,5;y\n", [("a", "x"), ("b", "y")]
        ),
        reads("semicolons_quoted", "a.csv", 'text;label\n"a;b";x\nc;y\n', [("a;b", "x"), ("c", "y")]),
        reads(
            "vertical_bars_with_commas",
            "a.csv",
            "text|label\na, b and c|x\nd, e|y\n",
            [("a, b and c", "x"), ("d, e", "y")],
        ),
        refuses(
            "excel_says_its_separator", "a.csv", "sep=;\ntext;label\na;b\n", r"a\.csv, line 1: .*sep=;", "first line"
        ),
        refuses("carets", "a.csv", "text^label\na^b\n", r"a\.csv: no column holds"),
        refuses("fixed_width", "a.csv", "text      label\na red hat clothes\n", r"a\.csv"),
        reads("separator_at_the_end", "a.csv", "text,label,\na,x,\nb,y,\n", [("a", "x"), ("b", "y")]),
        refuses("separator_at_the_end_of_rows", "a.csv", "text,label\na,x,\nb,y,\n", r"a\.csv, line 2: 3 fields"),
        refuses("markdown_table", "a.csv", "| text | label |\n|---|---|\n| a | b |\n", r"a\.csv"),
        refuses("tabs_and_commas_mixed", "a.csv", "text,label\na,b\nc\td\n", r"a\.csv, line 3: 1 fields"),
        refuses("commas_not_quoted", "a.csv", "text,label\nwell, then,x\n", r"a\.csv, line 2: 3 fields", "quotation"),
        refuses("ragged_far_down", "a.csv", csv([(f"t{i}", "x") for i in range(500)]) + "a,b,c\n", r"a\.csv, line 502"),
        refuses(
            "shorter_far_down", "a.tsv", csv([(f"t{i}", "x") for i in range(500)], "\t") + "a\n", r"a\.tsv, line 502"
        ),
    ]


def _quotes() -> list[Case]:
    return [
        reads("all_quoted", "a.csv", '"text","label"\n"a red hat","clothes"\n"a green pear","fruit"\n'),
        reads("quotes_inside_unquoted", "a.csv", 'text,label\nsay "hi",x\nb,y\n', [('say "hi"', "x"), ("b", "y")]),
        reads("typographic_quotes", "a.csv", "text,label\n“a”,x\n„b“,y\n", [("“a”", "x"), ("„b“", "y")]),
        reads("single_quotes", "a.csv", "text,label\n'a',x\nit's,y\n", [("'a'", "x"), ("it's", "y")]),
        reads("blank_lines_inside_quotes", "a.csv", 'text,label\n"a\n\n\nb",x\n', [("a\n\n\nb", "x")]),
        refuses("text_after_a_quote", "a.csv", 'text,label\n"a" b,x\n', r"a\.csv, line 2: text follows a closing"),
        refuses("backslash_quotes", "a.csv", 'text,label\n"a \\"b\\" c",x\n', r"a\.csv, line 2: text follows"),
        refuses("never_closed_on_the_last", "a.csv", 'text,label\na,x\nb,"y\n', r"a\.csv, line 3"),
        refuses("empty_quotes", "a.csv", 'text,label\n"",x\n', r"a\.csv, line 2, column 'text': empty"),
        reads(
            "quoted_header_with_line_break",
            "a.csv",
            '"text","la\nbel"\na red hat,clothes\na green pear,fruit\n',
            output="la\nbel",
        ),
    ]


def _headers() -> list[Case]:
    return [
        refuses("header_twice", "a.csv", "text,label,text\na,b,c\n", r"a\.csv, line 1: the columns 1 and 3 are both"),
        refuses(
            "header_twice_but_for_blanks", "a.csv", "text, text,label\na,b,c\n", r"a\.csv, line 1: the columns 1 and 2"
        ),
        reads("header_with_a_blank_name", "a.csv", ",label\na red hat,clothes\na green pear,fruit\n"),
        reads("header_in_capitals", "a.csv", "TEXT,LABEL\na red hat,clothes\na green pear,fruit\n"),
        reads("header_of_emoji", "a.csv", "🙂,🏷\na red hat,clothes\na green pear,fruit\n", input="🙂", label="🏷"),
        reads(
            "header_very_long",
            "a.csv",
            f"{'x' * 5000},label\na red hat,clothes\na green pear,fruit\n",
            input="x" * 5000,
        ),
        reads(
            "header_with_quotes_and_equals",
            "a.csv",
            "a=b,c'd\na red hat,clothes\na green pear,fruit\n",
            input="a=b",
            output="c'd",
        ),
        reads("header_twice_in_the_file", "a.csv", csv() + csv(), [*TWO, ("text", "label"), *TWO]),
        reads("header_that_is_not_one", "a.csv", csv()[len("text,label\n") :], header=False),
        refuses("header_denied_and_ragged", "a.csv", "a\nb,c\n", r"a\.csv, line 2: 2 fields", header=False),
        reads(
            "names_of_html",
            "a.csv",
            "<script>alert(1)</script>,label\na red hat,clothes\na green pear,fruit\n",
            input="<script>alert(1)</script>",
            label="label",
        ),
    ]


def _labels() -> list[Case]:
    def one(name: str, labels: list[str], **more) -> Case:
        rows = [(f"text {i}", label) for i, label in enumerate(labels)]
        return reads(name, "a.csv", csv(rows), rows, **more)

    mixed = lines([{"text": f"t {i}", "label": value} for i, value in enumerate([1, "1", 1.0, True, 2.5, "one"])])
    rows = [(f"t {i}", value) for i, value in enumerate(["1", "1", "1", "true", "2.5", "one"])]
    return [
        one("labels_of_numbers_and_words", ["1", "one", "1.0", "uno"]),
        one("labels_that_look_empty", ["None", "null", "NaN", "nan", "N/A", "NA", "-"]),
        one("labels_of_truth", ["True", "false", "TRUE", "0"]),
        one("labels_of_formulas", ["=1+1", "@SUM(A1)", "+1", "-1"]),
        one("labels_of_emoji", ["🙂", "🙁", "🙂", "🙁"]),
        one("labels_with_leading_noughts", ["007", "7", "07", "7"]),
        one("labels_huge_numbers", ["1e999", "-1e999", "9" * 400, "1"]),
        one("as_many_labels_as_rows", [f"label {i}" for i in range(300)]),
        reads("labels_of_mixed_type", "a.jsonl", mixed, rows),
        refuses(
            "label_missing", "a.csv", "text,label\na,x\nb,\n", r"a\.csv, line 3, column 'label': the answer is empty"
        ),
        refuses(
            "label_blank", "a.csv", "text,label\na,x\nb,   \n", r"a\.csv, line 3, column 'label': the answer is empty"
        ),
        refuses("label_null", "a.jsonl", lines([{"text": "a", "label": None}]), r"a\.jsonl, line 1, column 'label'"),
        refuses(
            "label_a_list_of_lists", "a.jsonl", lines([{"text": "a", "label": [["x"]]}]), r"a\.jsonl, line 1, column"
        ),
        refuses(
            "all_one_label",
            "a.csv",
            csv([(f"t{i}", "x") for i in range(20)]),
            r"needs two labels or more",
            "generation",
            kind="classification",
        ),
        refuses("input_blank", "a.csv", "text,label\n   ,x\n", r"a\.csv, line 2, column 'text': empty"),
        refuses(
            "text_only_zero_width", "a.csv", "text,label\n\u200b\u200b,x\n", r"a\.csv, line 2, column 'text': empty"
        ),
        refuses(
            "answer_only_zero_width", "a.csv", "text,label\na,\ufeff\u200b\n", r"a\.csv, line 2, column 'label'.*empty"
        ),
        reads(
            "split_unknown",
            "a.csv",
            "text,label,split\na,x,train\nb,y,exam\n",
            [("a", "x"), ("b", "y")],
            note="not used: split",
        ),
        refuses(
            "split_far_down",
            "a.csv",
            "text,label,split\n" + "a,x,train\n" * 1500 + "b,y,exam\n",
            r"a\.csv, line 1502, column 'split': 'exam' is not a split",
        ),
    ]


CASES = [*_shapes(), *_separators(), *_quotes(), *_headers(), *_labels()]
