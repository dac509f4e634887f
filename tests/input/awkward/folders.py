"""Folders: sidecars, hidden files, links, loops, strange names, splits in files, and metadata."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.input.awkward.cases import OBJECTS, TWO, Case, Content, Pairs, csv, lines


def _link(target: str, folder: bool = False) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target, target_is_directory=folder)


def _socket(path: Path) -> None:
    os.chdir(path.parent)  # the path itself may be longer than a socket's name can be
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


def _undecodable(path: Path) -> None:
    (path.parent / os.fsdecode(b"caf\xe9.csv")).write_text(csv())


def takes(name: str, files: Mapping[str, Content], rows: Pairs = TWO, *, source: str, **options: Any) -> Case:
    return Case(name, files, rows, source=source, options=options)


def rejects(name: str, files: Mapping[str, Content], message: str, remedy: str = ".", *, source: str = "") -> Case:
    return Case(name, files, None, message, remedy, source)


def _shards(path: Path) -> None:
    for number, pair in enumerate(TWO):
        table = pa.table({"input": [pair[0]], "output": [pair[1]]})
        pq.write_table(table, path.parent / f"train-0000{number}-of-00002.parquet")


def _beside() -> list[Case]:
    sidecar = json.dumps({"default": {"features": {"input": {"dtype": "string"}}, "splits": {}}})
    return [
        takes(
            "hub_sidecars",
            {
                "d/dataset_infos.json": sidecar,
                "d/dataset_info.json": sidecar,
                "d/state.json": "{}",
                "d/dataset_dict.json": '{"splits": ["train"]}',
                "d/train.csv": csv(),
                "d/README.md": "# x",
            },
            source="d",
        ),
        takes(
            "hidden_files",
            {
                "d/train.csv": csv(),
                "d/.DS_Store": bytes(100),
                "d/._train.csv": b"\0\x05\x16\x07",
                "d/.hidden.csv": "x",
                "d/.git/config.json": "{}",
            },
            source="d",
        ),
        takes(
            "windows_leftovers", {"d/train.csv": csv(), "d/Thumbs.db": b"\xd0\xcf", "d/desktop.ini": "x"}, source="d"
        ),
        takes("macos_archive_folder", {"d/train.csv": csv(), "d/__MACOSX/._train.csv": b"\0\x05\x16\x07"}, source="d"),
        takes("shards", {"d/data/a.md": "x", "d/data/train.md": _shards}, source="d"),
        takes(
            "lock_and_part_files",
            {"d/train.csv": csv(), "d/train.csv.part": "x", "d/~$train.csv.lock": "y"},
            source="d",
        ),
        takes("folders_three_deep", {"d/data/main/train.csv": csv()}, source="d"),
        takes("one_file_split_by_folders", {"d/train/a.csv": csv(TWO[:1]), "d/test/a.csv": csv(TWO[1:])}, source="d"),
        takes("names_with_splits", {"d/news_train.csv": csv(TWO[:1]), "d/news_test.csv": csv(TWO[1:])}, source="d"),
        takes("another_format_beside", {"d/train.csv": csv(TWO[:1]), "d/test.jsonl": lines(OBJECTS[1:])}, source="d"),
        rejects("nothing_but_sidecars", {"d/dataset_infos.json": sidecar}, "holds no data files", source="d"),
        rejects("an_empty_file_beside", {"d/train.csv": csv(), "d/test.csv": ""}, r"test\.csv is empty", source="d"),
        rejects(
            "a_damaged_file_beside",
            {"d/train.csv": csv(), "d/test.csv": "text,label\na\n"},
            r"test\.csv, line 2",
            source="d",
        ),
        rejects(
            "folder_called_like_a_file", {"x.csv/readme.md": "hello"}, r"x\.csv holds no data files", source="x.csv"
        ),
        rejects("no_such_file", {"a.csv": csv()}, r"There is no file or folder .*b\.csv", r"a\.csv", source="b.csv"),
        takes("the_same_split_twice", {"d/train.csv": csv(), "d/train.jsonl": lines()}, [*TWO, *TWO], source="d"),
    ]


def _links() -> list[Case]:
    return [
        takes("link_to_a_file", {"real.csv": csv(), "d/train.csv": _link("../real.csv")}, source="d"),
        takes("link_given_itself", {"real.csv": csv(), "link.csv": _link("real.csv")}, source="link.csv"),
        takes("broken_link_beside", {"d/train.csv": csv(), "d/test.csv": _link("gone.csv")}, source="d"),
        takes("loop_of_folders", {"d/train.csv": csv(), "d/again": _link("../d", True)}, source="d"),
        takes("loop_of_folders_below", {"d/t/train.csv": csv(), "d/t/up": _link("../..", True)}, source="d"),
        takes("link_to_itself_beside", {"d/train.csv": csv(), "d/me.csv": _link("me.csv")}, source="d"),
        rejects("broken_link", {"link.csv": _link("gone.csv")}, r"There is no file or folder .*link\.csv"),
        rejects("link_to_itself", {"me.csv": _link("me.csv")}, r"There is no file or folder .*me\.csv"),
        rejects("only_a_loop", {"d/again": _link("../d", True)}, "holds no data files", source="d"),
        rejects("a_pipe", {"a.csv": lambda path: os.mkfifo(path)}, r"a\.csv.*no (plain )?file", source="a.csv"),
        rejects("a_socket", {"a.csv": _socket}, r"a\.csv.*no (plain )?file", source="a.csv"),
        takes("a_pipe_beside", {"d/train.csv": csv(), "d/test.csv": lambda path: os.mkfifo(path)}, source="d"),
    ]


def _names() -> list[Case]:
    names = {
        "unicode_name": "größte Änderung ✓.csv",
        "emoji_name": "🙂🙂.csv",
        "right_to_left_name": "\u202egnp.csv",
        "newline_in_the_name": "two\nlines.csv",
        "quotes_in_the_name": "a'b\"c`$(d).csv",
        "html_in_the_name": "<img src=x onerror=alert(1)>.csv".replace("/", ""),
        "dots_in_the_name": "...a..b....csv",
        "dash_first": "-rf --help.csv",
        "percent_in_the_name": "100%s %d {x} {0}.csv",
        "control_in_the_name": "a\x1b[31mred\x07.csv",
        "longest_name": "x" * 251 + ".csv",
        "blank_name": "   .csv",
        "nothing_but_signs": "!!!.csv",
        "colon_in_the_name": "a:b@c.csv",
        "name_of_a_split": "test.csv",
        "name_of_two_splits": "train_test.csv",
    }
    found = [takes(name, {file: csv()}, source=file) for name, file in names.items()]
    return [
        *found,
        takes("undecodable_name", {"d/x.md": _undecodable}, source="d"),
        rejects(
            "undecodable_name_refused",
            {"d/x.md": lambda path: (path.parent / os.fsdecode(b"\xff.csv")).write_text("a")},
            r"csv",
            source="d",
        ),
        takes("two_files_alike", {"d/a/x.csv": csv(TWO[:1]), "d/b/x.csv": csv(TWO[1:])}, source="d"),
        takes("tasks_that_become_one_name", {"d/a b.csv": csv(TWO[:1]), "d/a_b.csv": csv(TWO[1:])}, source="d"),
    ]


def _metadata() -> list[Case]:
    def wrong(name: str, content: object, message: str) -> Case:
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        return rejects(
            f"tasks_json_{name}", {"d/train.csv": csv(), "d/tasks.json": text}, rf"tasks\.json.*{message}", source="d"
        )

    return [
        wrong("empty", "", "line 1"),
        wrong("null", "null", "list of tasks"),
        wrong("number", "7", "list of tasks"),
        wrong("of_texts", ["d"], "entry 1"),
        wrong("name_a_list", [{"name": ["d"]}], "name"),
        wrong("name_a_number", [{"name": 3}], "name"),
        wrong("labels_a_text", [{"name": "d", "labels": "a,b"}], "labels"),
        wrong("labels_of_numbers", [{"name": "d", "labels": [1, 2]}], "labels"),
        wrong("labels_twice", [{"name": "d", "labels": ["a", "a"]}], "labels.*'a'"),
        wrong("chance_nan", '[{"name": "d", "chance": NaN}]', "chance"),
        wrong("chance_huge", [{"name": "d", "chance": 1e300}], "chance"),
        wrong("trivial_negative", [{"name": "d", "trivial": -1}], "trivial"),
        wrong("kind_a_number", [{"name": "d", "kind": 1}], "kind"),
        wrong("instruction_a_list", [{"name": "d", "instruction": ["x"]}], "instruction"),
        wrong("deep", "[" * 100_000, "."),
        wrong("not_utf8", b"\xff\xfe\x00", "."),
        wrong("name_twice", [{"name": "d"}, {"name": "d"}], "'d'.*twice"),
        wrong("huge_integer", '[{"name": "d", "chance": ' + "9" * 5000 + "}]", "."),
        wrong("half_surrogate", '[{"name": "d", "instruction": "\\ud800"}]', "half"),
        wrong("scored_as_a_list", [{"name": "d", "scored_as": ["options"]}], "scored_as"),
        takes("tasks_json_a_folder", {"d/train.csv": csv(), "d/tasks.json/x.md": ""}, source="d"),
        takes(
            "tasks_json_unknown_fields",
            {"d/train.csv": csv(), "d/tasks.json": '[{"name": "d", "colour": 3}]'},
            source="d",
        ),
        takes("tasks_json_of_another_folder", {"d/train.csv": csv(), "tasks.json": '[{"name": "other"}]'}, source="d"),
    ]


def _options() -> list[Case]:
    def asked(case: str, message: str, remedy: str = ".", **options: Any) -> Case:
        return Case(f"asked_{case}", {"a.csv": csv()}, None, message, remedy, options=options)

    return [
        asked("for_a_negative_seed", "seed.*-1", seed=-1),
        asked("for_a_share_that_is_no_number", "test is nan", test=float("nan")),
        asked("for_a_negative_share", "validation share -0.5", validation=-0.5),
        asked("for_a_share_of_words", "test is 'half'", test="half"),
        asked("for_an_unknown_option", "tset is not a setting", "test", tset=0.5),
        asked("for_a_mapping_that_is_none", "mapping", mapping=["label"]),
        asked("for_an_unknown_kind", "not a kind", kind="ranking"),
        asked("for_an_unknown_metric", "not a metric", metric="accuracies"),
        asked("for_an_unknown_role", "not a role", "'label'", mapping={"lable": "label"}),
        asked("for_an_unknown_column", "no column 'labels'", "'label'", mapping={"label": "labels"}),
        asked("for_a_first_choice_of_words", "first_choice.*'one'", mapping={"first_choice": "one"}),
        asked("for_a_role_that_is_a_list", "label", mapping={"label": ["text", "label"]}),
        asked("for_a_role_that_is_a_number", "input", mapping={"input": 7}),
        asked("for_a_split_that_is_none", "not a split", splits={"a.csv": "exam"}),
        asked("for_a_split_of_another_file", "not uploaded", splits={"b.csv": "test"}),
        asked("for_a_very_long_name", "name.*120 characters", name="x" * 10_000),
        asked("for_a_half_surrogate_in_the_name", "half", name="\ud800"),
        asked("for_a_half_surrogate_in_the_instruction", "half", instruction="\ud800"),
        Case("asked_for_a_task_of_emoji", {"a.csv": csv()}, TWO, options={"task": "🙂", "name": "🙂 مرحبا"}),
        Case("asked_for_a_long_instruction", {"a.csv": csv()}, TWO, options={"instruction": "x" * 10_000}),
    ]


CASES = [*_beside(), *_links(), *_names(), *_metadata(), *_options()]
