"""What the Data page reads, mends, stores and shows, without a browser."""

from __future__ import annotations

import json
from pathlib import Path

import gradio.utils
import pytest

from app import forms, uploads
from app.pages import data, data_form, data_views
from core.errors import ConfigurationError, DataError
from core.studio import Studio

REVIEWS = [
    {"text": f"The {noun} was {word}.", "label": word} for noun in "abcdefghijklmnopqrst" for word in ("good", "bad")
]


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TESSERA_DATA", str(tmp_path / "files"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "files").mkdir()
    made = Studio(tmp_path / "home")
    yield made
    made.close()


@pytest.fixture
def roles(studio: Studio):
    return studio.drafts.settings()["columns"]


def received(name: str, text: str, folder: str = "x") -> str:
    """A file as Gradio keeps an upload."""
    path = Path(gradio.utils.get_upload_folder()) / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def reviews(name: str = "reviews.jsonl", folder: str = "x") -> str:
    return received(name, "\n".join(map(json.dumps, REVIEWS)), folder)


def test_a_preview_shows_the_prompt_with_what_is_learnt(studio: Studio, roles):
    told, area, form, seen = data.preview_view(studio, roles, [reviews()], "", "", None)
    assert told == "" and area["visible"]
    assert form["values"]["column.input"] == ["text"] and form["values"]["column.label"] == "label"
    assert '<span class="learnt">good' in seen and "Tokens per row" in seen and "Classes" in seen


def test_files_that_were_not_uploaded_are_refused(studio: Studio, tmp_path: Path):
    elsewhere = tmp_path / "secret.csv"
    elsewhere.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="not uploaded"):
        uploads.received([str(elsewhere)])
    told, *_ = data.preview_view(studio, [], [str(elsewhere)], "", "", None)
    assert "not uploaded" in told


def test_a_typed_folder_must_lie_below_an_allowed_one(studio: Studio, roles, tmp_path: Path):
    told, area, *_ = data.preview_view(studio, roles, None, "/etc", "", None)
    assert "outside the folders" in told and not area["visible"]
    (tmp_path / "files" / "r.jsonl").write_text("\n".join(map(json.dumps, REVIEWS)))
    told, area, *_ = data.preview_view(studio, roles, None, str(tmp_path / "files"), "", None)
    assert told == "" and area["visible"]


def test_split_files_of_separate_uploads_are_one_task(studio: Studio, roles):
    paths = [reviews("train.jsonl", "one"), received("test.jsonl", json.dumps({"text": "new", "label": "good"}), "two")]
    said, _ = data.store_view(studio, roles, paths, "", "reviews", None)
    assert "Stored as" in said
    tasks = studio.dataset("reviews")["tasks"]
    assert list(tasks) == ["reviews"] and tasks["reviews"]["counts"]["test"] == 1


def test_a_file_without_a_usable_answer_is_mended_by_choosing_columns(studio: Studio, roles):
    text = "".join(f"id{i}\tan answer of its own {i}\ta question of its own number {i}?\n" for i in range(40))
    path = received("odd.tsv", text)
    told, area, form, seen = data.preview_view(studio, roles, [path], "", "", None)
    assert "no column holds the wanted answers" in told and area["visible"]
    assert "column3" in seen and form["groups"][0]["fields"][1]["choices"] == ["column1", "column2", "column3"]
    form["values"] |= {"column.output": "column2", "column.input": ["column3"]}
    told, _, mended, seen = data.preview_view(studio, roles, [path], "", "", form)
    assert told == "" and "a question of its own" in seen
    assert mended["given"] == {"output": "column2", "input": ["column3"]}
    assert data.preview_view(studio, roles, [path], "", "", mended)[0] == ""  # what was chosen stays chosen
    data.store_view(studio, roles, [path], "", "odd", mended)
    assert studio.rows("odd", "odd", "train", 0, 1)[0]["output"].startswith("an answer")


def test_a_role_is_unset_by_choosing_nothing(studio: Studio, roles):
    *_, form, _ = data.preview_view(studio, roles, [reviews()], "", "", None)
    form["values"] |= {"column.label": "", "column.output": "label"}
    assert data_form.upload_options(roles, form)["mapping"] == {"label": "", "output": "label"}


def test_what_the_form_says_becomes_options(roles):
    values = {"header": "no", "kind": "choice", "test": "0.3", "seed": "4", "drop_overlap": True, "split.a.csv": "test"}
    options = data_form.upload_options(roles, {"values": values})
    assert options == {"header": False, "kind": "choice", "test": 0.3, "seed": 4, "drop_overlap": True} | {
        "splits": {"a.csv": "test"}
    }


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"test": "1.5"}, "share is 1.5"),
        ({"test": "0.6", "validation": "0.5"}, "1.1 together"),
        ({"seed": "one"}, "not a whole number"),
        ({"kind": "poem"}, "not offered"),
    ],
)
def test_wrong_values_are_named(roles, values, words):
    with pytest.raises(ConfigurationError, match=words):
        data_form.upload_options(roles, {"values": values})


def test_a_length_that_no_run_may_have_is_named():
    for length in ("-4", "0"):
        with pytest.raises(ConfigurationError, match="max_length"):
            data_form.preview_options({"values": {"max_length": length}})


@pytest.mark.parametrize(("name", "text", "words"), [("a.zip", "PK", "not a supported format"), ("a.csv", "", "empty")])
def test_what_cannot_be_read_is_said_once_and_asks_for_no_mapping(studio: Studio, roles, name, text, words):
    told, area, _, seen = data.preview_view(studio, roles, [received(name, text)], "", "", None)
    assert words in told and not area["visible"] and seen == ""


def test_of_uploaded_files_the_names_are_shown(studio: Studio, roles):
    for called, paths in (("one", [reviews()]), ("two", [reviews("train.jsonl"), reviews("test.jsonl", "y")])):
        data.store_view(studio, roles, paths, "", called, None)
    assert uploads.shown(studio.dataset("one")["source"]) == "uploaded reviews.jsonl"
    assert uploads.shown(studio.dataset("two")["source"]) == "uploaded train.jsonl, test.jsonl"
    assert uploads.shown("/data/a, b.csv") == "/data/a, b.csv"


def test_a_metric_that_is_none_is_refused(studio: Studio, roles):
    form = {"values": {"metric": "acuracy"}}
    told, _ = data.store_view(studio, roles, [reviews()], "", "", form)
    assert "Did you mean accuracy?" in told and studio.datasets() == []


def test_a_template_with_an_unknown_field_is_named():
    with pytest.raises(ConfigurationError, match="unknown field 'question'"):
        data_form.preview_options({"values": {"user": "{question}"}})


def test_markup_in_data_is_text(studio: Studio, roles):
    rows = [{"input": f"<script>alert({i})</script> <|end|>", "output": "<b>x</b>"} for i in range(12)]
    path = received("bad.jsonl", "\n".join(map(json.dumps, rows)))
    *_, seen = data.preview_view(studio, roles, [path], "", "", None)
    assert "<script>" not in seen and "<b>x</b>" not in seen and '<span class="special">&lt;|end|&gt;</span>' in seen
    data.store_view(studio, roles, [path], "", "<i>bad</i>", None)
    assert "<i>bad" not in data.stored(studio, "") and "<script>" not in "".join(
        map(str, data.detail_view(studio, "<i>bad</i>", {}))
    )


def test_rows_are_paged_and_brought_to_what_exists(studio: Studio, roles):
    data.store_view(studio, roles, [reviews()], "", "reviews", None)
    task, split, place, said, rows = data.rows_view(studio, "reviews", "no such", "nowhere", "999")
    assert task["value"] == "reviews" and split["value"] == "train" and place["value"] == place["maximum"] == 2
    assert "page 2 of 2" in said and rows.count("<tr>") > 2
    assert data.rows_view(studio, "reviews", "reviews", "train", "x")[2]["value"] == 1
    assert data.rows_view(studio, "reviews", "reviews", "train", float("inf"))[2]["value"] == 1


def test_an_unknown_data_set_is_a_sentence(studio: Studio):
    facts, body, *_ = data.detail_view(studio, "nothing", {})
    assert "There is no data set" in facts and "/data" in facts and not body["visible"]


def test_a_data_set_is_deleted_unless_runs_use_it(studio: Studio, roles):
    data.store_view(studio, roles, [reviews()], "", "reviews", None)
    _, facts, _ = data.delete_view(studio, "reviews")
    assert "was deleted" in facts and studio.datasets() == []
    assert "No data set is open" in data.delete_view(studio, "")[0]


def test_the_empty_list_says_what_to_do(studio: Studio):
    assert "No data is stored yet" in data.stored(studio, "")
    assert "Stored as" in data.store_demo(studio)[0]
    assert "find_word" in data.stored(studio, "find_w") and "Nothing matches" in data.stored(studio, "zzz")


def test_repeated_rows_are_named(studio: Studio, roles):
    rows = [*REVIEWS, {"text": "The a was good.", "label": "bad"}]
    path = received("twice.jsonl", "\n".join(map(json.dumps, rows)))
    *_, seen = data.preview_view(studio, roles, [path], "", "", None)
    assert "repeat an earlier input" in seen and "with another answer" in seen


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        ("integers", "2, 4,6", [2, 4, 6]),
        ("integers", "8", 8),
        ("names", "q_proj, v_proj", ["q_proj", "v_proj"]),
        ("names", "all-linear", "all-linear"),
        ("names", "q_proj", ["q_proj"]),
        ("ranges", "0-3, 5", ["0-3", 5]),
        ("number", "1e-3", 0.001),
        ("integer", "1,000", 1000),
        ("boolean", True, True),
    ],
)
def test_fields_read_what_people_write(kind, raw, value):
    assert forms.value_of(forms.plain("x", "x", kind), raw) == value


def test_empty_optional_fields_are_none():
    assert forms.value_of(forms.plain("x", "x", "integer", optional=True), "") is None
    assert forms.read([forms.plain("x", "x")], {"y": 1}) == {}


def test_the_histogram_counts_every_measured_row(studio: Studio, roles):
    data.store_view(studio, roles, [reviews()], "", "reviews", None)
    lengths = studio.preview_stored("reviews").tasks["reviews"].lengths["train"]
    assert sum(lengths.histogram) == lengths.measured and len(lengths.histogram) <= 33
    assert data_views.lengths({"train": lengths}).count("<i ") == len(lengths.histogram)


def test_of_two_versions_with_one_name_the_open_one_is_shown_and_deleted(studio: Studio):
    rows = {word: [{"input": f"q {i}", "output": f"{word} {i}"} for i in range(30)] for word in ("first", "second")}
    files = [received("twice.jsonl", "\n".join(map(json.dumps, rows[word])), word) for word in rows]
    first, second = (studio.upload(file, name="twice")["id"] for file in files)
    listed = data.stored(studio, "")
    assert "/data?dataset=twice" in listed and f"/data?dataset={first}" in listed and "earlier version" in listed
    facts, _, chosen, *_, rows, _ = data.detail_view(studio, first, {})
    assert "earlier version" in facts and f"/experiment?dataset={first}" in facts
    assert "first" in rows and "second" not in rows
    data.delete_view(studio, chosen)
    assert [one["id"] for one in studio.datasets()] == [second]
