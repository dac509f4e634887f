"""Bytes that are not plain UTF-8: other encodings, marks, control characters, scripts and signs of all kinds."""

from __future__ import annotations

import codecs

from tests.input.awkward.cases import OBJECTS, Case, Pairs, csv, lines, reads, refuses

LONG = {
    "latin_1": "Les élèves ont déjà visité la forêt près du château où le père préfère rêver en été",
    "mac_roman": "plain words without any sign",
    "cp1250": "Příliš žluťoučký kůň úpěl ďábelské ódy a všichni se smáli",
    "koi8_r": "Сегодня очень хорошая погода и мы идём гулять в парк вместе с друзьями",
    "gb18030": "今天天气很好，我们一起去公园散步，然后回家吃晚饭，看一部老电影。",
    "big5": "今天天氣很好，我們一起去公園散步，然後回家吃晚飯，看一部老電影。",
    "euc_kr": "오늘은 날씨가 아주 좋아서 우리는 공원에서 산책을 하고 집으로 돌아왔습니다",
    "euc_jp": "日本語の文章を分類する課題のための例文です。今日は天気がいいですね。",
    "iso8859_7": "Σήμερα ο καιρός είναι πολύ καλός και πηγαίνουμε για περπάτημα στο πάρκο",
    "iso8859_8": "היום מזג האוויר יפה מאוד ואנחנו הולכים לטייל בפארק עם החברים שלנו",
}
SIGNS = {
    "emoji": "a 👩‍👩‍👧‍👦 family and a 🏳️‍🌈 flag",
    "right_to_left": "مرحبا بالعالم",
    "right_to_left_override": "user\u202egnp.exe",
    "zero_width": "zero\u200bwidth\u200djoined\u2060words",
    "combining": "Z\u0351\u036b\u0343a\u0300\u0301\u0302lgo",
    "private_use": "\ue000\uf8ff",
    "beyond_the_plane": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "no_break_spaces": "1\u00a0000\u202f000",
    "line_separators": "one\u2028two\u2029three\x85four",
    "bell_and_escape": "ring\x07 \x1b[31mred\x1b[0m",
    "replacement": "was \ufffd once",
    "noncharacter": "\ufffe\uffff",
    "thai": "ภาษาไทยไม่มีช่องว่าง",
    "vertical_tab_and_feed": "page\x0bbreak\x0chere",
}


def _many(text: str, count: int = 30) -> Pairs:
    return [(f"{text} {i}", ("good", "bad")[i % 2]) for i in range(count)]


def _foreign() -> list[Case]:
    found = []
    for encoding, text in LONG.items():
        rows = _many(text)
        found.append(reads(f"csv_in_{encoding}", f"{encoding}.csv", csv(rows).encode(encoding), rows))
    return found


def _marks() -> list[Case]:
    plain = csv()
    marks = {
        "utf32_le": codecs.BOM_UTF32_LE + plain.encode("utf-32-le"),
        "utf32_be": codecs.BOM_UTF32_BE + plain.encode("utf-32-be"),
        "utf16_be": codecs.BOM_UTF16_BE + plain.encode("utf-16-be"),
        "utf16_be_without": plain.encode("utf-16-be"),
        "utf8_twice": codecs.BOM_UTF8 * 2 + plain.encode(),
    }
    found = [reads(f"mark_{name}", "mark.csv", content) for name, content in marks.items()]
    found += [
        reads("mark_jsonl", "mark.jsonl", codecs.BOM_UTF8 + lines().encode()),
        reads("mark_json", "mark.json", codecs.BOM_UTF8 + b'[{"input": "x", "output": "y"}]', [("x", "y")]),
        reads("mark_tsv_utf16", "mark.tsv", csv(separator="\t").encode("utf-16")),
        reads("mark_json_utf16", "mark.json", '[{"input": "ä", "output": "y"}]'.encode("utf-16"), [("ä", "y")]),
        refuses("mark_alone", "mark.csv", codecs.BOM_UTF8, r"mark\.csv"),
        refuses("mark_alone_jsonl", "mark.jsonl", codecs.BOM_UTF8 + b"\n", r"mark\.jsonl"),
        refuses("mark_utf16_cut", "cut.csv", plain.encode("utf-16")[:-1], r"cut\.csv.*bytes that are not utf-16"),
        refuses("utf32_without_mark", "wide.csv", plain.encode("utf-32-le"), r"wide\.csv, line 1: a NUL byte"),
        refuses(
            "mark_utf16_on_utf8", "lie.csv", codecs.BOM_UTF16_LE + plain.encode() + b"x", r"lie\.csv", "UTF-8|Export"
        ),
    ]
    return found


def _broken() -> list[Case]:
    many = csv(_many("Käse über alle Maßen", 400)).encode()
    rows = _many("Käse über alle Maßen", 400)
    inside = lines([*OBJECTS] * 50).encode()
    return [
        refuses(
            "one_bad_byte_in_utf8",
            "bad.csv",
            many.replace("Käse über alle Maßen 300".encode(), b"K\xe4se 300"),
            r"bad\.csv, line 302: .*byte",
            "UTF-8",
        ),
        refuses(
            "one_bad_byte_in_jsonl",
            "bad.jsonl",
            lines([{"input": f"déjà {i}", "output": "y"} for i in range(60)])
            .encode()
            .replace("déjà 50".encode(), b"d\xe9ja 50"),
            r"bad\.jsonl, line 51: .*byte",
            "UTF-8",
        ),
        refuses("last_character_cut", "cut.csv", many[: many.rindex("ä".encode()) + 1], r"cut\.csv, line 401", "UTF-8"),
        reads("whole_utf8_again", "whole.csv", many, rows),
        refuses("nul_in_jsonl", "nul.jsonl", inside.replace(b"hat", b"h\x00t", 1), r"nul\.jsonl, line 1: a NUL byte"),
        refuses("nul_in_tsv", "nul.tsv", csv(separator="\t").replace("pear", "pe\0r"), r"nul\.tsv, line 3: a NUL"),
        refuses("nul_in_json", "nul.json", b'[{"input": "\x00", "output": "y"}]', r"nul\.json, line 1: a NUL byte"),
        reads("nul_escaped", "nul.jsonl", '{"input": "a\\u0000b", "output": "y"}', [("a\0b", "y")]),
        refuses("only_nuls", "zero.csv", bytes(1000), r"zero\.csv, line 1: a NUL byte"),
        refuses("random_bytes", "noise.csv", bytes(range(256)) * 4, r"noise\.csv, line 1: a NUL byte"),
        refuses(
            "half_surrogate",
            "half.jsonl",
            lines() + '{"input": "cut \\ud83d off", "output": "y"}\n',
            r"half\.jsonl, line 3.*half",
            "emoji|whole",
        ),
        refuses(
            "half_surrogate_in_array",
            "half.json",
            '[\n{"input": "a", "output": "b"},\n{"input": "\\udc00", "output": "y"}]',
            r"half\.json, line 3.*half",
        ),
        refuses(
            "half_surrogate_in_answer", "half.jsonl", '{"input": "a", "output": "\\ud800"}', r"half\.jsonl, line 1"
        ),
        refuses(
            "half_surrogate_in_choices",
            "half.jsonl",
            '{"input": "a", "output": "x", "choices": ["x", "\\ud800"]}',
            r"half\.jsonl, line 1",
        ),
        refuses(
            "half_surrogate_in_a_name", "half.jsonl", '{"input": "a", "output": "b", "\\ud800": 1}', r"half\.jsonl"
        ),
        refuses(
            "half_surrogate_in_a_list_as_text",
            "half.csv",
            "text,choices,answer\na,\"['x', '\\ud800']\",x\n",
            r"half\.csv, line 2",
        ),
        reads("pair_of_surrogates", "pair.jsonl", '{"input": "\\ud83d\\ude00", "output": "y"}', [("\U0001f600", "y")]),
    ]


def _signs() -> list[Case]:
    found = []
    for name, text in SIGNS.items():
        rows = [(text, "y"), (f"x {text} x", "z")]
        objects = [{"input": a, "output": b} for a, b in rows]
        found.append(reads(f"signs_{name}_csv", "signs.csv", csv([(f'"{a}"', b) for a, b in rows]), rows))
        found.append(reads(f"signs_{name}_jsonl", "signs.jsonl", lines(objects), rows))
    return found


def _ends() -> list[Case]:
    return [
        reads("old_mac_line_ends", "mac.csv", csv(end="\r")),
        reads("mixed_line_ends", "mixed.csv", "text,label\r\na red hat,clothes\na green pear,fruit\r"),
        reads("mixed_line_ends_jsonl", "mixed.jsonl", lines(end="\r\n")),
        reads(
            "quoted_carriage_returns",
            "a.csv",
            'text,label\r\n"a\r\nb",x\r\n"c\nd",y\r\n',
            [("a\r\nb", "x"), ("c\nd", "y")],
        ),
        reads("spaces_at_the_ends", "a.csv", "text,label\n  a red hat  , clothes\n a green pear,fruit  \n"),
        reads("file_separators", "a.jsonl", lines([{"input": "a\x1cb", "output": "y"}]), [("a\x1cb", "y")]),
        refuses("control_z_at_the_end", "a.csv", csv().encode() + b"\x1a\r\n", r"a\.csv, line 4: 1 fields"),
    ]


CASES = [*_foreign(), *_marks(), *_broken(), *_signs(), *_ends()]
