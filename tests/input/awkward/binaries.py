"""Binary files: Parquet of every type, damaged archives, and other formats under the names of data."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from tests.input.awkward.cases import TWO, Case, csv, packed, reads, refuses

TEXTS = [text for text, _ in TWO]


def _parquet(**columns: object) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


def _bytes(table: pa.Table, **options) -> bytes:
    into = io.BytesIO()
    pq.write_table(table, into, **options)
    return into.getvalue()


def _whole() -> bytes:
    return _bytes(pa.table({"input": TEXTS, "output": [label for _, label in TWO]}))


def _zip(name: str, content: str) -> bytes:
    into = io.BytesIO()
    with zipfile.ZipFile(into, "w") as archive:
        archive.writestr(name, content)
    return into.getvalue()


def _arrow() -> bytes:
    table = pa.table({"input": TEXTS})
    into = io.BytesIO()
    with pa.ipc.new_file(into, table.schema) as writer:
        writer.write_table(table)
    return into.getvalue()


def _types() -> list[Case]:
    def answers(name: str, values: pa.Array, *texts: str) -> Case:
        made = _parquet(input=TEXTS, output=values)
        return reads(f"parquet_{name}", "a.parquet", made, list(zip(TEXTS, texts, strict=True)))

    def not_texts(name: str, values: pa.Array, message: str = "") -> Case:
        return refuses(f"parquet_{name}", "a.parquet", _parquet(input=TEXTS, output=values), rf"a\.parquet.*{message}")

    moment = datetime(2026, 1, 2, 3, 4, 5)
    far = pa.array([2**62, -(2**62)], pa.timestamp("us"))
    return [
        answers("decimal", pa.array([Decimal("1.50"), Decimal("-2.25")]), "1.50", "-2.25"),
        answers("date", pa.array([date(2026, 1, 2), date(1, 1, 1)]), "2026-01-02", "0001-01-01"),
        answers("timestamp", pa.array([moment, moment]), str(moment), str(moment)),
        answers("timestamp_zone", pa.array([moment] * 2, pa.timestamp("us", "UTC")), *[f"{moment}+00:00"] * 2),
        answers("time", pa.array([time(3, 4), time(5)]), "03:04:00", "05:00:00"),
        answers("duration", pa.array([timedelta(hours=1), timedelta(days=2)]), "1:00:00", "2 days, 0:00:00"),
        answers("dictionary", pa.array(["x", "y"]).dictionary_encode(), "x", "y"),
        answers("large_string", pa.array(["x", "y"], pa.large_string()), "x", "y"),
        answers("string_view", pa.array(["x", "y"], pa.string_view()), "x", "y"),
        answers("unsigned", pa.array([2**64 - 1, 0], pa.uint64()), str(2**64 - 1), "0"),
        answers("half_float", pa.array([0.5, 2.0], pa.float16()), "0.5", "2.0"),
        answers("truth", pa.array([True, False]), "true", "false"),
        not_texts("binary", pa.array([b"x", b"\xff"]), "row 1, column 'output': bytes"),
        not_texts("fixed_binary", pa.array([b"xx", b"yy"], pa.binary(2)), "row 1, column 'output': bytes"),
        not_texts("map", pa.array([[("k", "v")], []], pa.map_(pa.string(), pa.string()))),
        not_texts("nested_list", pa.array([[["a"]], [["b"]]]), "row 1, column 'output'"),
        not_texts("struct", pa.array([{"x": 1}, {"x": 2}]), "row 1, column 'output'"),
        not_texts("null_column", pa.nulls(2), "row 1, column 'output': the answer is empty"),
        not_texts("null_later", pa.array(["x", None]), "row 2, column 'output': the answer is empty"),
        not_texts("nan_later", pa.array([1.5, float("nan")]), "row 2, column 'output': the answer is empty"),
        not_texts("infinite", pa.array([1.5, float("inf")]), "row 2, column 'output'"),
        not_texts("time_out_of_range", far, "."),
        answers("list_of_one", pa.array([["x"], ["y"]]), "x", "y"),
    ]


def _files() -> list[Case]:
    whole = _whole()
    nameless = pa.table([pa.array(TEXTS), pa.array(["x", "y"])], names=["", "output"])
    twice = pa.table([pa.array(TEXTS), pa.array(["x", "y"])], names=["input", "input"])
    wide = pa.table({f"c{i}": ["x"] for i in range(3000)} | {"input": ["a"], "output": ["b"]})
    return [
        reads("parquet_short_name", "a.pq", whole),
        reads("parquet_packed", "a.parquet.gz", packed(whole)),
        reads(
            "parquet_uncompressed_groups",
            "a.parquet",
            _bytes(pa.table({"input": TEXTS, "output": ["clothes", "fruit"]}), compression="none", row_group_size=1),
        ),
        reads("parquet_of_3000_columns", "a.parquet", _bytes(wide), [("a", "b")]),
        reads("parquet_nameless_column", "a.parquet", _bytes(nameless), [(TEXTS[0], "x"), (TEXTS[1], "y")]),
        refuses("parquet_same_columns", "a.parquet", _bytes(twice), r"a\.parquet: two columns are called 'input'"),
        refuses(
            "parquet_no_rows",
            "a.parquet",
            _bytes(pa.table({"input": pa.array([], pa.string())})),
            r"a\.parquet has no rows",
        ),
        refuses("parquet_no_columns", "a.parquet", _bytes(pa.table({})), r"a\.parquet has no rows"),
        refuses("parquet_cut_at_the_end", "a.parquet", whole[:-5], r"a\.parquet is a damaged Parquet file"),
        refuses("parquet_cut_in_the_middle", "a.parquet", whole[: len(whole) // 2], r"a\.parquet is a damaged Parquet"),
        refuses("parquet_eight_bytes", "a.parquet", b"PAR1PAR1", r"a\.parquet is a damaged Parquet"),
        refuses("parquet_mark_alone", "a.parquet", b"PAR1", r"a\.parquet is a damaged Parquet"),
        refuses("parquet_pages_overwritten", "a.parquet", whole[:4] + bytes(120) + whole[124:], r"a\.parquet"),
        refuses("parquet_encrypted", "a.parquet", b"PARE" + whole[4:], r"a\.parquet.*encrypted", "without encryption"),
        refuses("parquet_in_jsonl", "a.jsonl", whole, r"a\.jsonl is a Parquet file", r"\.parquet"),
        refuses("json_in_parquet", "a.parquet", b'[{"input": 1}]', r"a\.parquet is not a Parquet file"),
    ]


def _archives() -> list[Case]:
    whole = packed(csv())
    return [
        refuses("gzip_header_alone", "a.csv.gz", whole[:10], r"a\.csv\.gz is a damaged gzip"),
        refuses(
            "gzip_cut",
            "a.jsonl.gz",
            packed('{"input": "a", "output": "b"}\n' * 500)[:-20],
            r"a\.jsonl\.gz is a damaged",
        ),
        refuses("gzip_wrong_sum", "a.csv.gz", whole[:-8] + bytes(4) + whole[-4:], r"a\.csv\.gz is a damaged gzip"),
        refuses("gzip_then_rubbish", "a.csv.gz", whole + b"rubbish", r"a\.csv\.gz is a damaged gzip"),
        refuses("gzip_of_nothing", "a.csv.gz", packed(""), r"a\.csv\.gz is empty once unpacked"),
        refuses("gzip_twice", "a.csv.gz", packed(whole), r"a\.csv\.gz.*(gzip|compressed) twice|twice"),
        refuses("gzip_of_a_zip", "a.csv.gz", packed(_zip("a.csv", csv())), r"a\.csv\.gz is a zip archive"),
        refuses("gzip_of_unknown", "a.gz", whole, r"a\.gz"),
        refuses(
            "gzip_flipped_byte",
            "a.csv.gz",
            whole[:15] + bytes([whole[15] ^ 255]) + whole[16:],
            r"a\.csv\.gz is a damaged",
        ),
        refuses(
            "gzip_bomb",
            "a.csv.gz",
            lambda path: path.write_bytes(gzip.compress(b"text,label\n" + b"a,b\n" * 17_000_000, 1)),
            r"a\.csv\.gz unpacks to more",
        ),
        refuses("bzip2", "a.csv", bz2.compress(csv().encode()), r"a\.csv is bzip2"),
        refuses("xz", "a.csv", lzma.compress(csv().encode()), r"a\.csv is xz"),
        refuses("zstd", "a.csv", b"\x28\xb5\x2f\xfd" + bytes(30), r"a\.csv is zstd"),
        refuses("tar_as_csv", "a.csv", b"a.csv".ljust(257, b"\0") + b"ustar\x0000" + bytes(300), r"a\.csv"),
        refuses("zip_as_csv", "a.csv", _zip("a.csv", csv()), r"a\.csv is a zip archive", "Unpack"),
        refuses("zip", "a.zip", _zip("a.csv", csv()), r"a\.zip: \.zip is not a supported"),
    ]


def _others() -> list[Case]:
    page = "<!DOCTYPE html>\n<html><body><table><tr><td>text</td><td>label</td></tr></table></body></html>\n"
    plain = {
        "html_as_csv": ("a.csv", page, "HTML"),
        "html_as_json": ("a.json", page, "HTML"),
        "html_as_jsonl": ("a.jsonl", "\n " + page.lower(), "HTML"),
        "html_as_parquet": ("a.parquet", page, "an HTML page"),
        "xml_as_csv": ("a.csv", '<?xml version="1.0"?>\n<rows><row text="a"/></rows>\n', "XML"),
        "rtf_as_csv": ("a.csv", "{\\rtf1\\ansi text,label\\par a,b}", "RTF|rich text"),
        "lfs_pointer": (
            "a.csv",
            "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n",
            "LFS",
        ),
        "pdf_as_csv": ("a.csv", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "a PDF"),
        "excel_as_csv": ("a.csv", _zip("xl/workbook.xml", "<workbook/>"), "office document"),
        "old_excel_as_csv": ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504), "old office|Excel"),
        "ods_as_csv": ("a.csv", _zip("mimetype", "application/vnd.oasis.opendocument.spreadsheet"), "zip archive"),
        "jpeg_as_csv": ("a.csv", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(range(256)), "image|NUL"),
        "gif_as_json": ("a.json", b"GIF89a\x01\x00\x01\x00\x80\x00\x00" + bytes(9), "image|NUL"),
        "sound_as_tsv": ("a.tsv", b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(30), "NUL"),
        "sqlite_as_csv": ("a.csv", b"SQLite format 3\x00" + bytes(84), "SQLite"),
        "arrow_as_parquet": ("a.parquet", _arrow(), "an Arrow file"),
        "feather": ("a.feather", _arrow(), "not a supported format"),
        "pickle_as_jsonl": ("a.jsonl", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00]\x94(K\x01K\x02e.", "NUL|pickle"),
        "numpy_as_csv": ("a.csv", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'}", "NUL"),
        "elf_as_csv": ("a.csv", b"\x7fELF\x02\x01\x01" + bytes(40), "NUL"),
        "xlsx": ("a.xlsx", _zip("xl/workbook.xml", "<workbook/>"), "not a supported format"),
        "text_file": ("a.txt", csv(), "not a supported format"),
        "no_ending": ("data", csv(), "no extension"),
        "ending_alone": (".csv", csv(), "not a supported format|no extension"),
        "two_endings": ("a.csv.bak", csv(), "not a supported format"),
        "python_file": ("a.py", "print(1)", "not a supported format"),
        "ending_with_a_blank": ("a.csv ", csv(), "not a supported format"),
    }
    return [refuses(name, file, content, message) for name, (file, content, message) in plain.items()]


CASES = [*_types(), *_files(), *_archives(), *_others()]
